"""From the inbox to receipts: statuses find their recipients, and settle what was unknown."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

import msgspec

from shared import keys
from shared.clock import Clock, is_set_within
from shared.errors import ArchiveError, QueueError
from shared.graph_codes import TRIPS, reason_of
from shared.inbox import Hook, Inbox
from shared.logs import get
from shared.metrics import WorkerMetrics
from shared.models import Answer, Claim, Detail, Fact, State, Status
from shared.queue import Queue
from shared.receipts import FAILED, Found, Receipts
from worker.noticeboard import Noticeboard
from worker.retry import decide_late
from worker.scopes import Scopes
from worker.senders import Senders
from worker.webhooks import Told, Wish, read

_COUNT: Final = 32  # bodies at once; each may hold a thousand statuses
_COUNT_BEHIND: Final = 500  # when as many were waiting and they were small
_SMALL_BYTES: Final = 262_144  # all of them together
_BLOCK_MS: Final = 500
_AT_ONCE_MAX: Final = 1000  # statuses of one transaction
_STALE_EVERY_S: Final = 5.0
_SWEEP_EVERY_S: Final = 10.0
_SWEEP_SOON_S: Final = 1.0  # after a status that was early: its row is on its way
_PAUSE_S: Final = 0.2
_PAUSE_MAX_S: Final = 5.0
_encode: Final = msgspec.msgpack.Encoder().encode
_log = get("worker.receipts")


class Tools(NamedTuple):
    """What receipts are worked off with.

    Attributes:
        queue: jobs in Redis, told of what is sent and of totals.
        inbox: where webhooks wait.
        receipts: where they end.
        senders: which numbers are ours.
        scopes: stops whom a failure concerns beyond its recipient.
        board: takes what is told of templates, accounts and numbers.
        clock: pauses.
        metrics: of this worker.
        opaque_key: of the value that goes with each message.
        older_keys: of values that went before BULK_SECRET_KEY got another first one.
    """

    queue: Queue
    inbox: Inbox
    receipts: Receipts
    senders: Senders
    scopes: Scopes
    board: Noticeboard
    clock: Clock
    metrics: WorkerMetrics
    opaque_key: bytes
    older_keys: tuple[bytes, ...] = ()


class Consumer:
    """One worker's share of the group `receipts`.

    Nothing here needs a fence: a webhook worked off twice changes nothing the second time.

    Args:
        tools: doors.
        name: this process's name in the group.
    """

    def __init__(self, tools: Tools, name: str) -> None:
        """Begin without any webhook in hand."""
        self._t = tools
        self._name = name
        self._failures = 0
        self._has_early = False
        self._aside: set[str] = set()
        self._tripped: set[int] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Work webhooks off until `stop`; what is in hand then is another's."""
        await asyncio.gather(self.follow(stop), self._take_overs(stop), self._sweeps(stop))

    async def follow(self, stop: asyncio.Event) -> None:
        """Read and work off until `stop`."""
        count, is_lost = _COUNT, False
        while not stop.is_set():
            try:
                hooks = await self._t.inbox.read(self._name, count, _BLOCK_MS, given=is_lost)
            except QueueError as error:
                # The reply may have been on its way: what it gave is read again first.
                is_lost = True
                await self._pause(error)
                continue
            is_small = sum(len(hook.body) for hook in hooks) < _SMALL_BYTES
            count = _COUNT_BEHIND if len(hooks) == count and is_small else _COUNT
            # What cannot be written stays given; it must not be read again for ever.
            hooks = [hook for hook in hooks if hook.entry not in self._aside]
            await self._work_off(hooks, stop)
            is_lost = is_lost and bool(hooks)

    async def take_over(self, cursor: str, stop: asyncio.Event) -> str:
        """Work off what a dead worker has read and never acknowledged; return where to go on."""
        try:
            cursor, hooks = await self._t.inbox.claim_stale(self._name, cursor)
        except QueueError:
            return cursor  # the reader meets the same and says it
        hooks = [hook for hook in hooks if hook.entry not in self._aside]
        if hooks:
            _log.info("webhooks.taken_over", entries=len(hooks))
            await self._work_off(hooks, stop)
        return cursor

    async def sweep(self) -> None:
        """Look again at statuses that came before the row of their message.

        Raises:
            ArchiveError, QueueError: the next sweep goes on.
        """
        while statuses := await self._t.receipts.ripe():
            if not await self._settle(statuses, is_early=True):
                break  # the rest waits until its outcome is written
        unmatched = await self._t.receipts.expire()
        if unmatched:
            self._t.metrics.webhooks_total.labels("unmatched").inc(unmatched)

    async def count_trips(self) -> None:
        """Tell the breakers of jobs what webhooks told of their messages, the whole each time.

        Raises:
            ArchiveError, QueueError: the next call goes on.
        """
        numbers, self._tripped = self._tripped, set()
        try:
            for job, trips, code in await self._t.receipts.trips(sorted(numbers)):
                reason = reason_of(code)
                if await self._t.queue.trips(job, trips, reason):
                    _log.error("job.paused", jobId=job, reason=f"breaker:{reason}")
        except (ArchiveError, QueueError):
            self._tripped |= numbers
            raise

    def _read(self, hook: Hook) -> Told:
        tools = self._t
        return read(hook.body, tools.opaque_key, _came_s(hook.entry), tools.older_keys)

    async def _work_off(self, hooks: list[Hook], stop: asyncio.Event) -> None:
        """Settle bodies, as often as it takes; at a stop they are left to another worker."""
        waiting = [hooks] if hooks else []
        while waiting:
            batch = waiting[0]
            try:
                told = [self._read(hook) for hook in batch]
                await self._apply(told)
                await self._t.inbox.ack([hook.entry for hook in batch])
            except (ArchiveError, QueueError) as error:
                if isinstance(error, ArchiveError) and error.hopeless:
                    waiting.pop(0)
                    if len(batch) > 1:
                        waiting[:0] = [[hook] for hook in batch]
                    else:
                        self._aside.add(batch[0].entry)
                        _log.error("webhook.unwritable", entry=batch[0].entry, error=str(error))
                    continue
                if stop.is_set():
                    return
                await self._pause(error)
                continue
            self._failures = 0
            waiting.pop(0)
            self._count_odd(told)

    async def _apply(self, told: list[Told]) -> None:
        """Bring about what bodies say.

        Raises:
            ArchiveError, QueueError: not all of it; all may be done again.
        """
        numbers = {s.number for each in told for s in _said(each)}
        ours = await self._ours(numbers)
        wishes = [wish for each in told for wish in each.wishes if wish.number in ours]
        statuses = [s for each in told for s in each.statuses if s.number in ours]
        foreign = sum(s.number not in ours for each in told for s in _said(each))
        for start in range(0, len(statuses), _AT_ONCE_MAX):
            await self._settle(statuses[start : start + _AT_ONCE_MAX])
        for wish in sorted(wishes, key=attrgetter("at_ms")):
            await self._t.receipts.wish(wish.phone, wish.at_ms, is_stop=wish.is_stop)
        notices = [notice for each in told for notice in each.notices]
        for notice in sorted(notices, key=attrgetter("at_s")):
            foreign += not await self._t.board.take(notice)
        if foreign:
            self._t.metrics.webhooks_total.labels("foreign").inc(foreign)
            _log.warning("webhook.foreign", count=foreign)

    async def _ours(self, numbers: set[str]) -> set[str]:
        """Return which phone number ids are ours; a stranger may have become one just now."""
        known = self._t.senders.numbers()
        if not numbers <= known:
            await self._t.senders.refresh()
            known = self._t.senders.numbers()
        return numbers & known

    async def _settle(self, statuses: Sequence[Status], *, is_early: bool = False) -> int:
        """Raise receipts and what is unknown; return how many found their message `sent`.

        Redis is told first: whoever dies in between leaves all of it to be done again.
        """
        found = await self._t.receipts.find(statuses)
        pairs = list(zip(statuses, found, strict=True))
        settled = [(s, place) for s, place in pairs if place and place.outcome == "sent"]
        early = [(s, place) for s, place in pairs if not place or place.outcome != "sent"]
        # A failure proves nothing of a message that was refused at once.
        proven = [
            (s, place) for s, place in early
            if place and (place.outcome == "unknown" or s.receipt != FAILED)
        ]  # fmt: skip
        await self._tell_sent(proven, is_early=is_early)
        await self._act(settled)
        raised = await self._t.receipts.record(settled, [] if is_early else [s for s, _ in early])
        for job, *counts in raised.totals:
            await self._t.queue.totals(job, *counts)
        if is_early:
            # Not before: nobody would tell those totals any more.
            await self._t.receipts.forget([s for s, _ in settled])
        if early:
            self._has_early = True
        metrics = self._t.metrics
        for status, after_s in raised.first:
            metrics.receipts_total.labels(status).inc()
            metrics.receipt_delay_seconds.labels(status).observe(after_s)
        for job in raised.seconds:
            metrics.duplicates_total.inc()
            _log.error("send.duplicate", jobId=job)
        metrics.webhooks_total.labels("ok").inc(raised.rows)
        metrics.webhooks_total.labels("duplicate").inc(max(0, len(settled) - raised.rows))
        return len(settled)

    async def _tell_sent(self, proven: list[tuple[Status, Found]], *, is_early: bool) -> None:
        """Tell each job that these were taken, as facts of a claim that nobody holds.

        They only raise. A job that Redis does not know any more passes them on to the archive.
        """
        chunks: dict[tuple[str, int], dict[int, tuple[Status, Found]]] = {}
        for status, place in proven:
            if keys.shard_of(place.job) < self._t.queue.shards:
                number, index = divmod(place.position, place.chunk_size)
                chunks.setdefault((place.job, number), {}).setdefault(index, (status, place))
        for (job, number), told in chunks.items():
            facts, details = [], []
            for index, (status, place) in told.items():
                attempt = max(status.attempt, place.attempts)
                facts.append(Fact(index, State.SENT, attempt).pack())
                details.append(Detail(index, place.phone, status.at_ms, status.wamid))
            claim = Claim(keys.shard_of(job), "0-0", job, number, b"", 0, 0, 0, delivery=1)
            done = await self._t.queue.report(
                self._name, claim, facts=b"".join(facts), record=_encode(details)
            )
            unknown = sum(place.outcome == "unknown" for _, place in told.values())
            is_gone = done.job_state == "gone" and not is_early
            count = unknown if is_gone else min(unknown, done.applied)
            self._t.metrics.unknown_settled_total.labels("sent").inc(count)

    async def _act(self, settled: list[tuple[Status, Found]]) -> None:
        """Stop whom a failure concerns beyond its recipient, the first time it is told."""
        for status, place in settled:
            if status.receipt != FAILED or status.code is None or place.has_failed:
                continue
            if status.code in TRIPS:
                self._tripped.add(place.number)
            decision = decide_late(status.code, is_held=place.is_held)
            if decision is None:
                continue
            if decision.scope_action == "slow":
                claim = Claim(
                    keys.shard_of(place.job), "0-0", place.job, 0, b"", 0, 0, 0, delivery=1
                )
                await self._t.queue.report(self._name, claim, throttled_ms=0)
            sender = self._t.senders.named(place.sender_id)
            if sender is not None:
                answer = Answer("rejected", code=status.code, details=status.text)
                await self._t.scopes.insist(place.job, sender, decision, answer)

    def _count_odd(self, told: list[Told]) -> None:
        odd: Counter[str] = sum((each.odd for each in told), Counter())
        for result, count in odd.items():
            self._t.metrics.webhooks_total.labels(result).inc(count)
            _log.warning(f"webhook.{result}", count=count)

    async def _take_overs(self, stop: asyncio.Event) -> None:
        cursor = "0-0"
        while not await is_set_within(stop, _STALE_EVERY_S):
            cursor = await self.take_over(cursor, stop)

    async def _sweeps(self, stop: asyncio.Event) -> None:
        swept_s = float("-inf")
        while not await is_set_within(stop, _SWEEP_SOON_S):
            if self._tripped:
                await self._try(self.count_trips)
            now_s = self._t.clock.monotonic()
            if not self._has_early and now_s - swept_s < _SWEEP_EVERY_S:
                continue
            self._has_early, swept_s = False, now_s
            await self._try(self.sweep)

    async def _try(self, act: Callable[[], Awaitable[None]]) -> None:
        try:
            await act()
        except (ArchiveError, QueueError) as error:
            _log.debug("sweep.failed", error=str(error))

    async def _pause(self, error: Exception) -> None:
        if not self._failures:
            _log.warning("receipts.wait", error=str(error))
        pause_s = min(_PAUSE_MAX_S, _PAUSE_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        await self._t.clock.sleep(pause_s)


def _came_s(entry: str) -> int:
    """Return when an entry of the inbox was made, epoch: the first half of its id is in ms."""
    return int(entry.partition("-")[0]) // 1000


def _said(told: Told) -> list[Status | Wish]:
    return [*told.statuses, *told.wishes]
