"""The pulse: lease, strays, what must stop; what a worker may do now is asked here."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Final, NamedTuple

from shared.clock import Clock
from shared.errors import QueueError
from shared.logs import get
from shared.metrics import WorkerMetrics
from shared.models import FACT_BYTES, Claim, Fact, State, Ticked
from shared.queue import Queue
from shared.settings import Settings

# No send starts later than the last good tick + lease - 1 s: the request must be out, and its
# intent noted, before anybody else may take the claim over.
LEASE_MARGIN_S: Final = 1.0
# What a server that lost its last second must be told again (design, After a failover).
REPLAY_S: Final = 10.0
ALARM_S: Final = 60.0  # Graph away for longer is said at error
_NOBODY: Final = "-"  # no server's run id
BringBack = Callable[[int, list[str]], Coroutine[None, None, bool]]
_log = get("worker.tick")


class Told(NamedTuple):
    """Facts this worker has reported, kept for a while to be told again."""

    at_s: float
    claim: Claim
    facts: bytes
    record: bytes


class Pulse:
    """One worker's sign of life on every shard, and what it may start.

    Args:
        queue: the Redis door.
        worker: consumer name of this start of the process.
        settings: lease, tick, slots.
        clock: monotonic time and sleep.
        metrics: where reaped workers are counted.
    """

    def __init__(
        self, queue: Queue, worker: str, settings: Settings, clock: Clock, metrics: WorkerMetrics
    ) -> None:
        """Begin without a lease: nothing may start before the first tick."""
        self.worker = worker
        self.is_draining = False
        self.in_hand: dict[int, dict[str, Claim]] = {s: {} for s in range(queue.shards)}
        self.in_the_air: dict[str, dict[int, int]] = {}
        self.unreachable_until_s = 0.0
        self.is_stale = False  # the list of whom nobody may write to
        self._unreachable_s = 0.0
        self._unreachable_since_s = 0.0
        self.last_good_s = clock.monotonic()
        self.is_wiped = [False] * queue.shards
        self._queue = queue
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._good_until_s = [0.0] * queue.shards
        # What a server's clock shows beyond our monotonic one.
        self._ahead_ms = [clock.now_ms() - int(clock.monotonic() * 1000)] * queue.shards
        self._stopped: list[frozenset[str]] = [frozenset()] * queue.shards
        self._run = [""] * queue.shards
        # Counts the servers met: what was noted at one is not known to the next.
        self.servers = [0] * queue.shards
        self._told = [""] * queue.shards
        self._ticked_s = [0.0] * queue.shards
        self._recent: deque[Told] = deque()
        self.off = [False] * queue.shards
        # Gives a server what it has lost (the publisher's); False: not all of it yet.
        self.bring_back: BringBack | None = None
        self._bringing: list[asyncio.Task[bool] | None] = [None] * queue.shards

    def may_start(self, shard: int, job: str) -> bool:
        """Tell whether a request of this job may leave now."""
        return (
            not self.is_draining
            and not self.off[shard]
            and job not in self._stopped[shard]
            and self._clock.monotonic() < self._good_until_s[shard]
        )

    def server_ms(self, shard: int) -> int:
        """Return what a shard's server has on its clock, by the last tick: ours may be wrong."""
        return self._ahead_ms[shard] + int(self._clock.monotonic() * 1000)

    def let_go(self, shard: int, job: str, asked_s: float) -> None:
        """Note that a server let a claim go, asked at `asked_s`: the last tick did not know yet.

        Without it what is claimed in the moment that a hold ends would only be handed back.
        """
        if asked_s >= self._ticked_s[shard]:
            self.off[shard] = False
            self._stopped[shard] -= {job}

    def may_claim(self, shard: int) -> bool:
        """Tell whether a claim could be begun now: without a lease it would only go back."""
        now_s = self._clock.monotonic()
        return now_s < self._good_until_s[shard] and now_s >= self.unreachable_until_s

    def park_endpoint(self, hold_s: float, hold_max_s: float) -> None:
        """Read no claims for a while, since Graph cannot be reached; longer while it stays so."""
        now_s = self._clock.monotonic()
        if self.unreachable_until_s > now_s:
            return
        if not self._unreachable_s:
            self._unreachable_since_s = now_s
        self._unreachable_s = min(max(hold_s, 2 * self._unreachable_s), hold_max_s)
        self.unreachable_until_s = now_s + self._unreachable_s
        is_long = now_s - self._unreachable_since_s >= ALARM_S
        tell = _log.error if is_long else _log.warning
        tell("graph.unreachable", for_s=self._unreachable_s)

    def reached(self) -> None:
        """Note that Graph has answered: whatever it said, it is there again."""
        if self._unreachable_s:
            self._unreachable_s = self.unreachable_until_s = 0.0
            _log.info("graph.reached")

    def take(self, claim: Claim) -> None:
        """Note a claim as in hand, so that anti-entropy leaves it alone."""
        self.in_hand[claim.shard][claim.entry] = claim

    def drop(self, claim: Claim) -> None:
        """Forget a claim."""
        self.in_hand[claim.shard].pop(claim.entry, None)
        self.in_the_air.pop(claim.entry, None)

    def remember(self, claim: Claim, facts: bytes, record: bytes) -> None:
        """Keep facts for 10 s, to be told again to another server.

        Until this moment an answered request counts as in the air: between the two nobody would
        tell of it.
        """
        now = self._clock.monotonic()
        self._recent.append(Told(now, claim, facts, record))
        air = self.in_the_air.get(claim.entry, {})
        for at in range(0, len(facts), FACT_BYTES):
            air.pop(int.from_bytes(facts[at : at + 2], "big"), None)
        while self._recent and self._recent[0].at_s < now - REPLAY_S:
            self._recent.popleft()

    async def run(self, stop: asyncio.Event) -> None:
        """Tick on every shard until `stop`; a failed tick only lets the lease run out."""
        every_s = self._settings.worker_tick_ms / 1000
        while not stop.is_set():
            await asyncio.gather(*(self._tick(shard) for shard in range(self._queue.shards)))
            await self._clock.sleep(every_s)

    async def _tick(self, shard: int) -> None:
        sent_s, shards = self._clock.monotonic(), self._queue.shards
        claims = self.in_hand[shard]
        try:
            ticked = await self._queue.tick(
                shard,
                self.worker,
                # None of them is free for what is released from now on.
                slots=0 if self.is_draining else self._settings.worker_slots // shards or 1,
                told=self._told[shard],
                entries=list(claims),
                jobs=sorted({claim.job for claim in claims.values()}),
                unreachable=self._unreachable_s > 0,
                stale=self.is_stale,
            )
        except QueueError:
            return
        self._apply(shard, ticked, sent_s)
        if self._run[shard] != self._told[shard] or not self._told[shard]:
            await self._tell_again(shard)

    def _apply(self, shard: int, ticked: Ticked, sent_s: float) -> None:
        if self.is_wiped[shard] and not ticked.wiped and self._recent:
            # The jobs were rebuilt from what was logged by then. What was told of them meanwhile
            # went past Redis to the archive: it is told again, else the two never agree.
            self._told[shard] = _NOBODY
        self.is_wiped[shard] = ticked.wiped
        if self._run[shard] not in ("", ticked.run):
            self.servers[shard] += 1
        self._run[shard] = ticked.run
        self._stopped[shard] = frozenset(ticked.stop)
        self.off[shard] = ticked.off
        self.last_good_s = self._ticked_s[shard] = self._clock.monotonic()
        self._ahead_ms[shard] = ticked.now_ms - int(self.last_good_s * 1000)
        if not ticked.wiped:
            lease_s = self._settings.worker_lease_ms / 1000
            self._good_until_s[shard] = sent_s + lease_s - LEASE_MARGIN_S
        for name in ticked.reaped:
            self._metrics.workers_reaped_total.inc()
            _log.warning("worker.reaped", reaped=name)

    async def _tell_again(self, shard: int) -> None:
        """Tell another server the outcomes of the last 10 s and the intents in the air.

        A job that it has lost is restored first: the intents of a job that nobody knows are told to
        nobody, and whoever restored it later would have them sent a second time. The shard is held
        until all is told.
        """
        run = self._run[shard]
        if self._told[shard]:
            recent = [told for told in self._recent if told.claim.shard == shard]
            claims = list(self.in_hand[shard].values())
            jobs = {told.claim.job for told in recent} | {claim.job for claim in claims}
            try:
                if not self.is_wiped[shard] and not await self._are_there(shard, sorted(jobs)):
                    return
                _log.warning("worker.tells_again", shard=shard)
                # Together, that is 64 a round trip: one after another, ten seconds of facts took
                # longer than the shard is held, and no tick went out meanwhile.
                calls = [
                    self._queue.report(
                        self.worker, told.claim, facts=told.facts, record=told.record
                    )
                    for told in recent
                ]
                for claim in claims:
                    air = self.in_the_air.get(claim.entry, {})
                    facts = b"".join(Fact(i, State.INTENT, a).pack() for i, a in air.items())
                    if facts:
                        calls.append(self._queue.report(self.worker, claim, facts=facts))
                for lost in await asyncio.gather(*calls, return_exceptions=True):
                    if isinstance(lost, BaseException):
                        raise lost
            except QueueError:
                return
        self._told[shard] = run

    async def _are_there(self, shard: int, jobs: list[str]) -> bool:
        """Tell whether the shard has been given what it lacks."""
        if self.bring_back is None:
            return True
        # Beside the ticks, which must go on while PostgreSQL is asked.
        bringing = self._bringing[shard]
        if bringing is None:
            self._bringing[shard] = asyncio.create_task(self.bring_back(shard, jobs))
            return False
        if not bringing.done():
            return False
        self._bringing[shard] = None
        return bringing.result()
