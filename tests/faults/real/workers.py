"""Workers that are killed, frozen and asked to leave while they send."""

from __future__ import annotations

import signal
from random import Random

from tests.faults.real.rig import LEASE_S, Rig, require

COUNT = 2000
WORKERS = 3
KILLS = 4
# Sentence 9: what a job has after its last fault beside its own sending time.
FINISH_S = 3 * LEASE_S + 10


async def kills(rig: Rig, chance: Random, _index: int) -> dict[str, float]:
    """G4: kill -9 of one of three, at moments nobody chose; another takes its place."""
    await rig.workers(WORKERS)
    before = rig.unknown_max
    # Without a limit the three have the whole job in hand at once; at 400/s, a part of it.
    job = await rig.submit(COUNT, chance.choice(["main", "fast", "fast"]))
    claims = intents = done = 0
    for moment in sorted(chance.randrange(COUNT * 9 // 10) for _ in range(KILLS)):
        await rig.has_sent(job, moment)
        if await rig.is_over(job):
            break
        held = await rig.kill_worker(chance.randrange(len(rig.stack.workers)))
        done, claims, intents = done + 1, claims + held[0], intents + held[1]
        rig.add_worker()
    killed_s = rig.clock.monotonic()
    await rig.has_ended(job, 5 + FINISH_S)
    took_s = rig.clock.monotonic() - killed_s
    unknown = await rig.ended_well(job)
    rig.bounded(unknown, rig.unknown_max - before)
    return {
        "faults": done,
        "unknown": unknown,
        "intents held": intents,
        "claims held": claims,
        "worst end after the last kill s": took_s,
    }


async def zombies(rig: Rig, chance: Random, _index: int) -> dict[str, float]:
    """G9: two of three stand still for longer than their lease, and wake up again."""
    await rig.workers(WORKERS)
    before = rig.unknown_max
    job = await rig.submit(COUNT, chance.choice(["main", "fast", "fast"]))
    await rig.has_sent(job, chance.randrange(COUNT * 6 // 10))
    frozen = chance.sample(rig.stack.workers, 2)
    for child in frozen:
        rig.frozen.add(child.pid)
        child.send(signal.SIGSTOP)
    began_s, claims, intents = rig.clock.monotonic(), 0, 0
    for child in frozen:
        held = await rig.held_by(child)
        claims, intents = claims + held[0], intents + held[1]
    rig.unknown_max += intents
    still_s = began_s + LEASE_S + 2 - rig.clock.monotonic()
    await rig.clock.sleep(still_s)
    for child in frozen:
        child.send(signal.SIGCONT)
    woken_s = rig.clock.monotonic()
    await rig.has_ended(job, 5 + FINISH_S)
    took_s = rig.clock.monotonic() - woken_s
    # A zombie that sends does it at once: its lease is over, and so is what it was told.
    await rig.workers(WORKERS)
    unknown = await rig.ended_well(job)
    rig.bounded(unknown, rig.unknown_max - before)
    return {
        "faults": 2,
        "unknown": unknown,
        "intents held": intents,
        "claims held": claims,
        "worst end after waking s": took_s,
    }


async def drains(rig: Rig, chance: Random, _index: int) -> dict[str, float]:
    """G25: SIGTERM under load, answers take a second: nobody unknown, the rest goes on at once."""
    await rig.workers(WORKERS)
    # All of it is in somebody's hands within a moment, and takes ten seconds there.
    job = await rig.submit(COUNT // 2, "main")
    worst_s = rest_s = 0.0
    handed = 0
    for turn, moment in enumerate(sorted(chance.sample(range(1, COUNT // 4), 2))):
        await rig.has_sent(job, moment)
        # One of the first three: who is just being started knows no SIGTERM yet.
        child = rig.stack.workers.pop(chance.randrange(WORKERS - turn))
        held = {first + i for _, first, indices in await rig.claims_of(child) for i in indices}
        asked_s = rig.clock.monotonic()
        child.send(signal.SIGTERM)
        left = await child.wait(12)
        exit_s = rig.clock.monotonic()
        require(left, "a worker did not leave within 12 s of SIGTERM")
        require(child.exit_code == 0, f"exit {child.exit_code}")
        worst_s = max(worst_s, exit_s - asked_s)
        require(worst_s <= 10, f"{worst_s:.1f} s from SIGTERM to the exit")
        # What it had no time to start, and whoever started it.
        starts = {line.position: line.t_mono for line in rig.lines() if line.job == job}
        if rest := held - {at for at, t in starts.items() if t <= asked_s + 0.1}:
            handed += len(rest)
            start_s = await rig.starts(job, rest, exit_s, 1)
            rest_s = max(rest_s, start_s - exit_s)
        rig.add_worker()
    await rig.has_ended(job, 20 + FINISH_S)
    unknown = await rig.ended_well(job)
    rig.bounded(unknown, 0)
    return {
        "faults": 2,
        "unknown": unknown,
        "handed back": handed,
        "worst exit s": worst_s,
        "worst pause of the rest s": rest_s,
    }
