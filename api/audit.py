"""Who did what to which object, written before and after."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from aiohttp import web

from api.auth import Principal
from api.guard import address_of
from api.resources import Resources, resources
from api.router import REQUEST_ID
from shared import logs
from shared.errors import ArchiveError
from shared.office import Act

_log: Final = logs.get("api.audit")


def act_of(
    request: web.Request, asker: Principal, action: str, object_id: str, reason: str = ""
) -> Act:
    """Return an act of this request, for the transaction that carries it out."""
    made = resources(request)
    return Act(
        asker.user_id,
        action,
        object_id,
        reason,
        request[REQUEST_ID],
        address_mark(address_of(request, made.settings), made.secret),
    )


def line_of(act: Act) -> tuple[str, ...]:
    """Return an act that went well as the columns of the audit log."""
    return (act.actor, act.action, act.object, "ok", act.reason, act.request_id, act.address)


def address_mark(address: str, secret: bytes) -> str:
    """Return a client's address as a keyed hash, the same for the same address."""
    return f"a_{hmac.new(secret, address.encode(), hashlib.sha256).hexdigest()[:8]}"


async def note(
    request: web.Request,
    made: Resources,
    asker: Principal,
    action: str,
    object_id: str,
    result: str,
    reason: str = "",
) -> None:
    """Write to the audit log; the address as a keyed hash."""
    mark = address_mark(address_of(request, made.settings), made.secret)
    await made.archive.audit(
        asker.user_id,
        action,
        object_id,
        result,
        reason=reason,
        request_id=request[REQUEST_ID],
        address=mark,
    )


async def note_done(
    request: web.Request,
    made: Resources,
    asker: Principal,
    action: str,
    object_id: str,
    result: str,
    reason: str = "",
) -> None:
    """Write what has happened; a note that is lost must not make the answer say it has not."""
    try:
        await note(request, made, asker, action, object_id, result, reason)
    except ArchiveError as error:
        _log.warning("audit.lost", action=action, object=object_id, error=str(error))
