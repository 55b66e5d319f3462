"""Who did what to which object, written before and after."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from aiohttp import web

from api.auth import Principal
from api.guard import address_of
from api.resources import Resources
from api.router import REQUEST_ID
from shared import logs
from shared.errors import ArchiveError

_log: Final = logs.get("api.audit")


async def note(
    request: web.Request,
    made: Resources,
    asker: Principal,
    action: str,
    job_id: str,
    result: str,
    reason: str = "",
) -> None:
    """Write to the audit log; the address as a keyed hash."""
    secret = made.secret
    address = address_of(request, made.settings)
    mark = hmac.new(secret, address.encode(), hashlib.sha256).hexdigest()[:8]
    await made.archive.audit(
        asker.user_id,
        action,
        job_id,
        result,
        reason=reason,
        request_id=request[REQUEST_ID],
        address=f"a_{mark}",
    )


async def note_done(
    request: web.Request,
    made: Resources,
    asker: Principal,
    action: str,
    job_id: str,
    result: str,
    reason: str = "",
) -> None:
    """Write what has happened; a note that is lost must not make the answer say it has not."""
    try:
        await note(request, made, asker, action, job_id, result, reason)
    except ArchiveError as error:
        _log.warning("audit.lost", action=action, jobId=job_id, error=str(error))
