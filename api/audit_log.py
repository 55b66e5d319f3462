"""GET /api/audit: who did what to which object, newest first."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from api import wire
from api.auth import ADMIN
from api.bodies import answer
from api.lists import page_of
from api.papers import AuditEntry, AuditList
from api.resources import resources
from api.router import Route, query_of
from api.times import moment_of
from api.views import reason_told
from api.wire import refuse
from shared.office import AuditFilter, AuditRow

_WORD_MAX: Final = 64


def _shown(row: AuditRow) -> AuditEntry:
    return AuditEntry(
        at=wire.time_text(row.at_ms) or "",
        actor=row.actor,
        action=row.action,
        object=row.object,
        address=row.address or None,
        result=row.result,
        reason=reason_told(row),
        request_id=row.request_id or None,
    )


async def list_audit(request: web.Request) -> web.Response:
    """List the audit log, newest first, narrowed by actor, action, object and time."""
    made = resources(request)
    query = query_of(request, "limit", "cursor", "actor", "action", "object", "from", "to")
    for name in ("actor", "action", "object"):
        if not 0 < len(query.get(name, "x")) <= _WORD_MAX or "\0" in query.get(name, ""):
            refuse("", f"{name} is 1 to {_WORD_MAX} characters", "bad_filter")
    what = AuditFilter(
        query.get("actor"),
        query.get("action"),
        query.get("object"),
        moment_of(query.get("from"), "", None),
        moment_of(query.get("to"), "", None),
    )

    async def fetch(before: int, limit: int) -> list[AuditRow]:
        return await made.office.audit(what, before, limit)

    rows, has_more, cursor = await page_of(request, query, what, fetch)
    return answer(AuditList([_shown(row) for row in rows], has_more, cursor))


ROUTES: Final = (Route("GET", "/api/audit", list_audit, ADMIN),)
