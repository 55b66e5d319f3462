"""kill -9 of the only worker half way, a new one in its place, every default, nothing else to do.

How long it takes until every recipient has been sent to or is known as unknown, and who was lost
or met twice by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from shared.clock import Clock
from tests.bench.contest import PEERS, STREAQ_PEER, Lane, Peer, lane, ready
from tests.bench.figures import ARQ, BULLMQ, SAQ, STREAQ, TASKIQ, THIN, Round
from tests.bench.rig import Asked, FarSide, Rig, StalledError, until

COUNT: Final = 5_000
LATENCY_MS: Final = 100
PAUSE_S: Final = 0.3
WITHIN_S: Final = 120.0
# What `--long` has come to: minutes of waiting for a figure that does not move. None = never.
STORED: Final[dict[str, float | None]] = {
    BULLMQ: 61.0,
    STREAQ: 67.0,
    ARQ: 310.0,
    SAQ: 561.0,
    TASKIQ: None,
}
LONG_S: Final = 700.0  # past the longest of them


async def ours(rig: Rig, far: FarSide, turn: int) -> Round:
    """Kill our worker and see its job to the end."""
    clock = Clock()
    async with rig.system(far) as system:
        await system.add_workers()
        [job] = await system.submit([COUNT])
        await system.release()
        await far.has_seen(COUNT // 2)
        dead = system.stack.workers.pop()
        at_s = clock.monotonic()
        await dead.kill()
        await clock.sleep(PAUSE_S)
        await system.add_workers()
        await until(lambda: system.stack.is_over(job), WITHIN_S, "the job has ended", 0.1)
        took_s = clock.monotonic() - at_s
        tally, seen = (await system.stack.status(job)).tally, far.seen()
    never_sent = max(0, tally.sent - seen.recipients)
    return Round(
        THIN,
        turn,
        {
            "recovery_s": round(took_s, 1),
            "lost": float(COUNT - tally.done + never_sent),
            "duplicates": float(seen.duplicates),
            "unknown": float(tally.unknown),
        },
    )


async def theirs(rig: Rig, peer: Peer) -> Round:
    """Kill a peer's worker and wait until all have been sent to, or `LONG_S`."""
    if why := ready(peer).why:
        return Round(peer.name, 0, not_run=why)
    try:
        async with rig.far_side(LATENCY_MS) as far, lane(rig, peer, far) as its:
            return await kill_half_way(peer, its, far)
    except StalledError as error:
        return Round(peer.name, 0, not_run=str(error))


async def kill_half_way(peer: Peer, its: Lane, far: FarSide) -> Round:
    """Send half, kill, send the rest."""
    clock = Clock()
    await its.enqueue(COUNT)
    child = await its.begin()
    await far.has_seen(COUNT // 2)
    at_s = clock.monotonic()
    await its.kill(child)
    await clock.sleep(PAUSE_S)
    its.start("work")
    took_s: float | None = None
    while clock.monotonic() < at_s + LONG_S:
        if far.seen().recipients == COUNT:
            took_s = round(far.seen().last_s - at_s, 1)
            break
        await clock.sleep(0.2)
    seen = far.seen()
    lost, twice = float(COUNT - seen.recipients), float(seen.duplicates)
    return Round(peer.name, 0, {"recovery_s": took_s, "lost": lost, "duplicates": twice})


async def recovering(rig: Rig, asked: Asked) -> AsyncIterator[Round]:
    """Measure ours in each round; the peers' with `--long`, all at once since they only wait."""
    async with rig.far_side(LATENCY_MS) as far:
        for turn in range(asked.rounds):
            yield await ours(rig, far, turn)
    if not asked.is_long:
        for name, value in STORED.items():
            yield Round(name, 0, {"recovery_s": value}, is_stored=True)
        return
    peers = [peer for peer in (*PEERS, STREAQ_PEER) if peer.chunk == 1]
    for done in await asyncio.gather(*(theirs(rig, peer) for peer in peers)):
        yield done
