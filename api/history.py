"""What became of one person's messages, over all jobs that the asker may see."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from api import auth, wire
from api.audit import note
from api.auth import principal
from api.cursors import cursor_of, number_of
from api.owned import answer, limit_of
from api.recipients import recipient_of
from api.resources import resources
from api.roster import Person
from api.router import Route, query_of
from api.wire import refuse
from shared.phone import e164, mark
from shared.results import HistoryRow


class HistoryItem(
    msgspec.Struct, frozen=True, rename={"job_id": "jobId", "campaign_id": "campaignId"}
):
    """One message that came to an outcome; fields as in a job's recipients.

    Attributes:
        at: when it came to the outcome.
    """

    job_id: str
    campaign_id: str | None
    kind: str
    template: str | None
    sender: str
    position: int
    to: str
    outcome: str | None
    reason: str | None
    code: int | None
    error: str | None
    attempts: int
    wamid: str | None
    at: str | None
    receipt: str | None
    receipt_at: str | None


class HistoryList(msgspec.Struct, frozen=True):
    """A page of a person's messages, newest job first."""

    data: list[HistoryItem]
    has_more: bool
    next_cursor: str | None


def phone_of(text: str) -> int:
    """Return the number that a query names; its `+` may have been decoded as a space.

    Raises:
        InvalidError: not E.164.
    """
    phone = e164(f"+{text.removeprefix(' ').removeprefix('+')}")
    if not phone:
        refuse("", "to is a number such as %2B15550000001", "bad_filter")
    return phone


def item_of(row: HistoryRow, phone: int) -> HistoryItem:
    """Return a row of the answer."""
    shown = recipient_of(row.result, Person(phone, None, None, -1))
    return HistoryItem(
        job_id=row.job_id,
        campaign_id=row.campaign_id,
        kind=row.kind,
        template=row.template_name,
        sender=row.sender,
        position=shown.position,
        to=shown.to,
        outcome=shown.outcome,
        reason=shown.reason,
        code=shown.code,
        error=shown.error,
        attempts=shown.attempts,
        wamid=shown.wamid,
        at=wire.time_text(row.result.at_ms),
        receipt=shown.receipt,
        receipt_at=shown.receipt_at,
    )


async def list_history(request: web.Request) -> web.Response:
    """GET /api/bulk/recipients?to=: outcomes so far; who waits in a job is in that job's table."""
    made, asker = resources(request), principal(request)
    query = query_of(request, "to", "limit", "cursor")
    limit, phone = limit_of(query), phone_of(query.get("to", ""))
    scope = wire.canonical([asker.user_id, "history", phone])
    before = number_of(query["cursor"], scope, made.secret) if "cursor" in query else 0
    await note(request, made, asker, "recipient.read", mark(phone, made.secret), "ok")
    rows = await made.results.history(phone, asker.owner, before, limit + 1)
    has_more, rows = len(rows) > limit, rows[:limit]
    cursor = cursor_of(rows[-1].job_number, scope, made.secret) if has_more else None
    return answer(HistoryList([item_of(row, phone) for row in rows], has_more, cursor))


ROUTES: Final = (Route("GET", "/api/bulk/recipients", list_history, auth.READ, "jobs"),)
