"""A fixed number of slots, each with at most one claim; one reader a shard; drain on SIGTERM."""

from __future__ import annotations

import asyncio
from typing import Final

from shared.errors import QueueError
from shared.logs import get
from shared.models import Begun, Claim, Go, Wait
from worker.executor import Executor, Tools

READ_MAX: Final = 64  # a reply is read whole under one time-out (pitfalls R5)
_PAUSE_S: Final = 0.5
_log = get("worker.pool")


class Pool:
    """The slots of one worker process.

    Args:
        tools: what every run of a claim borrows.
        slots: claims at once, over all shards.
    """

    def __init__(self, tools: Tools, slots: int) -> None:
        """Begin with every slot free."""
        self._t = tools
        shards = tools.queue.shards
        self._free = [max(1, slots // shards)] * shards
        self._is_free = [asyncio.Event() for _ in range(shards)]
        self._running: set[asyncio.Task[None]] = set()
        self._executors: set[Executor] = set()
        self.last_read_s = tools.clock.monotonic()

    @property
    def busy(self) -> int:
        """Return how many claims are in hand."""
        return len(self._running)

    @property
    def in_the_air(self) -> int:
        """Return how many requests to Graph wait for their answer."""
        return sum(executor.in_the_air for executor in self._executors)

    async def run(self, stop: asyncio.Event) -> None:
        """Claim and run until `stop`; then let the answers come in, and leave."""
        shards = range(self._t.queue.shards)
        await asyncio.gather(*(self._read(shard, stop) for shard in shards))
        self._t.pulse.is_draining = True
        while self._running:
            await asyncio.wait(self._running)
        await asyncio.gather(*(self._leave(shard) for shard in shards))
        _log.info("worker.drained")

    async def _leave(self, shard: int) -> None:
        for _ in range(10):
            try:
                if await self._t.queue.leave(shard, self._t.pulse.worker):
                    return
            except QueueError:
                await self._t.clock.sleep(_PAUSE_S)

    async def _read(self, shard: int, stop: asyncio.Event) -> None:
        t = self._t
        block_ms = t.settings.worker_block_ms
        while not stop.is_set():
            self.last_read_s = t.clock.monotonic()
            t.pulse.is_stale = not t.listed.is_fresh(self.last_read_s)
            if t.pulse.is_stale:
                # Nobody knows well enough by now who may not be written to.
                await self._room(shard)
                continue
            if self._free[shard] == 0 or not t.pulse.may_claim(shard):
                await self._room(shard)
                continue
            try:
                # Never cancelled: a reply that is on its way would be lost (pitfalls R4).
                claims = await t.queue.claim(
                    shard, t.pulse.worker, min(READ_MAX, self._free[shard]), block_ms
                )
                for claim in claims:
                    t.pulse.take(claim)
                await self._begin(shard, claims, stop)
            except QueueError as error:
                _log.warning("queue.lost", why=str(error))
                await t.clock.sleep(_PAUSE_S)

    async def _room(self, shard: int) -> None:
        self._is_free[shard].clear()
        handle = asyncio.get_running_loop().call_later(0.2, self._is_free[shard].set)
        await self._is_free[shard].wait()
        handle.cancel()

    async def _begin(self, shard: int, claims: list[Claim], stop: asyncio.Event) -> None:
        t = self._t
        waiting = claims
        while waiting and not stop.is_set():
            begun: list[Begun] = []
            asked_s = t.clock.monotonic()
            try:
                begun = await t.queue.begin(t.pulse.worker, waiting)
            except QueueError:
                await t.clock.sleep(_PAUSE_S)
                continue
            later, wait_ms = [], 0
            for claim, what in zip(waiting, begun, strict=True):
                if isinstance(what, Go):
                    if what.job_state in ("running", "queued"):
                        t.pulse.let_go(shard, claim.job, asked_s)
                    self._start(shard, claim, what)
                elif isinstance(what, Wait):
                    later.append(claim)
                    wait_ms = what.wait_ms
                else:
                    t.pulse.drop(claim)
            waiting = later
            if waiting:
                await t.clock.sleep(min(wait_ms, 250) / 1000)

    def _start(self, shard: int, claim: Claim, go: Go) -> None:
        self._free[shard] -= 1
        task = asyncio.create_task(self._one(shard, claim, go))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _one(self, shard: int, claim: Claim, go: Go) -> None:
        executor = Executor(self._t, claim, go)
        self._executors.add(executor)
        begun_s = self._t.clock.monotonic()
        try:
            await executor.run()
        except Exception:  # noqa: BLE001 - one broken claim must not end the others
            # The claim stays pending: anti-entropy or the reaper brings it back.
            _log.exception("claim.broken", jobId=claim.job, chunk=claim.chunk)
        finally:
            self._executors.discard(executor)
            metrics = self._t.metrics
            metrics.claim_duration_seconds.observe(self._t.clock.monotonic() - begun_s)
            metrics.claims_total.labels(executor.result).inc()
            self._t.pulse.drop(claim)
            self._free[shard] += 1
            self._is_free[shard].set()
