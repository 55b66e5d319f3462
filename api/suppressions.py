"""Who is not written to: everybody who may send lists and adds, an admin lifts."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from api import wire
from api.audit import act_of
from api.auth import ADMIN, SEND, principal
from api.bodies import answer, small_body
from api.idempotency import key_of
from api.lists import page_of
from api.papers import NewSuppression, Suppression, SuppressionList
from api.resources import resources
from api.router import Route, query_of
from api.wire import refuse
from shared.errors import NotFoundError
from shared.ids import is_object_id
from shared.office import ListedSuppression
from shared.phone import e164, why_not

SCOPES: Final = ("all", "marketing")


def _shown(row: ListedSuppression) -> Suppression:
    return Suppression(
        row.id,
        f"+{row.phone}",
        row.scope,
        row.reason or None,
        row.source,
        row.created_by,
        wire.time_text(row.created_ms) or "",
    )


async def list_suppressions(request: web.Request) -> web.Response:
    """List the entries in force, newest first."""
    made = resources(request)
    query = query_of(request, "limit", "cursor", "scope")
    scope = query.get("scope")
    if scope is not None and scope not in SCOPES:
        refuse("", f"scope is one of {', '.join(SCOPES)}", "bad_filter")

    async def fetch(before: int, limit: int) -> list[ListedSuppression]:
        return await made.office.suppressions(scope, before, limit)

    rows, has_more, cursor = await page_of(request, query, scope, fetch)
    return answer(SuppressionList([_shown(row) for row in rows], has_more, cursor))


async def add(request: web.Request) -> web.Response:
    """Put a number on the list; running jobs skip it from two seconds later on."""
    made, asker = resources(request), principal(request)
    key_of(request)
    query_of(request)
    body = await small_body(request, NewSuppression)
    phone = e164(body.phone)
    if not phone:
        refuse("/phone", why_not(body.phone)[1])
    act = act_of(request, asker, "suppression.add", made.ids.object_id("sup"))
    row, is_new = await made.office.suppress(act, phone, body.scope, body.reason or "", "api")
    return answer(_shown(row), 201 if is_new else 200, {"Location": f"/api/suppressions/{row.id}"})


async def lift(request: web.Request) -> web.Response:
    """Take an entry off the list; the audit log keeps who did it."""
    made, asker = resources(request), principal(request)
    query_of(request)
    entry_id = request.match_info["suppression_id"]
    if not is_object_id(entry_id):
        raise NotFoundError
    await made.office.lift(act_of(request, asker, "suppression.lift", entry_id), entry_id)
    return web.Response(status=204)


ROUTES: Final = (
    Route("GET", "/api/suppressions", list_suppressions, SEND),
    Route("POST", "/api/suppressions", add, SEND, has_body=True),
    Route("DELETE", "/api/suppressions/{suppression_id}", lift, ADMIN),
)
