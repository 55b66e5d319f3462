"""From the outcomes stream to PostgreSQL: each entry is committed before it is acknowledged."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from shared.archive import Archive, Recorded
from shared.clock import Clock, is_set_within
from shared.errors import ArchiveError, QueueError
from shared.logs import get
from shared.metrics import WorkerMetrics
from shared.models import OUTCOMES, TRIP, Claim, OutcomeEntry, Reason, State, unpack_facts
from shared.queue import Queue
from shared.settings import Settings

_COUNT: Final = 200
_COUNT_BEHIND: Final = 1000
_BLOCK_MS: Final = 500
# Entries come in tens a second; a short wait makes one transaction of them.
_LINGER_S: Final = 0.1
_ROWS_MAX: Final = 1000  # of one transaction, unless one entry has more
_FACT_BYTES: Final = 9
_LOW_EVERY_S: Final = 1.0
_STALE_EVERY_S: Final = 5.0
_PAUSE_S: Final = 0.2
_PAUSE_MAX_S: Final = 5.0
_DRAIN_S: Final = 2.0
_ASIDE_MAX: Final = 10_000
_DRAIN_BLOCK_MS: Final = 20
_STATE_AT: Final = 2  # of a packed fact
_CAUSES: Final = {
    int(Reason.CRASH): "crash",
    int(Reason.TIMEOUT): "timeout",
    int(Reason.RESET): "reset",
    int(Reason.BAD_REPLY): "bad_reply",
}
_log = get("worker.log_writer")


class LogWriter:
    """One worker's share of the archive group, on every shard.

    Nothing here needs a fence: an entry written twice changes nothing the second time.

    Args:
        queue: the Redis door.
        archive: the PostgreSQL door.
        settings: of the process.
        clock: pauses and durations.
        metrics: rows, outcomes, ended jobs.
        consumer: this process's name in the group.
    """

    def __init__(
        self,
        queue: Queue,
        archive: Archive,
        settings: Settings,
        clock: Clock,
        metrics: WorkerMetrics,
        consumer: str,
    ) -> None:
        """Begin without any entry in hand."""
        self._queue = queue
        self._archive = archive
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._consumer = consumer
        self._failures = [0] * queue.shards
        self._aside: OrderedDict[str, None] = OrderedDict()

    async def run(self, stop: asyncio.Event) -> None:
        """Write until `stop`, then what is still there, for at most two seconds."""
        shards = range(self._queue.shards)
        await asyncio.gather(
            *(self._follow(shard, stop) for shard in shards),
            *(self._take_overs(shard, stop) for shard in shards),
            *(self._raise_all_marks(shard, stop) for shard in shards),
        )
        await asyncio.gather(*(self._drain(shard) for shard in shards))

    async def _follow(self, shard: int, stop: asyncio.Event) -> None:
        count, is_lost = _COUNT, False
        while not stop.is_set():
            try:
                entries = await self._queue.read_outcomes(
                    shard, self._consumer, count, _BLOCK_MS, given=is_lost
                )
            except QueueError as error:
                # The reply may have been on its way: what it gave is read again first.
                is_lost = True
                await self._pause(shard, error)
                continue
            # What cannot be written stays given; it must not be read again for ever.
            entries = [entry for entry in entries if entry.entry not in self._aside]
            await self._write(shard, entries, stop)
            is_lost = is_lost and bool(entries)
            is_behind = len(entries) == count
            count = _COUNT_BEHIND if is_behind else _COUNT
            if entries and not is_behind:
                await self._clock.sleep(_LINGER_S)

    async def _write(self, shard: int, entries: list[OutcomeEntry], stop: asyncio.Event) -> None:
        """Commit entries, as often as it takes; at a stop they are left to another worker.

        An entry that can never be written stays unacknowledged: it keeps its facts, holds nobody
        up, and is tried again by whoever takes it over, perhaps with a newer release.
        """
        waiting = batches(entries)
        while waiting:
            batch = waiting[0]
            try:
                is_done = await self._commit(shard, batch)
            except ArchiveError as error:
                waiting.pop(0)
                if len(batch) > 1:
                    waiting[:0] = [[entry] for entry in batch]
                else:
                    self._set_aside(batch[0], error)
                continue
            if is_done:
                waiting.pop(0)
            elif stop.is_set():
                return

    def _set_aside(self, entry: OutcomeEntry, error: ArchiveError) -> None:
        self._aside[entry.entry] = None
        while len(self._aside) > _ASIDE_MAX:
            self._aside.popitem(last=False)
        _log.error("outcome.unwritable", jobId=entry.job, entry=entry.entry, error=str(error))

    async def _commit(self, shard: int, batch: list[OutcomeEntry]) -> bool:
        """Write and acknowledge a batch; False: not now.

        Raises:
            ArchiveError: never, for something in it is wrong.
        """
        began_s = self._clock.monotonic()
        try:
            recorded = await self._record(shard, batch)
            if recorded is None:
                await self._clock.sleep(_PAUSE_S)
                return False
            self._metrics.archive_flush_seconds.observe(self._clock.monotonic() - began_s)
            # Before the entries go: a lost call would leave the job's keys without a TTL.
            await asyncio.gather(*(self._queue.archived(*ended) for ended in recorded.ended))
            await self._queue.ack_outcomes(shard, [entry.entry for entry in batch])
        except (ArchiveError, QueueError) as error:
            if isinstance(error, ArchiveError) and error.hopeless:
                raise
            await self._pause(shard, error)
            return False
        self._failures[shard] = 0
        self._tell(batch, recorded)
        return True

    async def _record(self, shard: int, batch: list[OutcomeEntry]) -> Recorded | None:
        """Write a batch; None: a publisher is restoring jobs, ask again.

        A restored job stands in Redis as PostgreSQL knew it. What was read before Redis lost it, or
        told while Redis did not know it, raises a doubt in PostgreSQL alone: Redis is told as well.
        """
        homeless = {e.job for e in batch if e.kind == "facts" and not e.chunk_size}
        if not homeless:
            recorded = await self._archive.record(batch)
            await self._raise(shard, batch, recorded.raised)
            return recorded
        # No publisher may read what is logged before this batch and restore after it.
        async with self._archive.advisory(shard) as is_ours:
            if not is_ours:
                return None
            recorded = await self._archive.record(batch)
            known = await self._queue.exists(sorted(homeless))
            is_known = dict(zip(sorted(homeless), known, strict=True))
            gone = {job for job in homeless if not is_known[job]}
            await self._raise(shard, batch, recorded.raised | (homeless - gone))
        return recorded

    async def _raise(self, shard: int, batch: list[OutcomeEntry], jobs: frozenset[str]) -> None:
        """Tell Redis outcomes of these jobs: mostly it knows them, and nothing changes."""
        for entry in batch:
            if entry.kind != "facts" or entry.job not in jobs:
                continue
            facts = [fact.pack() for fact in unpack_facts(entry.facts) if fact.state in OUTCOMES]
            if facts:
                # Of a claim that nobody holds: such facts only raise.
                claim = Claim(shard, "0-0", entry.job, entry.chunk, b"", 0, 0, 0, delivery=1)
                await self._queue.report(
                    self._consumer, claim, facts=b"".join(facts), record=entry.record
                )

    def _tell(self, batch: list[OutcomeEntry], recorded: Recorded) -> None:
        metrics = self._metrics
        metrics.archive_rows_total.inc(recorded.rows)
        for moved in recorded.moved:
            name = metrics.sender_label(moved.sender)
            metrics.messages_total.labels(name, moved.outcome).inc(moved.recipients)
        for job_id, recipients in recorded.shared.items():
            _log.error("provider_anomaly", jobId=job_id, what="wamid", recipients=recipients)
        for entry in batch:
            for reason in _unknown(entry):
                if reason in _CAUSES:
                    metrics.unknown_total.labels(_CAUSES[reason]).inc()
            if entry.kind == "state" and entry.event:
                metrics.jobs_finished_total.labels(entry.job_state).inc()
                kind, accepted_ms = recorded.accepted.get(entry.job, ("", 0))
                if kind:
                    took_s = max(0, entry.finished_ms - accepted_ms) / 1000
                    metrics.job_duration_seconds.labels(kind).observe(took_s)
                _log.info(
                    "job.finished",
                    jobId=entry.job,
                    state=entry.job_state,
                    duration_ms=entry.finished_ms - (entry.started_ms or entry.finished_ms),
                )

    async def _take_overs(self, shard: int, stop: asyncio.Event) -> None:
        cursor = "0-0"
        while not await is_set_within(stop, _STALE_EVERY_S):
            cursor = await self.take_over(shard, cursor, stop)

    async def take_over(self, shard: int, cursor: str, stop: asyncio.Event) -> str:
        """Write what a dead worker has read and never acknowledged; return where to go on."""
        try:
            cursor, entries = await self._queue.claim_stale_outcomes(shard, self._consumer, cursor)
        except QueueError:
            return cursor  # the reader meets the same and says it
        if entries:
            _log.info("outcomes.taken_over", shard=shard, entries=len(entries))
            await self._write(shard, entries, stop)
        return cursor

    async def _raise_all_marks(self, shard: int, stop: asyncio.Event) -> None:
        while not await is_set_within(stop, _LOW_EVERY_S):
            await self.raise_marks(shard)

    async def raise_marks(self, shard: int) -> None:
        """Let jobs that near their mark go on, once PostgreSQL knows how far."""
        try:
            marks = [(job, mark + step) for job, mark, step in await self._queue.low(shard)]
            await self._archive.set_reserved(marks)
            for job_id, mark in marks:
                await self._queue.reserve(job_id, mark)
        except (ArchiveError, QueueError) as error:
            _log.debug("reserve.failed", shard=shard, error=str(error))

    async def _drain(self, shard: int) -> None:
        end_s = self._clock.monotonic() + _DRAIN_S
        while self._clock.monotonic() < end_s:
            try:
                entries = await self._queue.read_outcomes(
                    shard, self._consumer, _COUNT, _DRAIN_BLOCK_MS
                )
            except QueueError:
                return
            entries = [entry for entry in entries if entry.entry not in self._aside]
            stop = asyncio.Event()
            stop.set()
            await self._write(shard, entries, stop)
            if not entries or self._failures[shard]:
                return

    async def _pause(self, shard: int, error: Exception) -> None:
        if not self._failures[shard]:
            _log.warning("archive.waits", shard=shard, error=str(error))
        pause_s = min(_PAUSE_MAX_S, _PAUSE_S * 2.0 ** min(self._failures[shard], 10))
        self._failures[shard] += 1
        await self._clock.sleep(pause_s)


def batches(entries: Iterable[OutcomeEntry], rows_max: int = _ROWS_MAX) -> list[list[OutcomeEntry]]:
    """Return entries in their order, cut into transactions of at most `rows_max` rows.

    An entry is never cut; one that is larger makes a transaction of its own.
    """
    out: list[list[OutcomeEntry]] = []
    rows = 0
    for entry in entries:
        size = _size(entry)
        if not out or rows + size > rows_max:
            out.append([])
            rows = 0
        out[-1].append(entry)
        rows += size
    return out


def _size(entry: OutcomeEntry) -> int:
    """Return how many rows an entry makes."""
    if entry.kind == "facts":
        return len(entry.facts) // _FACT_BYTES
    return sum(last - first + 1 for first, last in entry.ranges)


def _unknown(entry: OutcomeEntry) -> list[int]:
    """Return the reason of each recipient that an entry makes unknown; mostly none."""
    if entry.kind == "range" and entry.state == State.UNKNOWN:
        return [entry.reason] * _size(entry)
    if State.UNKNOWN not in entry.facts[_STATE_AT::_FACT_BYTES]:
        return []
    facts = unpack_facts(entry.facts)
    return [fact.reason & ~TRIP for fact in facts if fact.state == State.UNKNOWN]
