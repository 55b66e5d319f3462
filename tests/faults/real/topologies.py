"""Sentinel and Cluster for real: a primary that dies and is replaced, a slot that moves."""

from __future__ import annotations

import contextlib
from random import Random
from typing import Final

import redis.exceptions

from tests.faults.real.rig import Rig, require
from tests.faults.real.stores import COUNT, PUBLISH_S
from tests.faults.real.workers import FINISH_S
from tests.fleet import Guarded, Sharded

# What two workers with answers of 3 s send in about six seconds.
SLOW_COUNT: Final = 300
LATE_COUNT: Final = 100
GAP_S: Final = 5  # until it can be written again


async def _writes_again(rig: Rig, since_s: float, what: str) -> float:
    """Wait until the door can write; return how long after `since_s` that was."""

    async def can_write() -> bool:
        await rig.queue.probe()
        return True

    await rig.until(can_write, 3 * GAP_S, f"written again after {what}")
    took_s = rig.clock.monotonic() - since_s
    require(took_s <= GAP_S, f"{took_s:.1f} s until it could be written after {what}")
    return took_s


async def _is_led(rig: Rig, dead: int) -> bool:
    with contextlib.suppress(redis.exceptions.RedisError):
        return await rig.look() != dead
    return False


async def sentinel(rig: Rig, chance: Random, index: int) -> dict[str, float]:
    """G15s: the primary dies and Sentinel promotes its replica.

    Every other time with answers of 3 s, after the link to the replica was cut 0.8 s before, and
    with a job submitted 0.3 s before, of which the replica knows nothing. Three times of four the
    Sentinel that everybody asks first dies with the primary, as on one machine.
    """
    fleet = rig.fleet
    assert isinstance(fleet, Guarded)
    slow, is_cut = index % 2 == 1, index % 4 in (1, 2)
    if slow:
        await rig.stack.configure(latency_ms=3000, latency_p99_ms=3500)
    await rig.workers(2)
    job = await rig.submit(SLOW_COUNT if slow else COUNT, "main" if slow else "fast")
    if slow:
        await rig.until(lambda: rig.asked(job) > 100, 30, "100 are asked for")
    else:
        await rig.has_sent(job, chance.randrange(100, COUNT // 2))
    late = ""
    if is_cut:
        await fleet.cut_link()
        await rig.clock.sleep(0.5)
        late = await rig.submit(LATE_COUNT, "main")
        await rig.clock.sleep(0.3)
    dead = fleet.primary
    await fleet.kill(dead)
    if index % 4 >= 1:
        await fleet.lose_sentinel()
    killed_s = rig.clock.monotonic()
    writes_s = await _writes_again(rig, killed_s, "a fail-over")
    await rig.until(lambda: _is_led(rig, dead), GAP_S, "Sentinel names the next one")
    took_s = await rig.goes_on(killed_s + writes_s, GAP_S, "a fail-over")
    if slow:  # what was in the air has shown what it had to
        await rig.stack.configure(latency_ms=50, latency_p99_ms=100)
    await rig.has_ended(job, 20 + FINISH_S)
    unknown = await rig.ended_well(job)
    if late:
        await rig.has_ended(late, PUBLISH_S + 10 + FINISH_S)
        unknown += await rig.ended_well(late)
    rig.bounded(unknown, 0)
    return {"unknown": unknown, "worst gap of writes s": writes_s, "worst pause s": took_s}


async def cluster(rig: Rig, chance: Random, _index: int) -> dict[str, float]:
    """G16: the shard's slot moves to another node, and its owner dies, in either order."""
    assert isinstance(rig.fleet, Sharded)
    await rig.workers(2)
    job = await rig.submit(2 * COUNT, "fast")
    acts = chance.sample([_move, _lose], 2)
    gaps: dict[str, float] = {}
    for turn, act in enumerate(acts):
        await rig.has_sent(job, chance.randrange(100, COUNT // 2) + turn * COUNT)
        require(not await rig.is_over(job), "the job was over before the fault")
        began_s = rig.clock.monotonic()
        name = await act(rig, rig.fleet)
        writes_s = await _writes_again(rig, began_s, name)
        took_s = await rig.goes_on(began_s + writes_s, GAP_S, name)
        gaps |= {f"worst gap, {name} s": writes_s, f"worst pause, {name} s": took_s}
    await rig.has_ended(job, 20 + FINISH_S)
    unknown = await rig.ended_well(job)
    rig.bounded(unknown, 0)
    return {"faults": 2, "unknown": unknown, **gaps}


async def _move(rig: Rig, fleet: Sharded) -> str:
    taker = await fleet.move()

    async def has_moved() -> bool:
        return await rig.look() == taker

    await rig.until(has_moved, GAP_S, "the slot has moved")
    return "a moved slot"


async def _lose(rig: Rig, fleet: Sharded) -> str:
    dead = await rig.look()
    await fleet.kill(dead)
    await rig.until(lambda: _is_led(rig, dead), GAP_S, "a replica was promoted")
    return "a lost master"
