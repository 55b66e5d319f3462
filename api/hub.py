"""Who watches which jobs: one reader a shard, one snapshot a job, one slot a watcher.

A change note says only that a job changed. The hub reads the changed jobs that somebody watches,
builds each snapshot once and lays the same bytes into every watcher's slot; what a slow watcher has
not taken is replaced, so its newest frame and the end are never lost. Notes may be trimmed, lost
or rolled back: at each heartbeat every watched job is compared with what was last laid out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from api import progress
from shared import keys, logs
from shared.clock import Clock
from shared.errors import QueueError, TooManyError
from shared.ids import Ids
from shared.metrics import ApiMetrics
from shared.models import JobStatus
from shared.queue import Queue
from shared.scripts import Script
from shared.settings import Settings

BATCH: Final = 200
RETRY_S: Final = 0.25
TELL_S: Final = 10.0
LOG_S: Final = 60.0
CLOSE_S: Final = 2.0
FULL_RETRY_S: Final = 15
# Jobs that nobody watches are looked at for the log alone: so many, so often, at most.
UNWATCHED_EVERY_S: Final = 2.0
GONE_EVERY_S: Final = 0.5
UNWATCHED_MAX: Final = 20
_NOTHING: Final = (0, 0)


class Frame(NamedTuple):
    """One job's snapshot, encoded once for all who watch it.

    Attributes:
        job: job id.
        event: id of the note it was built for.
        at_ms: when it was built.
        is_end: it is the job's last.
        is_reset: its id may be below the one before.
        data: the bytes to write.
    """

    job: str
    event: str
    at_ms: int
    is_end: bool
    is_reset: bool
    data: bytes


class Subscription:
    """One connection's slots: for each job the newest frame it has not taken yet.

    Attributes:
        jobs: what it watches.
        ready: set when there is something to take, or the hub is closing.
        is_closing: the process stops; say good-bye.
        is_lost: Redis does not have one of the jobs; PostgreSQL may have its end.
        is_gone: tells whether the reader has closed the connection.
    """

    __slots__ = ("_sent", "_slots", "is_closing", "is_gone", "is_lost", "jobs", "ready")

    def __init__(self, jobs: tuple[str, ...], is_gone: Callable[[], bool]) -> None:
        """Begin with empty slots."""
        self.jobs = jobs
        self.is_gone = is_gone
        self.ready = asyncio.Event()
        self.is_closing = False
        self.is_lost = False
        self._slots: dict[str, Frame] = {}
        self._sent: dict[str, tuple[int, int]] = {}

    def offer(self, frame: Frame) -> bool:
        """Lay a frame into its slot; True when it replaced one that was never taken."""
        before = self._slots.get(frame.job)
        if before is not None and before.is_reset and not frame.is_reset:
            # The id went back in a frame that this one replaces: it goes back here too.
            frame = frame._replace(
                is_reset=True, data=frame.data.replace(b'"reset":false', b'"reset":true', 1)
            )
        self._slots[frame.job] = frame
        self.ready.set()
        return before is not None

    def take(self) -> list[Frame]:
        """Return what is new, oldest id first; empty the slots."""
        self.ready.clear()
        frames = sorted(self._slots.values(), key=_place)
        self._slots.clear()
        return [frame for frame in frames if self.accept(frame)]

    def accept(self, frame: Frame) -> bool:
        """Note a frame as sent; False when its job is past it already."""
        at = _place(frame)
        if at <= self._sent.get(frame.job, _NOTHING) and not frame.is_reset:
            return False
        self._sent[frame.job] = at
        return True

    def skip_to(self, job_id: str, event: str) -> None:
        """Note that the client has a job's frame of `event` from an earlier connection."""
        self._sent[job_id] = progress.order(event) or _NOTHING


def _place(frame: Frame) -> tuple[int, int]:
    return progress.order(frame.event) or _NOTHING


@dataclass(slots=True, eq=False)
class _Watch:
    """A job that somebody watches."""

    subscriptions: set[Subscription] = field(default_factory=set)
    laid: str = ""
    due: float = 0.0


class Hub:
    """Live snapshots of jobs for this process's connections.

    Args:
        queue: the Redis door; one blocking connection a shard is used for notes.
        settings: intervals and limits.
        clock: now.
        metrics: streams, events, coalescing.
        log_s: between two lines of `sse.stats`.
    """

    def __init__(
        self,
        queue: Queue,
        settings: Settings,
        clock: Clock,
        metrics: ApiMetrics,
        log_s: float = LOG_S,
    ) -> None:
        """Borrow everything; `run` starts the readers."""
        self._queue = queue
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._log_s = log_s
        self._log = logs.get("hub")
        self._watched: dict[str, _Watch] = {}
        self._changed: set[str] = set()
        self._unwatched: set[str] = set()
        self._tenths: dict[str, int] = {}
        self._work = asyncio.Event()
        self._after: dict[int, str] = {}
        self._open: set[Subscription] = set()
        self._seats: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closing = False
        self._name = Ids().worker_name()
        self._script = Script("visitor_streams")
        self._tasks: list[asyncio.Task[None]] = []
        self.events = 0
        self.disconnects = 0
        self._last_minute = 0

    @property
    def connections(self) -> int:
        """Return how many streams are open here."""
        return len(self._open)

    @property
    def users(self) -> int:
        """Return how many different users' streams are open here."""
        return sum(1 for name, count in self._seats.items() if count and name[0] == "u")

    async def run(self) -> None:
        """Read notes and lay out snapshots until `close`; outlives every outage of Redis."""
        async with asyncio.TaskGroup() as group:
            work = [self._read(shard) for shard in range(self._queue.shards)]
            work += [self._lay_out(), self._compare(), self._tell(), self._count()]
            work += [self._look_at_unwatched(), self._wake_the_gone()]
            self._tasks = [group.create_task(each) for each in work]

    async def close(self) -> None:
        """Ask every stream to say good-bye, wait for them at most 2 s, stop."""
        self._is_closing = True
        for subscription in self._open:
            subscription.is_closing = True
            subscription.ready.set()
        try:
            await asyncio.wait_for(self._idle.wait(), CLOSE_S)
        except TimeoutError:
            self._log.warning("sse.left_open", connections=self.connections)
        # The flag as well: `asyncio.wait_for` of Python 3.11 inside redis-py may swallow a cancel
        # that meets a write just done.
        for task in self._tasks:
            task.cancel()

    # -- who watches -----------------------------------------------------------------------

    @contextmanager
    def seat(self, user: str, address: str) -> Iterator[None]:
        """Count one more stream of a user and an address while the block runs.

        Raises:
            TooManyError: the user or the address has as many as it may.
        """
        names = {
            f"u:{user}": self._settings.sse_per_user,
            f"a:{address}": self._settings.sse_per_ip,
        }
        if any(self._seats[name] >= most for name, most in names.items()):
            raise TooManyError("too_many_streams", "Too many open streams.", FULL_RETRY_S)
        self._seats.update(names.keys())
        try:
            yield
        finally:
            self._seats.subtract(names.keys())
            for name in names:
                if self._seats[name] <= 0:
                    del self._seats[name]

    def subscribe(
        self, job_ids: Iterable[str], is_gone: Callable[[], bool] = lambda: False
    ) -> Subscription:
        """Watch jobs from now on; read their snapshots afterwards, so that nothing is between."""
        subscription = Subscription(tuple(job_ids), is_gone)
        for job_id in subscription.jobs:
            self._watched.setdefault(job_id, _Watch()).subscriptions.add(subscription)
        self._open.add(subscription)
        self._idle.clear()
        self._metrics.sse_connections.set(self.connections)
        if self._is_closing:
            subscription.is_closing = True
            subscription.ready.set()
        return subscription

    def unsubscribe(self, subscription: Subscription, reason: str) -> None:
        """Forget a connection; `reason` is client, slow, end, bye or revoked."""
        if subscription not in self._open:
            return
        for job_id in subscription.jobs:
            self._leave(subscription, job_id)
        self._open.discard(subscription)
        if not self._open:
            self._idle.set()
        self.disconnects += 1
        self._metrics.sse_connections.set(self.connections)
        self._metrics.sse_disconnects_total.labels(reason).inc()

    def _leave(self, subscription: Subscription, job_id: str) -> None:
        watch = self._watched.get(job_id)
        if watch is None:
            return
        watch.subscriptions.discard(subscription)
        if not watch.subscriptions:
            del self._watched[job_id]
            self._changed.discard(job_id)

    async def snapshots(self, job_ids: list[str]) -> list[JobStatus | None]:
        """Return what Redis knows of jobs now, for a connection that begins."""
        return await self._queue.statuses(job_ids)

    def frame(self, status: JobStatus, kind: progress.Kind, *, is_reset: bool = False) -> Frame:
        """Build a job's frame."""
        at_ms = self._clock.now_ms()
        data = progress.frame(status, at_ms, kind, is_reset)
        return Frame(status.id, status.event, at_ms, status.is_ended, is_reset, data)

    def sent(self, frame: Frame) -> None:
        """Count a frame that was written, and how old it was."""
        self.events += 1
        self._metrics.sse_events_sent_total.inc()
        late_ms = max(0, self._clock.now_ms() - frame.at_ms)
        self._metrics.sse_delivery_lag_seconds.observe(late_ms / 1000)

    # -- the work --------------------------------------------------------------------------

    async def _read(self, shard: int) -> None:
        is_behind = True
        while not self._is_closing:
            try:
                if is_behind:
                    self._after[shard] = await self._queue.last_event(shard)
                    is_behind = False
                    self._mark(job for job in self._watched if keys.shard_of(job) == shard)
                after = self._after[shard]
                notes = await self._queue.read_events(shard, after)
            except QueueError:
                is_behind = True
                await self._clock.sleep(RETRY_S)
                continue
            # `_compare` may have moved the place back meanwhile.
            if notes and self._after[shard] == after:
                self._after[shard] = notes[-1].id
            self._mark(note.job for note in notes)
            self._unwatched.update(note.job for note in notes if note.job not in self._watched)

    def _mark(self, job_ids: Iterable[str]) -> None:
        self._changed.update(job for job in job_ids if job in self._watched)
        if self._changed:
            self._work.set()

    async def _lay_out(self) -> None:
        while not self._is_closing:
            await self._work.wait()
            now = self._clock.monotonic()
            due = [job for job in self._changed if self._watched[job].due <= now][:BATCH]
            if not due:
                if not self._changed:
                    self._work.clear()
                    continue
                soonest = min(self._watched[job].due for job in self._changed)
                # What changes meanwhile and is due at once waits for at most a tenth of this.
                step = self._settings.sse_interval_ms / 10_000
                await self._clock.sleep(min(soonest - now, step))
                continue
            self._changed.difference_update(due)
            try:
                statuses = await self._queue.statuses(due)
            except QueueError:
                self._mark(due)
                await self._clock.sleep(RETRY_S)
                continue
            for job_id, status in zip(due, statuses, strict=True):
                self._give(job_id, status)

    def _give(self, job_id: str, status: JobStatus | None) -> None:
        watch = self._watched.get(job_id)
        if watch is None:
            return
        watch.due = self._clock.monotonic() + self._settings.sse_interval_ms / 1000
        if status is None:
            for subscription in watch.subscriptions:
                subscription.is_lost = True
                subscription.ready.set()
            return
        if status.event == watch.laid:
            return
        before, now = progress.order(watch.laid), progress.order(status.event) or _NOTHING
        frame = self.frame(status, "progress", is_reset=before is not None and now < before)
        watch.laid = status.event
        replaced = sum(subscription.offer(frame) for subscription in watch.subscriptions)
        self._metrics.sse_events_coalesced_total.inc(replaced)
        self._log_progress(status)

    async def _wake_the_gone(self) -> None:
        """Wake streams whose reader has left, so that their seats are free before a heartbeat.

        One look over all of them: a timer in each of 10,000 would cost a tenth of a core.
        """
        while not self._is_closing:
            await self._clock.sleep(GONE_EVERY_S)
            for subscription in self._open:
                if subscription.is_gone():
                    subscription.ready.set()

    async def _look_at_unwatched(self) -> None:
        """Log the tenths of jobs that nobody watches, too."""
        while not self._is_closing:
            await self._clock.sleep(UNWATCHED_EVERY_S)
            some = [self._unwatched.pop() for _ in range(min(UNWATCHED_MAX, len(self._unwatched)))]
            try:
                statuses = await self._queue.statuses(some) if some else []
            except QueueError:
                continue
            for status in statuses:
                if status is not None and status.id not in self._watched:
                    self._log_progress(status)

    def _log_progress(self, status: JobStatus) -> None:
        tally = status.tally
        tenth = tally.done * 10 // tally.total if tally.total else 10
        # What a process meets half way is news to it once, not for each tenth that was before.
        say = self._log.info if tenth > self._tenths.get(status.id, 0) else self._log.debug
        if status.is_ended:
            self._tenths.pop(status.id, None)
        else:
            self._tenths[status.id] = max(tenth, self._tenths.get(status.id, 0))
        say(
            "job.progress",
            jobId=status.id,
            state=status.state,
            done=tally.done,
            total=tally.total,
            sent=tally.sent,
            failed=tally.failed,
        )

    async def _compare(self) -> None:
        """Look at every watched job again: a note may have been trimmed, lost or rolled back."""
        while not self._is_closing:
            await self._clock.sleep(self._settings.sse_heartbeat_s)
            for shard, after in list(self._after.items()):
                try:
                    last = await self._queue.last_event(shard)
                except QueueError:
                    continue
                if (progress.order(last) or _NOTHING) < (progress.order(after) or _NOTHING):
                    self._after[shard] = last
            self._mark(list(self._watched))

    async def _tell(self) -> None:
        """Tell the admin's figures of this process; they lapse when it no longer does."""
        delay_s = 0.0
        while not self._is_closing:
            await self._clock.sleep(delay_s)
            delay_s = TELL_S
            try:
                await self.totals()
            except QueueError as error:
                self._log.debug("sse.untold", error=str(error))

    async def totals(self) -> tuple[int, int, int]:
        """Return connections, users and events of the last minute, over all API processes.

        Raises:
            QueueError: Redis was lost.
        """
        own = f"{self.connections} {self.users} {self._last_minute}"
        rows = await self._queue.visit(self._script, ["{v}:streams"], [self._name, own])
        figures = [[int(word) for word in bytes(row).split()] for row in _rows(rows)]
        connections, users, events = (sum(column) for column in zip(*figures, strict=True))
        return connections, users, events

    async def _count(self) -> None:
        events = disconnects = 0
        while not self._is_closing:
            await self._clock.sleep(self._log_s)
            self._last_minute = self.events - events
            self._log.info(
                "sse.stats",
                connections=self.connections,
                events=self._last_minute,
                disconnects=self.disconnects - disconnects,
            )
            events, disconnects = self.events, self.disconnects


def _rows(reply: object) -> list[bytes]:
    return [row for row in reply if isinstance(row, bytes)] if isinstance(reply, list) else []
