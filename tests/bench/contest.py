"""A peer's turn: its queue filled, one worker process that sends, the same meters as ours."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final, NamedTuple

from shared.clock import Clock
from shared.embedded.children import Child
from shared.embedded.valkey import Valkey
from tests.bench import machine
from tests.bench.figures import ARQ, BULLMQ, SAQ, SAQ_CHUNK, STREAQ, TASKIQ, Round
from tests.bench.peers.prepare import HOME, Prepared, prepare
from tests.bench.rig import SETTLE_S, FarSide, Rig, StalledError, printed, read_meters, used_memory

_START_S: Final = 30.0
_ENQUEUE_S: Final = 180.0


class Peer(NamedTuple):
    """A contender that is not ours.

    Attributes:
        name: of its line in the tables.
        package: what `prepare` installs.
        chunk: recipients a job.
        share: of the messages asked for; a slow one has its median from fewer.
    """

    name: str
    package: str
    chunk: int = 1
    share: float = 1.0


PEERS: Final = (
    Peer(BULLMQ, "bullmq"),
    Peer(SAQ, "saq", share=0.5),
    Peer(SAQ_CHUNK, "saq", chunk=50),
    Peer(ARQ, "arq", share=0.5),
    Peer(TASKIQ, "taskiq", share=0.5),
)
BULLMQ_PEER: Final = PEERS[0]
STREAQ_PEER: Final = Peer(STREAQ, "streaq")
_prepared = cache(prepare)


def ready(peer: Peer) -> Prepared:
    """Return how to start a peer; it is installed when first asked for."""
    return _prepared(peer.package)


class Lane:
    """One peer on a Valkey of its own.

    Args:
        peer: who.
        rig: where its folder is.
        valkey: empty.
        far: where it sends.
        concurrency: messages at once.
        rate: messages per second for a peer that can be told; 0 = as many as it can.
    """

    def __init__(
        self, peer: Peer, rig: Rig, valkey: Valkey, far: FarSide, concurrency: int, rate: int
    ) -> None:
        """Start nothing yet."""
        self.peer, self.valkey, self.far = peer, valkey, far
        self._folder = valkey.folder
        self._children: list[Child] = []
        self._env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(rig.folder),
            "NODE_ENV": "production",
            "BENCH_HOME": str(HOME),
            "BENCH_REDIS": valkey.url,
            "BENCH_ORIGIN": far.origin,
            "BENCH_CONCURRENCY": str(concurrency),
            "BENCH_CHUNK": str(peer.chunk),
            "BENCH_RATE": str(rate),
        }

    def start(self, *words: str) -> Child:
        """Start its runner with `words`."""
        name = f"{self.peer.package}-{len(self._children)}"
        child = Child(name, [*ready(self.peer).command, *words], self._folder, self._env)
        child.start()
        self._children.append(child)
        return child

    async def enqueue(self, count: int, *words: str) -> dict[str, Any]:
        """Fill its queue; return what it tells of that."""
        child = self.start("enqueue", str(count), *words)
        told = await printed(child, "ENQUEUED ", _ENQUEUE_S)
        await child.wait(5)
        return told

    async def begin(self) -> Child:
        """Start its worker; return it when the first message has come."""
        child = self.start("work")
        clock = Clock()
        end_s = clock.monotonic() + _START_S
        while not self.far.seen().total:
            if not child.is_running or clock.monotonic() > end_s:
                raise StalledError(f"{self.peer.name} sent nothing: {child.tail()[-300:]}")
            await clock.sleep(0.02)
        return child

    async def send(self, count: int) -> dict[str, float | None]:
        """Send what is queued; return what each thousand took, from the first message on."""
        child = await self.begin()
        first = self.far.seen().total
        before = await read_meters([child.pid], self.valkey)
        await self.far.has_seen(count)
        await Clock().sleep(SETTLE_S)
        seen = self.far.seen()
        after = await read_meters([child.pid], self.valkey)
        return {
            **before.cost(after, seen.total - first),
            "rate": seen.rate,
            "rss_mb": machine.rss_mb(child.pid),
        }

    async def kill(self, child: Child) -> None:
        """End one that it has started at once, its own children too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.kill()

    async def close(self) -> None:
        """End all that it has started."""
        for child in self._children:
            await self.kill(child)


@asynccontextmanager
async def lane(
    rig: Rig, peer: Peer, far: FarSide, *, concurrency: int = 100, rate: int = 0
) -> AsyncIterator[Lane]:
    """Give a peer an empty Valkey and a far side that has seen nothing."""
    async with rig.fresh_valkey() as valkey:
        made = Lane(peer, rig, valkey, far, concurrency, rate)
        far.forget()
        try:
            yield made
        finally:
            await made.close()


async def compete(
    rig: Rig,
    peer: Peer,
    far: FarSide,
    turn: int,
    messages: int,
    *,
    concurrency: int = 100,
    rate: int = 0,
) -> Round:
    """Have a peer send; what keeps it from that is its round."""
    if why := ready(peer).why:
        return Round(peer.name, turn, not_run=why)
    count = max(peer.chunk, int(messages * peer.share) // peer.chunk * peer.chunk)
    try:
        async with lane(rig, peer, far, concurrency=concurrency, rate=rate) as its:
            before = await used_memory(its.valkey)
            await its.enqueue(count)
            size = round((await used_memory(its.valkey) - before) / count, 1)
            return Round(peer.name, turn, {**await its.send(count), "bytes_per_recipient": size})
    except StalledError as error:
        return Round(peer.name, turn, not_run=str(error))
