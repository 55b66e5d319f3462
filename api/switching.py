"""POST /api/bulk/disable and enable: everybody's sending stops, and goes on. Lasts until enable."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from api import wire
from api.audit import act_of
from api.auth import ADMIN, principal
from api.bodies import answer, reason_of
from api.idempotency import key_of
from api.papers import Switched
from api.resources import Resources, resources
from api.router import Route, query_of
from shared import logs
from shared.errors import QueueError
from shared.office import SwitchRow

EVERYBODY: Final = "pool"
_VARIABLE: Final = "DISABLE_BULK_MESSAGING"
_ASK_S: Final = 2.0
_log: Final = logs.get("api.switch")


async def disable(request: web.Request) -> web.Response:
    """Stop the whole pool; nothing is lost, and it lasts across restarts."""
    return await _switch(request, is_off=True)


async def enable(request: web.Request) -> web.Response:
    """Let the pool go on, unless a process's own variable holds it."""
    return await _switch(request, is_off=False)


async def _switch(request: web.Request, *, is_off: bool) -> web.Response:
    made, asker = resources(request), principal(request)
    key_of(request)
    query_of(request)
    reason = await reason_of(request)
    act = act_of(request, asker, "bulk.disable" if is_off else "bulk.enable", EVERYBODY, reason)
    row = await made.office.set_switch(act, is_off=is_off)
    _log.warning("switch.off" if is_off else "switch.on", userId=asker.user_id)
    await _mark(made, is_off=is_off)
    made.switch.forget()
    return answer(switched(row, is_held=await made.switch.is_off()))


async def _mark(made: Resources, *, is_off: bool) -> None:
    """Tell every shard now; one that does not hear is told by the next worker that looks."""
    for shard in range(made.queue.shards):
        try:
            async with asyncio.timeout(_ASK_S):
                await made.queue.switch(shard, "", int(is_off))
        except (QueueError, TimeoutError):
            _log.warning("switch.not_written", shard=shard)


def switched(row: SwitchRow, *, is_held: bool) -> Switched:
    """Return how the switch stands: by somebody's act, or held by a process's variable. Pure.

    Args:
        row: as PostgreSQL has it.
        is_held: whether the pool is off now, whoever did it.
    """
    if row.is_off:
        return Switched(
            disabled=True,
            reason=row.reason or None,
            by=row.by_whom,
            since=wire.time_text(row.since_ms),
        )
    return Switched(disabled=is_held, reason=None, by=_VARIABLE if is_held else None, since=None)


ROUTES: Final = (
    Route("POST", "/api/bulk/disable", disable, ADMIN, "control",
          has_body=True, is_body_optional=True),
    Route("POST", "/api/bulk/enable", enable, ADMIN, "control",
          has_body=True, is_body_optional=True),
)  # fmt: skip
