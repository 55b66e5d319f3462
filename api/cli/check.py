"""`drumbeat check`: what stands between these settings and going live, each with its remedy."""

from __future__ import annotations

import asyncio
import http.client
import re
import resource
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import cyclopts
import msgspec

from api.cli.ask import ask, connection_to
from shared import connect, migrate, settings
from shared.archive import Archive, SenderRow
from shared.clock import Clock
from shared.errors import DrumbeatError, SealError, SettingsError
from shared.models import ServerInfo
from shared.office import Office
from shared.queue import Queue
from shared.sealing import Sealing
from shared.settings import Settings

FILES_MIN: Final = 4096
SKEW_S: Final = 2.0
REDIS_MIN: Final = (7, 0)
POSTGRES_MIN: Final = (14, 0)
_GRAPH_S: Final = 10.0
_GOOD: Final = 200
_TOKEN: Final = 401
_TOKEN_CODES: Final = frozenset({0, 10, 190})
_META_TOKENS: Final = "EAA"
_NUMBERS: Final = re.compile(r"\d+")
Json = Annotated[bool, cyclopts.Parameter(name="--json")]
Level = Literal["ok", "note", "fail"]


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        level: `fail` ends with exit code 1; a `note` only wants to be known.
        what: where one looked.
        found: what is there.
        remedy: what to do; '' where nothing is.
    """

    level: Level
    what: str
    found: str
    remedy: str = ""


def check(*, as_json: Json = False) -> int:
    """Look at settings, stores, rights, senders at Graph, clock and limits; 1 on any fault.

    Args:
        as_json: one JSON document.
    """
    return report(findings(_nothing), as_json=as_json)


def findings(deeper: Callable[[Settings], Awaitable[list[Finding]]]) -> list[Finding]:
    """Return what is found, and what `deeper` adds where the settings are good enough for it."""
    try:
        given = settings.load()
    except SettingsError as error:
        return [Finding("fail", "settings", line, "correct it") for line in str(error).split("\n")]

    async def ask() -> list[Finding]:
        return [*await _redis(given), *await _postgres(given), *await deeper(given)]

    return [*of_settings(given), of_files(_file_limit()), *asyncio.run(ask())]


async def _nothing(_given: Settings) -> list[Finding]:
    return []


def report(found: list[Finding], *, as_json: bool) -> int:
    """Print findings, a line each or as one document; return the exit code."""
    if as_json:
        sys.stdout.write(msgspec.json.encode([each._asdict() for each in found]).decode() + "\n")
    else:
        sys.stdout.writelines(line(each) + "\n" for each in found)
    return int(any(each.level == "fail" for each in found))


def line(each: Finding) -> str:
    """Return a finding as a line.

    >>> line(Finding("fail", "clock", "3.1 s off", "run an NTP client"))
    'fail  clock       3.1 s off: run an NTP client'
    """
    tail = f": {each.remedy}" if each.remedy else ""
    return f"{each.level:<5} {each.what:<11} {each.found}{tail}"


# -- what is decided without asking anybody ---------------------------------------------------


def of_settings(given: Settings) -> list[Finding]:
    """Return what the settings themselves say. Pure."""
    out = [Finding("note", "settings", warning) for warning in given.warnings]
    if not given.bulk_secret_key:
        make = "set BULK_SECRET_KEY to the output of `openssl rand -hex 32`"
        out.append(Finding("fail", "settings", "BULK_SECRET_KEY is not set", make))
    if not given.public_url.startswith("https://"):
        text = f"PUBLIC_URL is {given.public_url}: browsers of others cannot log in"
        # Where messages are pretended, one may well be alone on this machine.
        level: Level = "note" if given.is_sandbox else "fail"
        out.append(Finding(level, "settings", text, "set it to this site's https origin"))
    if given.is_sandbox:
        text = f"GRAPH_BASE_URL is {given.graph_base_url}: messages are pretended"
        out.append(Finding("note", "settings", text, "unset it to send through Meta"))
    if given.disable_bulk_messaging:
        text = "DISABLE_BULK_MESSAGING holds the whole pool"
        out.append(Finding("note", "settings", text, "unset it to send"))
    if given.allow_volatile:
        text = "ALLOW_VOLATILE accepts a Redis that forgets"
        out.append(Finding("fail", "settings", text, "unset it; jobs must outlive a restart"))
    return out or [Finding("ok", "settings", "complete")]


def of_files(limit: int) -> Finding:
    """Return whether a process may open enough files; each stream and connection is one. Pure."""
    if limit < FILES_MIN:
        remedy = f"`ulimit -n {FILES_MIN}`, LimitNOFILE= or compose's ulimits"
        return Finding("fail", "files", f"a process may open {limit}", remedy)
    return Finding("ok", "files", f"a process may open {limit}")


def version_of(text: str) -> tuple[int, ...]:
    """Return the numbers of a version.

    >>> version_of("18.6 (Debian)"), version_of("9.1.2")
    ((18, 6), (9, 1, 2))
    """
    return tuple(int(part) for part in _NUMBERS.findall(text.split(" ", maxsplit=1)[0]))


def of_redis(info: ServerInfo) -> list[Finding]:
    """Return what a Redis server lacks. Pure."""
    rules = (
        (version_of(info.version) >= REDIS_MIN, f"version {info.version}",
         "use Redis 7.0 or newer, or Valkey"),
        (info.policy == "noeviction", f"maxmemory-policy is {info.policy}",
         "`maxmemory-policy noeviction` in its configuration: it may drop jobs"),
        (info.is_aof, "no append-only file",
         "`appendonly yes` in its configuration: a restart forgets all jobs"),
        (info.is_persistence_ok, "the last write to its append-only file failed",
         "make room on its disk"),
        (bool(info.max_bytes), "maxmemory is not set",
         "set it below the machine's memory, so that Redis refuses before it is killed"),
    )  # fmt: skip
    out = [Finding("fail", "redis", found, remedy) for holds, found, remedy in rules if not holds]
    return out or [Finding("ok", "redis", f"version {info.version}, noeviction, append-only file")]


def of_postgres(version: str, missing: list[str], lacking: list[str]) -> list[Finding]:
    """Return what PostgreSQL lacks. Pure.

    Args:
        version: of the server.
        missing: migrations not applied.
        lacking: `right on table`, for each that we need and do not have.
    """
    out = []
    if version_of(version) < POSTGRES_MIN:
        out.append(Finding("fail", "postgres", f"version {version}", "use PostgreSQL 14 or newer"))
    if missing:
        text = f"the schema lacks {', '.join(missing)}"
        out.append(Finding("fail", "postgres", text, "run `drumbeat migrate`"))
    if lacking:
        text = f"this role may not {', '.join(lacking)}"
        out.append(Finding("fail", "postgres", text, "GRANT it, or connect as the owner"))
    return out or [Finding("ok", "postgres", f"version {version}, schema and rights complete")]


def of_clock(off_s: float) -> Finding:
    """Return whether this machine and PostgreSQL's agree on the time. Pure."""
    if abs(off_s) > SKEW_S:
        text = f"{off_s:+.1f} s away from PostgreSQL's"
        return Finding("fail", "clock", text, "let both follow the same NTP servers")
    return Finding("ok", "clock", f"{abs(off_s):.1f} s away from PostgreSQL's")


def is_of_meta(token: str) -> bool:
    """Tell whether a token is one of Meta's, which begin so. Pure.

    >>> is_of_meta("EAAG1x"), is_of_meta("sandbox-token")
    (True, False)
    """
    return token.startswith(_META_TOKENS)


def of_real_token(name: str, url: str) -> Finding:
    """Return what to do about a real token that would go to a sandbox. Pure."""
    text = f"{name}: its token is one of Meta's, and GRAPH_BASE_URL is {url}"
    return Finding("fail", "sender", text, "unset GRAPH_BASE_URL; a sandbox takes any made-up word")


def of_graph(name: str, status: int, code: int | None) -> Finding:
    """Return what Graph's answer to a look at a number means. Pure.

    Args:
        name: of the sender.
        status: of the answer; 0 = none came.
        code: Graph's, where there is one.
    """
    what = "sender"
    if status == _GOOD:
        return Finding("ok", what, f"{name}: Graph knows the number and takes the token")
    if not status:
        remedy = "let this machine reach GRAPH_BASE_URL, directly or through a proxy"
        return Finding("fail", what, f"{name}: Graph does not answer", remedy)
    said = f"HTTP {status}" + (f", code {code}" if code is not None else "")
    if status == _TOKEN or code in _TOKEN_CODES:
        remedy = f"make a system user's token and store it: `drumbeat sender token {name}`"
        return Finding("fail", what, f"{name}: Graph refuses the token ({said})", remedy)
    remedy = "compare phone_number_id with WhatsApp Manager; the token needs "
    remedy += "whatsapp_business_messaging for it"
    return Finding("fail", what, f"{name}: Graph does not show the number ({said})", remedy)


# -- what is asked ----------------------------------------------------------------------------


def _file_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


async def _redis(given: Settings) -> list[Finding]:
    try:
        queue = await Queue.open(given)
        try:
            await queue.probe()
            found = [of_redis(await queue.server_info(shard)) for shard in range(queue.shards)]
        finally:
            await queue.close()
    except DrumbeatError as error:
        return [Finding("fail", "redis", str(error), "see REDIS_URL, and that the server is up")]
    # Shards of one server say the same.
    return list(dict.fromkeys(each for shard in found for each in shard))


async def _postgres(given: Settings) -> list[Finding]:
    try:
        missing = await migrate.apply(given, check=True)
        pool = await connect.open_postgres(given, size=2)
        try:
            archive, office = Archive(pool), Office(pool)
            version = await archive.server_version()
            if missing:
                return of_postgres(version, missing, [])
            found = of_postgres(version, [], await office.lacking())
            found.append(of_clock((Clock().now_ms() - await office.now_ms()) / 1000))
            found += await _senders(given, await archive.senders())
        finally:
            await pool.close()
    except DrumbeatError as error:
        remedy = "see DATABASE_URL, and that the server is up"
        return [Finding("fail", "postgres", str(error), remedy)]
    return found


async def _senders(given: Settings, rows: Iterable[SenderRow]) -> list[Finding]:
    out = []
    for row in rows:
        if row.state == "paused":
            text = f"{row.name} is paused: {row.why or 'nobody said why'}"
            out.append(Finding("note", "sender", text, f"`drumbeat sender resume {row.name}`"))
        try:
            token = Sealing(given.bulk_secret_key).open(row.token_sealed)
        except SealError as error:
            remedy = f"give the key back, or store the token: `drumbeat sender token {row.name}`"
            out.append(Finding("fail", "sender", f"{row.name}: {error}", remedy))
            continue
        if given.is_sandbox and is_of_meta(token):
            out.append(of_real_token(row.name, given.graph_base_url))
            continue
        version = row.graph_api_version or given.graph_api_version
        path = f"/{version}/{row.phone_number_id}?fields=id"
        out.append(of_graph(row.name, *await asyncio.to_thread(look, given, path, token)))
    remedy = "`drumbeat sender add NAME --phone-number-id …`, or set WHATSAPP_*"
    return out or [Finding("fail", "sender", "there is none", remedy)]


def look(given: Settings, path: str, token: str) -> tuple[int, int | None]:
    """Return Graph's status and code; 0 when nothing came. Redirects are not followed."""
    path = urlsplit(given.graph_base_url).path + path
    try:
        connection = connection_to(given.graph_base_url, _GRAPH_S)
        status, body = ask(connection, path, {"Authorization": f"Bearer {token}"})
    except (OSError, http.client.HTTPException):
        return 0, None
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return status, code if isinstance(code, int) else None
