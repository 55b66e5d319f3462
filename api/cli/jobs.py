"""What a caller does with jobs: send, list, show, follow, control, retry, export; figures."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal, Self

import cyclopts
from rich.console import Console
from rich.table import Table
from rich.text import Text

from api.client import Client
from shared import settings
from shared.errors import InvalidError, RequestError
from shared.ids import Ids

Json = Annotated[bool, cyclopts.Parameter(name="--json")]
Quiet = Annotated[bool, cyclopts.Parameter(name="--quiet")]

NO: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
PHONE_COLUMNS: Final = ("phone", "to", "number", "recipient", "mobile", "telephone")
_say: Final = Console(stderr=True, highlight=False)
_out: Final = Console(highlight=False)

jobs: Final = cyclopts.App(
    name="jobs", help="List, show, follow, pause, resume, cancel, retry, export jobs."
)


def _client() -> Client:
    given = settings.load()
    key = given.drumbeat_api_key
    return Client(given.drumbeat_url, key.reveal() if key else None)


def _run(work: Coroutine[Any, Any, int], followed: list[str] | None = None) -> int:
    """Run one command; a bad request is shown with each of its places.

    Args:
        work: the command.
        followed: holds the id of the job that Ctrl-C stops following, once it is known.
    """
    try:
        return asyncio.run(work)
    except InvalidError as error:
        _say.print(Text(f"refused: {error}"))
        for fault in error.faults[:20]:
            _say.print(Text(f"  {fault.pointer}: {fault.detail} ({fault.code})"))
        if error.total > len(error.faults[:20]):
            _say.print(f"  and {error.total - len(error.faults[:20])} more")
        return NO
    except KeyboardInterrupt:
        if followed:
            _say.print(f"stopped; the job goes on. Resume with: drumbeat jobs watch {followed[0]}")
        return INTERRUPTED


def _json(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _show(job: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    if as_json:
        _json(job)
    elif quiet:
        sys.stdout.write(f"{job['jobId']}\n")
    else:
        _out.print(_line(job))


def _line(job: dict[str, Any]) -> Text:
    """Return a job or an event of it on one line."""
    p, wait = job["progress"], job.get("wait")
    text = Text(job["jobId"])
    text.append(f"  {job['state']:<10}", "bold")
    text.append(f" {p['done']}/{p['total']}  sent {p['sent']}")
    for word in ("failed", "skipped", "cancelled", "unknown"):
        if p[word]:
            text.append(f"  {word} {p[word]}", "red" if word == "failed" else "yellow")
    if job["state"] == "running":
        eta = f"  about {p['eta_s']} s left" if p["eta_s"] is not None else ""
        text.append(f"  {p['rate']:g}/s{eta}")
    if wait:
        text.append(f"  ({wait['reason']}: {wait['detail']})", "dim")
    return text


@jobs.command(name="list")
def list_(
    *,
    state: str = "",
    campaign: str = "",
    limit: int = 20,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """List jobs, newest first.

    Args:
        state: only these, with commas between.
        campaign: only those with this campaignId.
        limit: at most this many, 1 to 100.
        as_json: print the API's document.
        quiet: print ids only.
    """
    given = {"limit": str(limit), "state": state, "campaignId": campaign}

    async def work() -> int:
        async with _client() as client:
            page = await client.jobs(**{name: value for name, value in given.items() if value})
        if as_json:
            _json(page)
        elif quiet:
            sys.stdout.writelines(f"{job['jobId']}\n" for job in page["data"])
        elif page["data"]:
            for job in page["data"]:
                _out.print(_line(job))
        else:
            _say.print("there are no jobs")
        return 0

    return _run(work())


@jobs.command
def show(job_id: str, /, *, as_json: Json = False, quiet: Quiet = False) -> int:
    """Show one job.

    Args:
        job_id: as `send` printed it.
        as_json: print the API's document.
        quiet: print the id only, if there is such a job.
    """

    async def work() -> int:
        async with _client() as client:
            job = await client.job(job_id)
        _show(job, as_json=as_json, quiet=quiet)
        if not as_json and not quiet:
            for kind in ("by_code", "by_reason"):
                for name, count in job["progress"][kind].items():
                    _out.print(f"  {kind.removeprefix('by_')} {name}: {count}")
        return 0

    return _run(work())


@jobs.command
def watch(job_id: str, /, *, strict: bool = False, as_json: Json = False) -> int:
    """Follow a job to its end, through restarts of the server too.

    Args:
        job_id: as `send` printed it.
        strict: exit 1 unless every recipient was sent.
        as_json: print one line an event.
    """

    async def work() -> int:
        async with _client() as client:
            return await _follow(client, job_id, strict=strict, as_json=as_json)

    return _run(work(), [job_id])


async def _follow(client: Client, job_id: str, *, strict: bool, as_json: bool) -> int:
    last: dict[str, Any] = {}
    is_live = sys.stderr.isatty() and not as_json
    with _say.status("waiting for the first numbers") if is_live else _Still() as status:
        async for _, event in client.watch(job_id):
            last = event
            if as_json:
                _json(event)
            elif is_live:
                status.update(_line(event))
            elif event["type"] != "end":
                _say.print(_line(event))
    if not last:
        last = await client.job(job_id)
        if as_json:
            _json(last)
    if not as_json:
        _out.print(_line(last))
    numbers = last["progress"]
    return NO if strict and numbers["sent"] < numbers["total"] else 0


class _Still:
    """A status line where there is no terminal: none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, line: Text) -> None:
        pass


def _control(job_id: str, action: str, reason: str | None, *, as_json: bool, quiet: bool) -> int:
    async def work() -> int:
        async with _client() as client:
            job = await client.control(job_id, action, reason)
        _show(job, as_json=as_json, quiet=quiet)
        return 0

    return _run(work())


@jobs.command
def pause(
    job_id: str, /, *, reason: str | None = None, as_json: Json = False, quiet: Quiet = False
) -> int:
    """Stop a job's sending within 1.5 s; `resume` goes on.

    Args:
        job_id: as `send` printed it.
        reason: shown to whoever looks.
        as_json: print the job as the API answers it.
        quiet: print its id only.
    """
    return _control(job_id, "pause", reason, as_json=as_json, quiet=quiet)


@jobs.command
def resume(job_id: str, /, *, as_json: Json = False, quiet: Quiet = False) -> int:
    """Go on with a paused job.

    Args:
        job_id: as `send` printed it.
        as_json: print the job as the API answers it.
        quiet: print its id only.
    """
    return _control(job_id, "resume", None, as_json=as_json, quiet=quiet)


@jobs.command
def cancel(
    job_id: str, /, *, reason: str | None = None, as_json: Json = False, quiet: Quiet = False
) -> int:
    """End a job for good: what has not left is cancelled.

    Args:
        job_id: as `send` printed it.
        reason: shown to whoever looks.
        as_json: print the job as the API answers it.
        quiet: print its id only.
    """
    return _control(job_id, "cancel", reason, as_json=as_json, quiet=quiet)


@jobs.command
def retry(
    job_id: str,
    /,
    *,
    scope: Literal["failed", "skipped", "cancelled", "unknown"] = "failed",
    code: tuple[str, ...] = (),
    older_than_s: int = 0,
    confirm_duplicates: bool = False,
    key: str | None = None,
    watch: bool = False,
    strict: bool = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Send again to those of an ended job that did not get it: a new job; print its id.

    Args:
        job_id: as `send` printed it.
        scope: which of them; `unknown` may have it already.
        code: these errors alone; repeat for several.
        older_than_s: those that ended so long ago.
        confirm_duplicates: with `unknown`: some may get it twice.
        key: Idempotency-Key, to repeat a command that was cut off; a new one each time.
        watch: follow the new job to its end.
        strict: with `watch`: exit 1 unless every recipient was sent.
        as_json: print the API's document, with `watch` one line an event.
        quiet: print the new job's id only.
    """
    body = {
        "scope": scope,
        "codes": list(code),
        "older_than_s": older_than_s,
        "confirm_duplicates": confirm_duplicates,
    }
    made: list[str] = []

    async def work() -> int:
        async with _client() as client:
            job = await client.retry(job_id, body, key or Ids().token(16))
            made.append(job["jobId"])
            if as_json and not quiet:
                _json(job)
            else:
                sys.stdout.write(f"{made[0]}\n")
                sys.stdout.flush()
            for row in job["excluded"] if not quiet else ():
                until = f", not before {row['not_before']}" if row["not_before"] else ""
                _say.print(Text(f"{row['count']} left out: {row['code']}{until}"))
            if not watch:
                return 0
            return await _follow(client, made[0], strict=strict, as_json=as_json)

    return _run(work(), made)


@jobs.command
def export(
    job_id: str,
    /,
    *,
    form: Annotated[Literal["csv", "ndjson", "xlsx"], cyclopts.Parameter(name="--format")] = "csv",
    outcome: str = "",
    receipt: str = "",
    code: str = "",
    output: Path | None = None,
) -> int:
    """Write a job's recipients and what they came to.

    Args:
        job_id: as `send` printed it.
        form: of the file.
        outcome: only these, with commas between.
        receipt: only these, with commas between.
        code: only these errors, with commas between.
        output: a file, whole or not at all; standard output when left out.
    """
    given = {"outcome": outcome, "receipt": receipt, "code": code}
    filters = {name: value for name, value in given.items() if value}

    async def pour(file: BinaryIO) -> None:
        async with _client() as client:
            async for piece in client.export(job_id, form, filters):
                file.write(piece)

    async def work() -> int:
        if output is None:
            await pour(sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return 0
        part = output.with_name(f"{output.name}.part")
        try:
            with part.open("wb") as file:
                await pour(file)
            part.replace(output)
        finally:
            part.unlink(missing_ok=True)
        return 0

    return _run(work())


def send(
    file: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)],
    /,
    *,
    text: str | None = None,
    template: str | None = None,
    maps: Annotated[tuple[str, ...], cyclopts.Parameter(name="--map")] = (),
    phone_column: str | None = None,
    sender: str | None = None,
    rate: float | None = None,
    name: str | None = None,
    campaign: str | None = None,
    region: str | None = None,
    at: str | None = None,
    expires: str | None = None,
    skip_invalid: bool = False,
    dry_run: bool = False,
    key: str | None = None,
    yes: bool = False,
    watch: bool = False,
    strict: bool = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Send to everybody in a CSV file, or on standard input with `-`.

    Args:
        file: UTF-8, one recipient a row; with a header its other columns fill `{{name}}`.
        text: a text message.
        template: `name:language`, such as order_update:en_US.
        maps: a parameter of the template's body and the column that fills it, such as
            1=first_name; repeat for several.
        phone_column: header of the column with the numbers; found by itself when usual.
        sender: name or id; the default sender.
        rate: this job's own ceiling, messages per second.
        name: shown in lists.
        campaign: the campaignId.
        region: ISO 3166, for numbers without a country code.
        at: when it begins, such as 2026-12-01T09:00:00+01:00.
        expires: after this whoever is left is skipped.
        skip_invalid: leave bad rows out instead of refusing the file.
        dry_run: say what would become of it, and send nothing; 1 when it would be refused.
        key: Idempotency-Key, to repeat a command that was cut off; a new one each time.
        yes: do not ask.
        watch: follow the job to its end.
        strict: with `watch`: exit 1 unless every recipient was sent.
        as_json: print the API's document, with `watch` one line an event.
        quiet: print the job's id only.
    """
    if (text is None) == (template is None):
        return _usage("give exactly one of --text and --template")
    if any(not all(each.partition("=")[::2]) for each in maps) or (maps and template is None):
        return _usage("--map is PARAMETER=COLUMN, of a template")
    try:
        content = _read(file)
    except (OSError, UnicodeDecodeError) as error:
        return _usage(f"{file} cannot be read: {error}")
    try:
        recipients = rows_of(content, phone_column)
    except ValueError as error:
        return _usage(f"{file}: {error}")
    if not yes and not dry_run and not _is_agreed(len(recipients), file):
        return NO
    optional = {
        "sender": sender,
        "rate": rate,
        "name": name,
        "campaignId": campaign,
        "default_region": region,
        "scheduled_at": at,
        "expires_at": expires,
        "on_invalid": "skip" if skip_invalid else None,
    }
    body = {
        "recipients": recipients,
        "message": _message(text, template, maps),
        **{field: value for field, value in optional.items() if value is not None},
    }
    if dry_run:
        return _run(_look(body, as_json=as_json))
    key = key or Ids().token(16)
    made: list[str] = []

    async def work() -> int:
        async with _client() as client:
            job = await client.submit(body, key)
            made.append(job["jobId"])
            if quiet or not as_json:
                sys.stdout.write(f"{made[0]}\n")
                sys.stdout.flush()
            elif not watch:
                _json(job)
            if not quiet:
                intake = job["intake"]
                left_out = intake["duplicates"] + intake["invalid"]
                words = f"; {left_out} left out" if left_out else ""
                _say.print(f"accepted {intake['accepted']} of {intake['submitted']}{words}")
            if not watch:
                return 0
            return await _follow(client, made[0], strict=strict, as_json=as_json)

    try:
        return _run(work(), made)
    except RequestError:
        raise
    except Exception:
        _say.print(f"to repeat this without sending twice, add: --key {key}")
        raise


async def _look(body: dict[str, Any], *, as_json: bool) -> int:
    """Show what would become of a submission."""
    async with _client() as client:
        seen = await client.preflight(body)
    if as_json:
        _json(seen)
        return 0 if seen["ok"] else NO
    rows, template, estimate = seen["rows"], seen["template"], seen["estimate"]
    _out.print(Text(", ".join(f"{name} {count}" for name, count in rows.items())))
    if template is not None:
        known = [template[name] for name in ("status", "category", "format") if template[name]]
        why = [] if template["checked"] else [f"not checked: {template['why']}"]
        _out.print(Text(f"template {', '.join([*known, *why])}"))
    for row in seen["preview"]:
        _out.print(Text(f"row {row['row']}: {row['text']}"))
    for row in seen["problems"][:20]:
        _say.print(Text(f"  {row['pointer']}: {row['detail']} ({row['code']})"))
    if estimate is not None:
        _out.print(f"about {estimate['duration_s']} s")
    _out.print("it would be accepted" if seen["ok"] else "it would be refused")
    return 0 if seen["ok"] else NO


def _usage(sentence: str) -> int:
    _say.print(Text(f"drumbeat send: {sentence}"))
    return USAGE


def _read(file: str) -> str:
    raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    return raw.decode("utf-8-sig")


def _is_agreed(count: int, file: str) -> bool:
    if file == "-" or not sys.stdin.isatty():
        _say.print("without a terminal to ask on, add --yes")
        return False
    return input(f"Send to {count} recipients? [y/N] ").strip().lower() in {"y", "yes"}


def _message(text: str | None, template: str | None, maps: Sequence[str] = ()) -> dict[str, Any]:
    if text is not None:
        return {"kind": "text", "text": {"body": text}}
    name, _, language = (template or "").partition(":")
    made: dict[str, Any] = {"name": name, "language_code": language or "en_US"}
    if maps:
        made["components"] = [{"type": "body", "parameters": _parameters(maps)}]
    return {"kind": "template", "template": made}


def _parameters(maps: Sequence[str]) -> list[dict[str, str]]:
    """Return the parameters of a body, those with numbers in their order.

    >>> _parameters(["2=Code", "1=First name"])[0]
    {'type': 'text', 'text': '{{first_name}}'}
    >>> _parameters(["code=code"])
    [{'type': 'text', 'text': '{{code}}', 'parameter_name': 'code'}]
    """
    pairs = [each.partition("=")[::2] for each in maps]
    pairs.sort(key=lambda pair: int(pair[0]) if pair[0].isdigit() else 0)
    found = []
    for name, column in pairs:
        made = {"type": "text", "text": f"{{{{{column.strip().lower().replace(' ', '_')}}}}}"}
        found.append(made if name.isdigit() else {**made, "parameter_name": name})
    return found


def rows_of(content: str, phone_column: str | None = None) -> list[Any]:
    r"""Return a file's recipients as the API takes them; other named columns become `vars`.

    A first row that is itself a number is a recipient: the file has no header.

    Raises:
        ValueError: empty, or no column of numbers can be found; the caller must name it.

    >>> rows_of("Phone;First name\n+15550000001;Ann\n")
    [{'to': '+15550000001', 'vars': {'first_name': 'Ann'}}]
    """
    first = content.split("\n", 1)[0]
    delimiter = max(",;\t|", key=first.count)
    table = [row for row in csv.reader(io.StringIO(content), delimiter=delimiter) if any(row)]
    if not table:
        raise ValueError("there is no row in it")
    if phone_column is None and any(cell.strip().lstrip("+").isdigit() for cell in table[0]):
        place = next(i for i, cell in enumerate(table[0]) if cell.strip().lstrip("+").isdigit())
        return [row[place].strip() if place < len(row) else "" for row in table]
    header = [cell.strip().lower().replace(" ", "_") for cell in table[0]]
    wanted = [phone_column.strip().lower().replace(" ", "_")] if phone_column else PHONE_COLUMNS
    place = next((header.index(name) for name in wanted if name in header), -1)
    if place < 0:
        raise ValueError("no column of numbers; name it with --phone-column")
    others = [(i, name) for i, name in enumerate(header) if i != place and name]
    rows: list[Any] = []
    for row in table[1:]:
        number = row[place].strip() if place < len(row) else ""
        values = {name: row[i] for i, name in others if i < len(row)}
        rows.append({"to": number, "vars": values} if values else number)
    return rows


def stats(*, as_json: Json = False) -> int:
    """Show the admin's figures.

    Args:
        as_json: print the API's document.
    """

    async def work() -> int:
        async with _client() as client:
            found = await client.stats()
        if as_json:
            _json(found)
        else:
            _out.print(_table(found))
        return 0

    return _run(work())


def _table(found: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in found.items():
        if isinstance(value, dict):
            cells = ", ".join(f"{key} {inner}" for key, inner in value.items())
        elif isinstance(value, list):
            cells = "\n".join(
                ", ".join(f"{key} {inner}" for key, inner in row.items()) for row in value
            )
        else:
            cells = str(value)
        table.add_row(Text(name, "bold"), Text(cells))
    return table
