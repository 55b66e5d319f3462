"""Figures for the admin: the whole pool at one moment, from both stores, as far as they answer."""

from __future__ import annotations

import asyncio
import math
from typing import Final

from aiohttp import web

from api import wire
from api.resources import Resources, resources
from api.router import query_of
from shared.archive import SenderRow
from shared.errors import ArchiveError, QueueError
from shared.models import SenderStatus, ServerInfo, ShardStats

_MINUTE_MS: Final = 60_000
_HOUR: Final = 60
_OUTCOMES: Final = ("sent", "failed", "skipped", "cancelled", "unknown")
_STATES: Final = ("scheduled", "queued", "running", "paused", "cancelling")
_REDIS_S: Final = 2.0
# Counts by minute are kept for 25 h; `today` is the UTC day, at most 24 h of them.
_DAY: Final = 1440


async def show(request: web.Request) -> web.Response:
    """GET /api/bulk/stats."""
    query_of(request)
    body = await collect(resources(request))
    return web.Response(body=wire.encode(body), content_type="application/json")


async def collect(made: Resources) -> wire.Stats:
    """Return the figures; a store that does not answer is `up: false` and its figures are 0."""
    now_ms = made.clock.now_ms()
    minute = now_ms // _MINUTE_MS
    minutes = [minute - back for back in range(max(_HOUR, minute % _DAY) + 1)]
    shards, info, streams = await _redis(made, minutes)
    rows, jobs, version = await _postgres(made)
    today = minute % _DAY + 1
    outcomes = {
        name: sum(m.get(name, 0) for shard in shards for m in shard.minutes[:today])
        for name in _OUTCOMES
    }
    senders = {status.id: status for shard in shards for status in shard.senders}
    workers = sum(len(shard.workers) for shard in shards)
    slots = sum(shard.slots for shard in shards)
    backlog = sum(status.backlog for status in senders.values())
    counts = _phases(shards, backlog)
    demand = _demand(made, senders)
    busy, size = made.archive.pool_sizes()
    return wire.Stats(
        at=wire.time_text(now_ms) or "",
        jobs={state: jobs.get(state, 0) for state in _STATES}
        | {"queued": jobs.get("queued", 0) + jobs.get("accepted", 0)},
        messages=wire.Messages(
            last_minute=_sent(shards, 1, 2),
            last_hour=_sent(shards, 0, _HOUR),
            today=outcomes["sent"],
        ),
        outcomes_today=outcomes,
        backlog=counts,
        demand=wire.Demand(
            messages_per_second=round(demand, 1),
            wanted_workers=math.ceil(demand / made.settings.worker_rate) if demand else 0,
            workers=workers,
            slots=slots,
            busy_slots=sum(status.outstanding for status in senders.values()),
        ),
        streams=wire.Streams(*streams),
        senders=[_sender(row, senders.get(row.id), made) for row in rows],
        redis=wire.RedisFigures(
            up=info is not None,
            version=info.version if info else "",
            used_bytes=info.used_bytes if info else 0,
            max_bytes=info.max_bytes if info else 0,
            aof=info.is_aof if info else False,
            policy=info.policy if info else "",
        ),
        postgres=wire.PostgresFigures(
            up=bool(version), version=version, pool_busy=busy, pool_size=size
        ),
        archive_lag_s=round(max((s.outcomes_age_ms for s in shards), default=0) / 1000, 1),
        webhook_lag_s=0.0,
        disabled=made.settings.disable_bulk_messaging or any(s.is_off for s in shards),
        sandbox=made.settings.is_sandbox,
    )


async def _redis(
    made: Resources, minutes: list[int]
) -> tuple[list[ShardStats], ServerInfo | None, tuple[int, int, int]]:
    try:
        async with asyncio.timeout(_REDIS_S):
            shards = [await made.queue.stats(n, minutes) for n in range(made.queue.shards)]
            return shards, await made.queue.server_info(), await made.hub.totals()
    except (QueueError, TimeoutError):
        return [], None, (made.hub.connections, made.hub.users, 0)


async def _postgres(made: Resources) -> tuple[list[SenderRow], dict[str, int], str]:
    try:
        rows = await made.archive.senders()
        jobs = await made.archive.counts_by_state()
        return rows, jobs, await made.archive.server_version()
    except ArchiveError:
        return [], {}, ""


def _sent(shards: list[ShardStats], first: int, last: int) -> int:
    return sum(m.get("sent", 0) for shard in shards for m in shard.minutes[first:last])


def _phases(shards: list[ShardStats], backlog: int) -> wire.Backlog:
    """Return the backlog by phase; what nobody has begun or put off is queued."""
    in_flight = sum(getattr(shard, "in_flight", 0) for shard in shards)
    retrying = sum(getattr(shard, "retrying", 0) for shard in shards)
    return wire.Backlog(max(0, backlog - in_flight - retrying), in_flight, retrying)


def _demand(made: Resources, senders: dict[str, SenderStatus]) -> float:
    """Return the rate that drains the backlog in TARGET_DRAIN_S, no faster than senders may."""
    total = 0.0
    for status in senders.values():
        if not status.backlog or status.paused:
            continue
        wanted = status.backlog / made.settings.target_drain_s
        total += min(wanted, status.rate_max) if status.rate_max else wanted
    return total


def _sender(row: SenderRow, status: SenderStatus | None, made: Resources) -> wire.SenderFigures:
    rate = made.settings.default_rate if row.rate is None else row.rate
    return wire.SenderFigures(
        name=row.name,
        rate=rate,
        rate_now=status.rate if status is not None and status.known else rate,
        state=row.state,
        jobs=status.jobs if status is not None else 0,
    )
