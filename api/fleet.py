"""The whole fleet's gauges and the scaler's figures, read at a scrape, at most once a second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from typing import Final, NamedTuple, TypeVar

from aiohttp import web
from prometheus_client import Gauge

from api import stats
from api.resources import Resources
from shared.archive import SenderRow
from shared.errors import ArchiveError, QueueError
from shared.metrics import SENDERS_MAX, ApiMetrics
from shared.models import SenderStatus, ServerInfo, ShardStats, Waiting

OLD_S: Final = 1.0
# A scrape waits no longer than this for either store; both are asked side by side.
ASK_S: Final = 2.0
SIZES_OLD_S: Final = 60.0
_NAN: Final = float("nan")
_T = TypeVar("_T")


class Shards(NamedTuple):
    """What Redis says: each shard's figures, its claims, and the server."""

    shards: list[ShardStats]
    waiting: list[Waiting]
    info: ServerInfo


class Rows(NamedTuple):
    """What PostgreSQL says: jobs by state, unknown recipients, senders, ids of active jobs."""

    jobs: dict[str, int]
    unknown: int
    senders: list[SenderRow]
    active: list[str]


class Fleet:
    """Fills the fleet's gauges from both stores; a store that is away empties its own.

    Args:
        made: doors, settings, gauges.
    """

    def __init__(self, made: Resources) -> None:
        """Read nothing yet."""
        self._made = made
        self._lock = asyncio.Lock()
        self._at = self._sizes_at = float("-inf")
        self._scale: dict[str, float] | None = None

    async def refresh(self) -> None:
        """Read and fill, unless that was less than a second ago; never raises, ≤ 3 s."""
        async with self._lock:
            clock = self._made.clock
            if clock.monotonic() - self._at < OLD_S:
                return
            # The probes set `redis_up` and `postgres_up`; nobody else may ask for readiness.
            redis, rows, sizes, hooks_ms, _ = await asyncio.gather(
                _within(self._redis()),
                _within(self._rows()),
                _within(self._sizes()),
                _within(self._made.inbox.age_ms()),
                self._made.ready.run(),
            )
            phases = await _within(self._phases(redis, rows))
            self._show(redis, rows, sizes, phases or (0, 0))
            age_s = _NAN if hooks_ms is None else hooks_ms / 1000
            self._made.metrics.inbox_age_seconds.set(age_s)
            self._at = clock.monotonic()

    async def scale(self) -> Mapping[str, float]:
        """Return the body of /scale: workers wanted and running, messages/s, recipients.

        Raises:
            HTTPServiceUnavailable: Redis is away; a scaler keeps what it has.
        """
        await self.refresh()
        if self._scale is None:
            raise web.HTTPServiceUnavailable
        return self._scale

    async def _redis(self) -> Shards:
        queue = self._made.queue
        shards = [await queue.stats(shard, []) for shard in range(queue.shards)]
        waiting = [await queue.waiting(shard) for shard in range(queue.shards)]
        return Shards(shards, waiting, await queue.server_info())

    async def _rows(self) -> Rows:
        archive = self._made.archive
        return Rows(
            await archive.counts_by_state(),
            await archive.unknown_open(),
            await archive.senders(),
            await archive.active_jobs(stats.ACTIVE_MAX),
        )

    async def _sizes(self) -> dict[str, int] | None:
        """Return bytes by table, once a minute: PostgreSQL asks the file system for them."""
        now = self._made.clock.monotonic()
        if now - self._sizes_at < SIZES_OLD_S:
            return None
        sizes = await self._made.archive.table_sizes()
        self._sizes_at = now
        return sizes

    async def _phases(self, redis: Shards | None, rows: Rows | None) -> tuple[int, int]:
        if redis is None or rows is None:
            return 0, 0
        return await self._made.queue.phases(rows.active)

    def _show(
        self,
        redis: Shards | None,
        rows: Rows | None,
        sizes: dict[str, int] | None,
        phases: tuple[int, int],
    ) -> None:
        metrics, settings = self._made.metrics, self._made.settings
        for name, size in (sizes or {}).items():
            metrics.postgres_table_bytes.labels(name).set(size)
        show_rows(metrics, rows)
        show_shards(metrics, redis, settings.worker_lease_ms)
        senders = [status for each in redis.shards for status in each.senders] if redis else []
        names = {row.id: row.name for row in rows.senders} if rows else {}
        show_senders(metrics, senders, names, self._made.clock.now_ms())
        if redis is None:
            self._scale = None
            _fill(metrics.backlog_messages, {})
            for gauge in (metrics.demand_messages_per_second, metrics.wanted_workers):
                gauge.set(_NAN)
            return
        backlog = sum(status.backlog for status in senders)
        queued = max(0, backlog - sum(phases))
        in_flight, retrying = phases
        _fill(
            metrics.backlog_messages,
            {"queued": queued, "in_flight": in_flight, "retrying": retrying},
        )
        demand = stats.demand_of(senders, settings.target_drain_s)
        wanted = stats.wanted_of(demand, backlog, settings.worker_rate)
        metrics.demand_messages_per_second.set(demand)
        metrics.wanted_workers.set(wanted)
        self._scale = {
            "wanted_workers": wanted,
            "demand_messages_per_second": round(demand, 1),
            "backlog": backlog,
            "workers": len(stats.alive(redis.shards, settings.worker_lease_ms)),
        }


async def _within(work: Awaitable[_T]) -> _T | None:
    try:
        async with asyncio.timeout(ASK_S):
            return await work
    except (QueueError, ArchiveError, TimeoutError):
        return None


def show_rows(metrics: ApiMetrics, rows: Rows | None) -> None:
    """Fill what PostgreSQL knows; nothing of it is shown while it is away."""
    if rows is None:
        _fill(metrics.jobs, {})
        metrics.unknown_open.set(_NAN)
        return
    counts = {state: rows.jobs.get(state, 0) for state in stats.STATES}
    counts["queued"] += rows.jobs.get("accepted", 0)  # as they are shown everywhere
    _fill(metrics.jobs, counts)
    metrics.unknown_open.set(rows.unknown)


def show_shards(metrics: ApiMetrics, redis: Shards | None, lease_ms: int) -> None:
    """Fill what Redis knows of streams, workers and itself; nothing of it while it is away."""
    if redis is None:
        for each in (metrics.stream_length, metrics.stream_pending, metrics.workers):
            _fill(each, {})
        for gauge in (
            metrics.ready_age_seconds,
            metrics.archive_lag_seconds,
            metrics.redis_memory_used_bytes,
            metrics.redis_memory_max_bytes,
            metrics.redis_persistence_ok,
        ):
            gauge.set(_NAN)
        return
    shards, waiting, info = redis
    _fill(
        metrics.stream_length,
        {
            "ready": sum(shard.ready for shard in shards),
            "outcomes": sum(shard.outcomes for shard in shards),
            "events": sum(shard.events for shard in shards),
        },
    )
    _fill(
        metrics.stream_pending,
        {
            "ready": sum(each.pending for each in waiting),
            "outcomes": sum(shard.outcomes_pending for shard in shards),
        },
    )
    names = stats.alive(shards, lease_ms)
    draining = {name for each in waiting for name in each.draining} & names
    _fill(metrics.workers, {"active": len(names - draining), "draining": len(draining)})
    metrics.ready_age_seconds.set(max((each.age_ms for each in waiting), default=0) / 1000)
    metrics.archive_lag_seconds.set(max((s.outcomes_age_ms for s in shards), default=0) / 1000)
    metrics.redis_memory_used_bytes.set(info.used_bytes)
    metrics.redis_memory_max_bytes.set(info.max_bytes)
    metrics.redis_persistence_ok.set(int(info.is_aof and info.is_persistence_ok))


def show_senders(
    metrics: ApiMetrics, senders: Iterable[SenderStatus], names: Mapping[str, str], now_ms: int
) -> None:
    """Fill the figures of the busiest senders; those without a name now are left out."""
    known = [status for status in senders if status.id in names]
    busiest = sorted(known, key=lambda s: (-s.backlog, -s.jobs, names[s.id]))[:SENDERS_MAX]
    _fill(metrics.sender_rate_limit, {names[s.id]: s.rate_max for s in busiest})
    _fill(metrics.sender_rate_now, {names[s.id]: s.rate for s in busiest})
    _fill(
        metrics.sender_blocked,
        {names[s.id]: int(s.paused or s.blocked_until_ms > now_ms) for s in busiest},
    )


def _fill(gauge: Gauge, values: Mapping[str, float]) -> None:
    """Show exactly these values by their one label."""
    gauge.clear()
    for label, value in values.items():
        gauge.labels(label).set(value)
