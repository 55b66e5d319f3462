"""Senders: everybody sees names and rates; admins add, change, pause and resume them.

A token goes in and never comes out. Workers read the rows every second, so a new rate, token or
pause needs no restart.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from msgspec import UNSET, UnsetType, structs

from api import wire
from api.audit import act_of
from api.auth import ADMIN, READ, principal
from api.bodies import answer, reason_of, small_body
from api.idempotency import key_of
from api.lists import page_of
from api.papers import AccessTokenShown, NewSender, Sender, SenderList, SenderPatch
from api.resources import Resources, resources
from api.router import Route, query_of
from api.wire import refuse
from shared.archive import SenderRow
from shared.errors import NotFoundError, QueueError, SealError
from shared.ids import is_object_id
from shared.models import SenderStatus
from shared.office import ListedSender
from shared.phone import mask, regions
from shared.sealing import Sealing
from shared.settings import Settings

BURST_S: Final = 0.25  # of the rate, where nobody has said
_ASK_S: Final = 2.0
_LAST: Final = 4


def burst_of(rate: float, burst: float | None) -> float:
    """Return how many messages may leave at once; a quarter of a second of the rate by default.

    >>> burst_of(50, None), burst_of(0, None), burst_of(50, 3)
    (12.5, 1.0, 3)
    """
    return max(1.0, BURST_S * rate) if burst is None else burst


def check_limits(rate: float | None, burst: float | None, usual: float) -> None:
    """Refuse a burst above a second of the rate. Pure.

    Args:
        rate: messages per second; None = `usual`, 0 = no limit.
        burst: messages; None = the default.
        usual: rate of senders without their own.

    Raises:
        InvalidError: at `/burst`.
    """
    most = usual if rate is None else rate
    if burst is not None and most and burst > max(1.0, most):
        refuse("/burst", "at most what the rate sends in a second, and at least 1")


def check_regions(names: list[str]) -> list[str]:
    """Return regions in order, each once.

    Raises:
        InvalidError: one that no number can be in, with its place.
    """
    known = regions()
    for place, name in enumerate(names):
        if name not in known:
            refuse(f"/allowed_regions/{place}", "not an ISO 3166 region such as DE")
    return sorted(set(names))


def shown(
    listed: ListedSender,
    status: SenderStatus | None,
    settings: Settings,
    token: AccessTokenShown | UnsetType,
) -> Sender:
    """Return a sender as it is shown. Pure.

    Args:
        listed: as PostgreSQL has it.
        status: as Redis has it; None: nobody can say.
        settings: for senders without their own rate and version.
        token: as much as an admin may see.
    """
    row = listed.row
    rate = settings.default_rate if row.rate is None else row.rate
    is_known = status is not None and status.known
    return Sender(
        id=row.id,
        name=row.name,
        number=mask(row.number) if row.number else None,
        phone_number_id=row.phone_number_id,
        waba_id=row.waba_id,
        graph_api_version=row.graph_api_version or settings.graph_api_version,
        state=row.state,
        why=row.why or None,
        until=wire.time_text(row.until_ms),
        rate=rate,
        rate_now=round(status.rate, 3) if status is not None and is_known else rate,
        burst=burst_of(rate, row.burst),
        allowed_regions=row.allowed_regions,
        default=row.is_default,
        jobs=status.jobs if status is not None and is_known else 0,
        access_token=token,
    )


def token_of(listed: ListedSender, sealing: Sealing) -> AccessTokenShown:
    """Return as much of a sender's token as is ever told: its last four characters."""
    try:
        last4 = sealing.open(listed.row.token_sealed)[-_LAST:]
    except SealError:
        last4 = None
    return AccessTokenShown(set=True, last4=last4, set_at=wire.time_text(listed.token_set_ms))


async def _status_of(made: Resources, row: SenderRow) -> SenderStatus | None:
    """Return what Redis knows of a sender; None while it is away."""
    try:
        async with asyncio.timeout(_ASK_S):
            return await made.queue.sender_status(row.shard, row.id)
    except (QueueError, TimeoutError):
        return None


async def _shown(request: web.Request, listed: ListedSender) -> Sender:
    made, asker = resources(request), principal(request)
    sealing = Sealing(made.settings.bulk_secret_key)
    token = token_of(listed, sealing) if asker.is_admin else UNSET
    return shown(listed, await _status_of(made, listed.row), made.settings, token)


async def list_senders(request: web.Request) -> web.Response:
    """List all senders, newest first; their tokens are never among it."""
    query = query_of(request, "limit", "cursor")
    rows, has_more, cursor = await page_of(request, query, "", resources(request).office.senders)
    data = [await _shown(request, row) for row in rows]
    return answer(SenderList(data, has_more, cursor))


async def show(request: web.Request) -> web.Response:
    """Show one sender."""
    sender_id = _id_of(request)
    query_of(request)
    return await _answer(request, sender_id)


async def add(request: web.Request) -> web.Response:
    """Add a sender on the emptiest shard; the first one is the default in any case."""
    made, asker = resources(request), principal(request)
    key_of(request)
    query_of(request)
    body = await small_body(request, NewSender)
    check_limits(body.rate, body.burst, made.settings.default_rate)
    sealing = Sealing(made.settings.bulk_secret_key)
    row = row_of(body, made.ids.object_id("snd"), sealing)
    await made.office.add_sender(
        act_of(request, asker, "sender.add", row.id), row, made.queue.shards
    )
    return await _answer(request, row.id, 201)


async def change(request: web.Request) -> web.Response:
    """Change a sender; running jobs go on with what is new within two seconds."""
    made, asker = resources(request), principal(request)
    sender_id = _id_of(request)
    query_of(request)
    body = await small_body(request, SenderPatch)
    changes = changes_of(body, Sealing(made.settings.bulk_secret_key))
    before = (await made.office.sender(sender_id)).row
    after = structs.replace(before, **changes)
    check_limits(after.rate, after.burst, made.settings.default_rate)
    if before.is_default and not after.is_default:
        refuse("/default", "name another default instead")
    action = "sender.token" if list(changes) == ["token_sealed"] else "sender.change"
    await made.office.change_sender(act_of(request, asker, action, sender_id), sender_id, changes)
    return await _answer(request, sender_id)


def row_of(body: NewSender, sender_id: str, sealing: Sealing) -> SenderRow:
    """Return a new sender's row, the token sealed; its shard is nobody's choice yet.

    Raises:
        InvalidError: a region that there is not.
    """
    return SenderRow(
        id=sender_id,
        name=body.name,
        phone_number_id=body.phone_number_id,
        token_sealed=sealing.seal(body.access_token),
        number=body.number or "",
        waba_id=body.waba_id,
        graph_api_version=body.graph_api_version,
        rate=body.rate,
        burst=body.burst,
        is_default=body.default,
        allowed_regions=check_regions(body.allowed_regions),
    )


def changes_of(body: SenderPatch, sealing: Sealing) -> dict[str, object]:
    """Return the fields of `SenderRow` that a patch sets, the token sealed.

    Raises:
        InvalidError: a region that there is not.
    """
    given = {
        name: getattr(body, name)
        for name in SenderPatch.__struct_fields__
        if getattr(body, name) is not UNSET
    }
    if "default" in given:
        given["is_default"] = given.pop("default")
    if "access_token" in given:
        given["token_sealed"] = sealing.seal(given.pop("access_token"))
    if "number" in given:
        given["number"] = given["number"] or ""
    if "allowed_regions" in given:
        given["allowed_regions"] = check_regions(given["allowed_regions"])
    return given


async def pause(request: web.Request) -> web.Response:
    """Pause a sender until somebody resumes it; its jobs wait and say so."""
    return await _set_state(request, "paused")


async def resume(request: web.Request) -> web.Response:
    """Let a paused or blocked sender go on."""
    return await _set_state(request, "active")


async def _set_state(request: web.Request, state: str) -> web.Response:
    made, asker = resources(request), principal(request)
    sender_id = _id_of(request)
    key_of(request)
    query_of(request)
    reason = await reason_of(request)
    word = "sender.pause" if state == "paused" else "sender.resume"
    why = (reason or "operator") if state == "paused" else ""
    act = act_of(request, asker, word, sender_id, reason)
    await made.office.set_sender_state(act, sender_id, state, why)
    return await _answer(request, sender_id)


def _id_of(request: web.Request) -> str:
    sender_id = request.match_info["sender_id"]
    if not is_object_id(sender_id):
        raise NotFoundError
    return sender_id


async def _answer(request: web.Request, sender_id: str, status: int = 200) -> web.Response:
    listed = await resources(request).office.sender(sender_id)
    headers = {"Location": f"/api/senders/{sender_id}"} if status == 201 else None  # noqa: PLR2004 - created
    return answer(await _shown(request, listed), status, headers)


ROUTES: Final = (
    Route("GET", "/api/senders", list_senders, READ),
    Route("POST", "/api/senders", add, ADMIN, has_body=True),
    Route("GET", "/api/senders/{sender_id}", show, READ),
    Route("PATCH", "/api/senders/{sender_id}", change, ADMIN, has_body=True),
    Route("POST", "/api/senders/{sender_id}/pause", pause, ADMIN,
          has_body=True, is_body_optional=True),
    Route("POST", "/api/senders/{sender_id}/resume", resume, ADMIN,
          has_body=True, is_body_optional=True),
)  # fmt: skip
