"""Figures for the admin: the whole pool at one moment, from both stores, as far as they answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
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
STATES: Final = ("scheduled", "queued", "running", "paused", "cancelling")
# Recipients in flight are read of so many jobs at most, those that run first.
ACTIVE_MAX: Final = 2000
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
    rows, jobs, active, version = await _postgres(made)
    in_flight, retrying = await _phases(made, active) if shards else (0, 0)
    late_ms = await _webhook_lag_ms(made) if shards else 0
    today = minute % _DAY + 1
    outcomes = {
        name: sum(m.get(name, 0) for shard in shards for m in shard.minutes[:today])
        for name in _OUTCOMES
    }
    senders = {status.id: status for shard in shards for status in shard.senders}
    workers = alive(shards, made.settings.worker_lease_ms)
    slots = sum(shard.slots for shard in shards)
    backlog = sum(status.backlog for status in senders.values())
    demand = demand_of(senders.values(), made.settings.target_drain_s)
    busy, size = made.archive.pool_sizes()
    return wire.Stats(
        at=wire.time_text(now_ms) or "",
        jobs={state: jobs.get(state, 0) for state in STATES}
        | {"queued": jobs.get("queued", 0) + jobs.get("accepted", 0)},
        messages=wire.Messages(
            last_minute=_sent(shards, 1, 2),
            last_hour=_sent(shards, 0, _HOUR),
            today=outcomes["sent"],
        ),
        outcomes_today=outcomes,
        # What nobody has begun or put off is queued.
        backlog=wire.Backlog(max(0, backlog - in_flight - retrying), in_flight, retrying),
        demand=wire.Demand(
            messages_per_second=round(demand, 1),
            wanted_workers=wanted_of(demand, backlog, made.settings.worker_rate),
            workers=len(workers),
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
        webhook_lag_s=round(late_ms / 1000, 1),
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


async def _postgres(
    made: Resources,
) -> tuple[list[SenderRow], dict[str, int], list[str], str]:
    try:
        rows = await made.archive.senders()
        jobs = await made.archive.counts_by_state()
        active = await made.archive.active_jobs(ACTIVE_MAX)
        return rows, jobs, active, await made.archive.server_version()
    except ArchiveError:
        return [], {}, [], ""


async def _webhook_lag_ms(made: Resources) -> int:
    try:
        async with asyncio.timeout(_REDIS_S):
            return await made.inbox.age_ms()
    except (QueueError, TimeoutError):
        return 0


async def _phases(made: Resources, active: list[str]) -> tuple[int, int]:
    try:
        async with asyncio.timeout(_REDIS_S):
            return await made.queue.phases(active)
    except (QueueError, TimeoutError):
        return 0, 0


def _sent(shards: list[ShardStats], first: int, last: int) -> int:
    return sum(m.get("sent", 0) for shard in shards for m in shard.minutes[first:last])


def alive(shards: Iterable[ShardStats], lease_ms: int) -> frozenset[str]:
    """Return the workers whose lease runs; each ticks on every shard, and the last to die stays."""
    ages = [item for shard in shards for item in shard.workers.items()]
    return frozenset(name for name, age_ms in ages if age_ms <= lease_ms)


def demand_of(senders: Iterable[SenderStatus], drain_s: float) -> float:
    """Return the messages per second that drain the backlog in `drain_s`, as far as senders may.

    >>> demand_of([SenderStatus("a", rate_max=5.0, backlog=600), SenderStatus("b", backlog=6)], 60)
    5.1
    """
    total = 0.0
    for status in senders:
        if not status.backlog or status.paused:
            continue
        wanted = status.backlog / drain_s
        total += min(wanted, status.rate_max) if status.rate_max else wanted
    return total


def wanted_of(demand: float, backlog: int, worker_rate: float) -> int:
    """Return how many workers the demand needs; one at least while anybody waits.

    >>> [wanted_of(1001, 9, 500), wanted_of(0, 9, 500), wanted_of(0, 0, 500)]
    [3, 1, 0]
    """
    return max(math.ceil(demand / worker_rate), 1 if backlog else 0)


def _sender(row: SenderRow, status: SenderStatus | None, made: Resources) -> wire.SenderFigures:
    rate = made.settings.default_rate if row.rate is None else row.rate
    return wire.SenderFigures(
        name=row.name,
        rate=rate,
        rate_now=status.rate if status is not None and status.known else rate,
        state=row.state,
        jobs=status.jobs if status is not None else 0,
    )
