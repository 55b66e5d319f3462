"""`drumbeat suppress`: who is not written to, one by one or from a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import cyclopts

from api import wire
from api.cli.acts import ACTOR, ids, print_line, show, text_of, with_office
from shared.errors import InvalidError, NotFoundError
from shared.ids import is_object_id
from shared.office import Act, ListedSuppression, Office
from shared.phone import e164, normalise, regions, why_not

Scope = Literal["all", "marketing"]
File = Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)]
Json = Annotated[bool, cyclopts.Parameter(name="--json")]
REASON_MAX: Final = 500
_PAGE: Final = 1000
_AT_ONCE: Final = 5000  # entries of one transaction: others who add wait for it
_SHOWN_MAX: Final = 20
_SCOPES: Final[tuple[Scope, ...]] = ("all", "marketing")

suppress = cyclopts.App(name="suppress", help="People who are not written to.")


class Read(NamedTuple):
    """What a file of numbers holds.

    Attributes:
        phones: each once, in their order.
        wrong: number of the line, from 1, and why it is none; the line itself is not repeated.
    """

    phones: list[int]
    wrong: list[tuple[int, str]]


def phone_of(text: str, region: str | None) -> int:
    """Return a number as it is kept; 0 when it is none.

    >>> phone_of("+15550000001", None), phone_of("(555) 000-0001", "US"), phone_of("x", None)
    (15550000001, 15550000001, 0)
    """
    return e164(text) or (normalise(text, region) if region is not None else 0)


def read_numbers(lines: Iterable[str], region: str | None) -> Read:
    """Return the numbers of a file: the first column of each line; a header is passed over. Pure.

    Args:
        lines: of the file.
        region: where numbers written otherwise are dialled.
    """
    phones: dict[int, None] = {}
    wrong = []
    for number, line in enumerate(lines, 1):
        text = line.strip().lstrip("\ufeff").replace(";", ",").split(",")[0].strip().strip('"')
        if not text or (number == 1 and not any(sign.isdigit() for sign in text)):
            continue
        phone = phone_of(text, region)
        if phone:
            phones[phone] = None
        else:
            wrong.append((number, why_not(text)[1]))
    return Read(list(phones), wrong)


@suppress.command(name="add")
def add(
    phone: str, /, *, scope: Scope = "all", reason: str = "", region: str | None = None
) -> None:
    """Put a number on the list; running jobs skip it from two seconds later on. Print the id.

    Args:
        phone: such as +15550000001.
        scope: `marketing` stops marketing templates alone.
        reason: for whoever asks later.
        region: ISO 3166, for a number without a country code.
    """
    _check(reason, region)
    found = phone_of(phone, region)
    if not found:
        raise InvalidError("bad_format", f"This is no number: {why_not(phone)[1]}.")

    async def act(office: Office) -> str:
        row, _ = await office.suppress(
            _act("add", ids.object_id("sup")), found, scope, reason, ACTOR
        )
        return row.id

    print_line(with_office(act))


@suppress.command(name="import")
def import_file(
    file: File,
    /,
    *,
    scope: Scope = "all",
    reason: str = "",
    region: str | None = None,
    skip_invalid: bool = False,
) -> None:
    """Put all numbers of a file on the list, or of standard input with -; print how many are new.

    Args:
        file: UTF-8, one a line; of more columns the first counts.
        scope: `marketing` stops marketing templates alone.
        reason: for whoever asks later.
        region: ISO 3166, for numbers without a country code.
        skip_invalid: leave bad lines out instead of refusing the file.
    """
    _check(reason, region)
    text = sys.stdin.read() if file == "-" else text_of(Path(file))
    read = read_numbers(text.splitlines(), region)
    for number, why in read.wrong[:_SHOWN_MAX]:
        sys.stderr.write(f"line {number}: {why}\n")
    if read.wrong and not skip_invalid:
        text = f"{len(read.wrong)} lines hold no number; correct them, or --skip-invalid."
        raise InvalidError("invalid_recipients", text)

    async def act(office: Office) -> int:
        new = 0
        for first in range(0, len(read.phones), _AT_ONCE):
            phones = read.phones[first : first + _AT_ONCE]
            entries = [(ids.object_id("sup"), phone) for phone in phones]
            word = _act("import", "suppressions")
            new += await office.suppress_all(word, entries, scope, reason, ACTOR)
        return new

    new = with_office(act)
    print_line(f"{new} added, {len(read.phones) - new} were on the list, {len(read.wrong)} invalid")


@suppress.command(name="remove")
def remove(entry: str, /, *, scope: Scope | None = None, region: str | None = None) -> None:
    """Take a number off the list, or one entry.

    Args:
        entry: a number, or an id that `list` shows.
        scope: of the number's entries this one alone.
        region: ISO 3166, for a number without a country code.
    """
    _check("", region)

    async def act(office: Office) -> None:
        if is_object_id(entry):
            await office.lift(_act("lift", entry), entry)
            return
        phone = phone_of(entry, region)
        found = [await office.suppression(phone, each) for each in _SCOPES if scope in (None, each)]
        there = [row for row in found if row is not None]
        if not there:
            raise NotFoundError
        for row in there:
            await office.lift(_act("lift", row.id), row.id)

    with_office(act)


@suppress.command(name="list")
def list_entries(*, scope: Scope | None = None, limit: int = 100, as_json: Json = False) -> None:
    """Show who is on the list, newest first.

    Args:
        scope: these alone.
        limit: at most so many; 0 = all.
        as_json: one JSON document.
    """

    async def act(office: Office) -> list[ListedSuppression]:
        rows: list[ListedSuppression] = []
        while not limit or len(rows) < limit:
            most = min(_PAGE, limit - len(rows)) if limit else _PAGE
            page = await office.suppressions(scope, rows[-1].number if rows else 0, most)
            rows += page
            if len(page) < most:
                break
        return rows

    show(
        ["id", "phone", "scope", "reason", "source", "by", "created_at"],
        [
            [
                row.id,
                f"+{row.phone}",
                row.scope,
                row.reason,
                row.source,
                row.created_by,
                wire.time_text(row.created_ms),
            ]
            for row in with_office(act)
        ],
        json=as_json,
    )


def _check(reason: str, region: str | None) -> None:
    if len(reason) > REASON_MAX:
        raise InvalidError("too_long", f"A reason is at most {REASON_MAX} characters.")
    if region is not None and region not in regions():
        raise InvalidError("validation_failed", "--region is an ISO 3166 region such as DE.")


def _act(verb: str, object_id: str) -> Act:
    return Act(ACTOR, f"suppression.{verb}", object_id)
