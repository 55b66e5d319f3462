"""The table of a job's recipients: filter and page. Its files are `api.exports`."""

from __future__ import annotations

import asyncio
import re
from typing import Final

import msgspec
from aiohttp import web

from api import auth, wire
from api.auth import principal
from api.cursors import cursor_of, number_of
from api.owned import answer, id_of, limit_of, note_foreign, visible
from api.resources import resources
from api.roster import Person, Roster
from api.router import Route, query_of
from api.wire import refuse
from shared.archive import unpack_blob
from shared.errors import NotFoundError
from shared.graph_codes import FIRST_REASON, row_of
from shared.models import Reason
from shared.results import RECEIPTS, RecipientFilter, ResultRow, Snapshot

OUTCOMES: Final = ("pending", "sent", "failed", "skipped", "cancelled", "unknown")
FILTERS: Final = ("outcome", "receipt", "code", "q")
# Positions a statement looks at: some milliseconds for PostgreSQL and for the loop.
WINDOW: Final = 1000
CODES_MAX: Final = 20
_Q_MAX: Final = 200
_CODE: Final = re.compile(r"\A[0-9]{1,9}\Z")
_REASONS: Final = {int(reason): reason.name.lower() for reason in Reason}
_REFUSED: Final = 400


class Recipient(msgspec.Struct, frozen=True):
    """One recipient of a job and what he came to.

    Attributes:
        to: '' once the number was erased.
        outcome: None = nothing yet.
        reason: `graph`, or our own word; None with `sent` and without an outcome.
        code: Graph's.
        error: Graph's sentence, else the meaning of the code.
        sent_at, receipt_at: RFC 3339.
        receipt: `held`, `failed`, `delivered` or `read`.
    """

    position: int
    to: str
    ref: str | None
    outcome: str | None
    reason: str | None
    code: int | None
    error: str | None
    attempts: int
    wamid: str | None
    sent_at: str | None
    receipt: str | None
    receipt_at: str | None


class RecipientList(msgspec.Struct, frozen=True):
    """A page of recipients, by position, as of one moment."""

    data: list[Recipient]
    has_more: bool
    next_cursor: str | None
    as_of: str


def recipient_of(row: ResultRow, person: Person) -> Recipient:
    """Return a row of the table."""
    reason = None
    if row.reason:
        reason = "graph" if row.reason >= FIRST_REASON else _REASONS.get(row.reason, "other")
    error = row.error
    if error is None and row.code is not None:
        error = row_of(row.code, _REFUSED).meaning
    return Recipient(
        position=row.position,
        to=f"+{person.phone}" if person.phone else "",
        ref=person.ref,
        outcome=row.outcome,
        reason=reason,
        code=row.code,
        error=error,
        attempts=row.attempts,
        wamid=row.wamid,
        sent_at=wire.time_text(row.at_ms) if row.outcome == "sent" else None,
        receipt=RECEIPTS[row.receipt] if row.receipt else None,
        receipt_at=wire.time_text(row.receipt_at_ms),
    )


def filter_of(query: dict[str, str], at: str = "") -> RecipientFilter:
    """Return what a query, or the object at a JSON pointer, narrows a table by; `q` excepted.

    Raises:
        InvalidError: `bad_filter`.
    """
    receipts = _words(query, "receipt", RECEIPTS, at)
    codes = query["code"].split(",") if "code" in query else None
    if codes is not None and (len(codes) > CODES_MAX or not all(map(_CODE.match, codes))):
        refuse(
            at and f"{at}/code",
            f"code takes a comma list of at most {CODES_MAX} numbers",
            "bad_filter",
        )
    text = query.get("q", "")
    if len(text) > _Q_MAX or "\0" in text:
        refuse("", f"q is at most {_Q_MAX} characters", "bad_filter")
    return RecipientFilter(
        outcomes=_words(query, "outcome", OUTCOMES, at),
        receipts=None if receipts is None else [RECEIPTS.index(word) for word in receipts],
        codes=None if codes is None else [int(code) for code in codes],
    )


def _words(query: dict[str, str], name: str, offered: tuple[str, ...], at: str) -> list[str] | None:
    if name not in query:
        return None
    words = query[name].split(",")
    if len(words) > len(offered) or not set(words) <= set(offered):
        refuse(
            at and f"{at}/{name}",
            f"{name} takes a comma list of {', '.join(offered)}",
            "bad_filter",
        )
    return words


async def narrowed(
    snapshot: Snapshot, what: RecipientFilter, q: str
) -> tuple[Roster, RecipientFilter]:
    """Return the job's people, and the filter with what `q` finds among them."""
    chunks = await asyncio.to_thread(unpack_blob, snapshot.blob)
    roster = Roster(chunks, snapshot.chunk_size)
    if q:
        found = await asyncio.to_thread(roster.matching, q)
        what = msgspec.structs.replace(what, positions=found)
    return roster, what


async def _page(
    snapshot: Snapshot, what: RecipientFilter, first: int, most: int
) -> list[ResultRow]:
    """Return the first `most` rows from position `first` on that the filter lets through."""
    rows: list[ResultRow] = []
    width = most if what == RecipientFilter() else WINDOW
    while first < snapshot.recipients and len(rows) < most:
        last = min(first + width, snapshot.recipients) - 1
        rows += await snapshot.window(first, last, what, most - len(rows))
        first = last + 1
    return rows


async def list_recipients(request: web.Request) -> web.Response:
    """GET /api/bulk/jobs/{jobId}/recipients: by position, as of one moment."""
    made, asker = resources(request), principal(request)
    job_id = id_of(request, made)
    query = query_of(request, *FILTERS, "limit", "cursor")
    limit, what, q = limit_of(query), filter_of(query), query.get("q", "").strip()
    scope = wire.canonical([asker.user_id, job_id, what, q])
    first = number_of(query["cursor"], scope, made.secret) if "cursor" in query else 0
    await note_foreign(request, made, asker, await visible(made, asker, job_id))
    async with made.results.snapshot(job_id, asker.owner) as snapshot:
        if snapshot is None:
            raise NotFoundError
        roster, what = await narrowed(snapshot, what, q)
        rows = await _page(snapshot, what, first, limit + 1)
    has_more, rows = len(rows) > limit, rows[:limit]
    cursor = cursor_of(rows[-1].position + 1, scope, made.secret) if has_more else None
    data = [recipient_of(row, roster.at(row.position)) for row in rows]
    as_of = wire.time_text(snapshot.as_of_ms) or ""
    return answer(RecipientList(data, has_more, cursor, as_of))


ROUTES: Final = (
    Route("GET", "/api/bulk/jobs/{job_id}/recipients", list_recipients, auth.READ, "jobs"),
)
