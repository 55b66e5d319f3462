"""Jobs that PostgreSQL has and Redis has not: submitted again, or rebuilt from what is logged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

from shared import keys
from shared.archive import Archive, JobRow
from shared.clock import Clock, is_set_within
from shared.errors import ArchiveError, QueueError
from shared.ids import Ids
from shared.logs import get
from shared.models import OUTCOMES, Claim, JobSpec, OutcomeEntry, Reason, State
from shared.queue import Queue
from shared.settings import Settings
from worker.senders import Senders

_EVERY_S: Final = 5.0
_PAGE: Final = 200
# The API may still be at work on a younger row, and take it back.
_YOUNG_MS: Final = 10_000
_LATEST_S: Final = 30.0  # a fail-over loses a second or two
_STOPPED: Final = ("paused", "cancelling")
_STAGE_BYTES: Final = 1_000_000
_ATTEMPTS_MAX: Final = 31
_log = get("worker.publisher")


class Rebuilt(NamedTuple):
    """A job as Redis must have it again.

    Attributes:
        states: one byte a recipient.
        cursor: the first pending position; the number of recipients when there is none.
        counters: outcome → recipients.
        doubtful: ranges of positions, both ends included, that became unknown by this.
    """

    states: bytes
    cursor: int
    counters: dict[str, int]
    doubtful: list[tuple[int, int]]


def rebuild(
    recipients: int,
    logged: Mapping[int, tuple[State, int]],
    reserved: int,
    *,
    same_born: bool,
) -> Rebuilt:
    """Return what is known of a job whose keys are gone.

    Args:
        recipients: how many.
        logged: position → (outcome, attempts).
        reserved: up to where it may have been released.
        same_born: the shard was not wiped: what is not logged has never been released, or a
            failover lost it within a second and the workers tell it again.

    >>> rebuild(4, {1: (State.SENT, 1)}, 3, same_born=False).doubtful
    [(0, 0), (2, 2)]
    """
    in_doubt = 0 if same_born else min(reserved, recipients)
    states = bytearray([State.UNKNOWN]) * in_doubt + bytearray(recipients - in_doubt)
    for position, (state, attempts) in logged.items():
        states[position] = state | min(attempts, _ATTEMPTS_MAX) << 3
    counts = dict.fromkeys(OUTCOMES, 0)
    for state, _ in logged.values():
        counts[state] += 1
    doubtful = list(_gaps(logged, in_doubt))
    counts[State.UNKNOWN] += sum(last - first + 1 for first, last in doubtful)
    cursor = states.find(State.PENDING)
    return Rebuilt(
        bytes(states),
        recipients if cursor < 0 else cursor,
        {state.name.lower(): count for state, count in counts.items() if count},
        doubtful,
    )


def _gaps(logged: Mapping[int, tuple[State, int]], end: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of positions below `end` that are not logged."""
    start = 0
    for position in sorted(p for p in logged if p < end):
        if position > start:
            yield start, position - 1
        start = position + 1
    if start < end:
        yield start, end - 1


class Publisher:
    """Looks every five seconds for jobs that Redis should know and does not.

    Args:
        queue: the Redis door.
        archive: the PostgreSQL door.
        settings: of the process.
        clock: between two looks.
        ids: draws `born`.
        senders: told to a wiped shard before its jobs.
    """

    def __init__(
        self,
        queue: Queue,
        archive: Archive,
        settings: Settings,
        clock: Clock,
        ids: Ids,
        senders: Senders,
    ) -> None:
        """Look at nothing yet."""
        self._queue = queue
        self._archive = archive
        self._settings = settings
        self._clock = clock
        self._ids = ids
        self._senders = senders

    async def run(self, stop: asyncio.Event) -> None:
        """Look at once and then every 5 s, until `stop`."""
        is_lost = False
        while True:
            try:
                for shard in range(self._queue.shards):
                    await self.look(shard)
                is_lost = False
            except (ArchiveError, QueueError) as error:
                if not is_lost:
                    _log.warning("publisher.waits", error=str(error))
                is_lost = True
            if await is_set_within(stop, _EVERY_S):
                return

    async def look(self, shard: int) -> None:
        """Give a shard the jobs it lacks; one process of the fleet at a time.

        Raises:
            ArchiveError, QueueError: not all was done; the next look goes on.
        """
        born = await self._queue.born(shard)
        if born and not await self._missing(shard):
            return
        async with self._archive.advisory(shard) as is_ours:
            if not is_ours:
                return
            born = await self._queue.born(shard)
            if not born:
                # Nothing is released before `born` is there: it is written last.
                _log.warning("shard.rebuilds", shard=shard)
                await self._senders.refresh()
            for row in await self._missing(shard):
                await self._publish(row, born)
            if not born:
                await self._queue.give_born(shard, self._ids.token(12))
                _log.info("shard.ready", shard=shard)

    async def bring_back(self, shard: int, job_ids: list[str]) -> bool:
        """Give a server that lost its last seconds what it must know before anything is sent.

        Jobs it has lost are restored, whatever their age: who has something to tell of a job was
        given it by Redis. What was logged lately is told to those it has: a worker that died in
        those seconds tells nothing any more.

        Args:
            shard: that fell back.
            job_ids: what this worker is about to tell of.

        Returns:
            False: not all is done, or another process is at it; ask again.
        """
        known = [False] * len(job_ids)
        try:
            born = await self._queue.born(shard)
            known = await self._queue.exists(job_ids)
            async with self._archive.advisory(shard) as is_ours:
                if not is_ours or not born:
                    return all(known)  # whoever is at it has not told before he is through
                for job_id, is_known in zip(job_ids, known, strict=True):
                    row = None if is_known else await self._archive.job(job_id, None)
                    if row is not None and row.state not in ("completed", "cancelled"):
                        await self._publish(row, born)
                await self._remind(shard)
        except QueueError as error:
            _log.warning("publisher.waits", error=str(error))
            return False
        except ArchiveError as error:
            _log.warning("publisher.waits", error=str(error))
            return all(known)  # without PostgreSQL the facts of the living must do
        return True

    async def _remind(self, shard: int) -> None:
        """Tell a shard's jobs what was logged lately; such facts only raise."""
        latest = await self._archive.latest(_LATEST_S)
        for job_id, (_, facts) in latest.items():
            if keys.shard_of(job_id) != shard:
                continue
            for number, of_chunk in groupby(facts, key=itemgetter(0)):
                packed = b"".join(fact.pack() for _, fact in of_chunk)
                # Of a claim that nobody holds.
                claim = Claim(shard, "0-0", job_id, number, b"", 0, 0, 0, delivery=1)
                await self._queue.report("-", claim, facts=packed)

    async def _missing(self, shard: int) -> list[JobRow]:
        """Return a shard's unfinished jobs that Redis does not know."""
        missing: list[JobRow] = []
        after = 0
        while page := await self._archive.pending_jobs(_PAGE, after):
            after = page[-1].number
            old_ms = self._clock.now_ms() - _YOUNG_MS
            rows = [
                row
                for row in page
                if keys.shard_of(row.id) == shard
                and (row.state != "accepted" or row.created_ms < old_ms)
            ]
            known = await self._queue.exists([row.id for row in rows])
            missing += [row for row, is_known in zip(rows, known, strict=True) if not is_known]
            if len(page) < _PAGE:
                break
        return missing

    async def _publish(self, row: JobRow, born: str) -> None:
        logged = await self._archive.logged(row.id)
        if row.state == "accepted" and not logged and row.born in ("", born):
            await self._stage(row, 0)
            result = await self._queue.submit(spec_of(row, row.reserved))
            _log.info("job.published", jobId=row.id, result=result.kind, state=result.state)
            return
        # Rows accepted before the shard's first `born` carry none: they count as another's.
        await self._restore(row, logged, same_born=bool(born) and row.born == born)

    async def _restore(
        self, row: JobRow, logged: dict[int, tuple[State, int]], *, same_born: bool
    ) -> None:
        rebuilt = rebuild(row.recipients, logged, row.reserved, same_born=same_born)
        doubtful = rebuilt.doubtful
        if doubtful:
            await self._archive.record([self._doubt(row, doubtful)])
            # Somebody may have written meanwhile; whoever writes later finds our doubt, and tells.
            logged = await self._archive.logged(row.id)
            rebuilt = rebuild(row.recipients, logged, row.reserved, same_born=same_born)
        counters = dict(rebuilt.counters)
        for reason, count in (await self._archive.reason_counts(row.id)).items():
            counters[f"by:{reason}"] = count
        await self._stage(row, rebuilt.cursor // row.chunk_size)
        # With the mark it had: who raised it and died would leave what is below it in doubt. It
        # comes back near its mark, and is given room as any other job.
        result = await self._queue.restore(
            spec_of(row, row.reserved), rebuilt.states, rebuilt.cursor, counters, kept_of(row)
        )
        _log.warning(
            "job.restored",
            jobId=row.id,
            result=result.kind,
            unknown=sum(last - first + 1 for first, last in doubtful),
            pending=row.recipients - sum(rebuilt.counters.values()),
        )

    def _doubt(self, row: JobRow, ranges: list[tuple[int, int]]) -> OutcomeEntry:
        return OutcomeEntry(
            f"{self._clock.now_ms()}-0",
            "range",
            row.id,
            state=State.UNKNOWN,
            reason=Reason.REBUILT,
            ranges=ranges,
        )

    async def _stage(self, row: JobRow, first: int) -> None:
        """Stage a job's chunks from number `first` on, at most 1 MB a call."""
        chunks = (await self._archive.recipients(row.id))[first:]
        start = size = 0
        for i, chunk in enumerate(chunks):
            if size and size + len(chunk) > _STAGE_BYTES:
                await self._queue.stage(row.id, first + start, chunks[start:i])
                start, size = i, 0
            size += len(chunk)
        if chunks[start:]:
            await self._queue.stage(row.id, first + start, chunks[start:])


def kept_of(row: JobRow) -> dict[str, str | int]:
    """Return what else Redis is told of a job it has lost: how it was stopped, its receipts."""
    kept: dict[str, str | int] = {}
    if row.state in _STOPPED:
        kept |= {"state": row.state, "by": row.by, "reason": row.reason}
    if row.receipts_version:
        kept |= {
            "receipts_version": row.receipts_version,
            "delivered": row.delivered,
            "read": row.read,
            "undelivered": row.undelivered,
        }
    return kept


def spec_of(row: JobRow, reserved: int) -> JobSpec:
    """Return what Redis is told of a job; its version is above all that PostgreSQL has seen."""
    return JobSpec(
        id=row.id,
        sender=row.sender_id,
        owner=row.owner,
        recipients=row.recipients,
        chunk_size=row.chunk_size,
        reserved=reserved,
        step=row.step,
        message=row.message,
        vars=row.vars,
        rate=row.rate,
        weight=row.weight,
        scheduled_ms=row.scheduled_ms,
        expires_ms=row.expires_ms,
        on_unknown=row.on_unknown,
        created_ms=row.created_ms,
        version=row.version + 1,
        category=row.template_category or "",
    )
