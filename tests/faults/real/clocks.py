"""G14: one process's clock jumps by an hour or a day while it sends, each alone.

Needs libfaketime (`apt install libfaketime`).
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Final

from shared.embedded.valkey import wait_open
from tests import oracle
from tests.e2e.stack import KEY, KEY_ID, most_in
from tests.faults.real.door import ask
from tests.faults.real.rig import NotHere, Rig, require
from tests.faults.real.workers import FINISH_S

COUNT: Final = 2000
RATE: Final = 400
JUMPS_S: Final = (3600, -86_400, 86_400, -3600)
# Further away than any run takes, nearer than any jump goes.
FAR_MS: Final = 1_800_000
# "One tick", and what a busy machine adds to it.
TICK_S: Final = 0.6
REVOKED_S: Final = 2


def library() -> Path:
    """Return libfaketime's path: LIBFAKETIME, else where Debian puts it."""
    given = os.environ.get("LIBFAKETIME", "")
    places = [Path(given)] if given else Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    for place in places:
        if place.exists():
            return place
    raise NotHere("no libfaketime")


class Hands:
    """A clock that can be moved, of the processes that are started with `variables`."""

    def __init__(self, rig: Rig) -> None:
        """Let it go right for now; raise NotHere where no clock can be moved."""
        self._control = rig.folder / "clock"
        self._control.write_text("+0\n")
        self.variables = {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._control),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, by_s: int) -> None:
        """Move the wall clock, not the monotonic one."""
        self._control.write_text(f"{by_s:+d}\n")


async def jumps(rig: Rig, chance: Random, index: int) -> dict[str, float]:
    """By turns Valkey's, a worker's, an API's; each by every jump in twelve runs."""
    act = (_valkey, _worker, _api)[index % 3]
    # The first six have each process once forward and once back.
    by_s = JUMPS_S[(index // 3 + index % 3) % 4]
    figures = await act(rig, chance, Hands(rig), by_s)
    found = await rig.verdict()
    require(not found, "; ".join(found[:5]))
    return figures


async def _time(rig: Rig) -> int:
    async with rig.redis() as client:
        return int((await client.time())[0])


async def _valkey(rig: Rig, chance: Random, hands: Hands, by_s: int) -> dict[str, float]:
    """Nobody is reaped, nothing is sent twice or too fast, ids rise."""
    try:
        await rig.valkey.stop()
        child = rig.valkey.child
        assert child is not None
        child.env |= hands.variables
        child.start()
        await wait_open(child, rig.valkey.port)
        await rig.workers(2)
        job = await rig.submit(COUNT, "fast")
        await rig.has_sent(job, chance.randrange(100, COUNT // 2))
        reaped, before = rig.logged("worker.reaped"), await rig.queue.last_event(0)
        jumped_s, was_s = rig.clock.monotonic(), await _time(rig)
        hands.jump(by_s)
        require(abs(await _time(rig) - was_s - by_s) < 60, "the clock did not jump")
        took_s = await rig.goes_on(jumped_s, 5, "the clock jumped")
        await rig.has_ended(job, COUNT / RATE + FINISH_S)
        unknown = await rig.ended_well(job)
        rig.bounded(unknown, 0)
        require(rig.logged("worker.reaped") == reaped, "a worker that lives was reaped")
        after = await rig.queue.last_event(0)
        ids = [[int(part) for part in event.split("-")] for event in (before, after)]
        require(ids[0] < ids[1], f"ids fell from {before} to {after}")
        most = most_in(sorted(rig.times()), 1.0)
        # A second's rate, the burst, and what a worker that waits may have in hand (I9).
        require(most <= RATE * (1 + 0.25 + 1.2) + 2 * 50, f"{most} in a second at {RATE}/s")
        # While this server is still there.
        found = await rig.verdict()
        require(not found, "; ".join(found[:5]))
        return {"unknown": unknown, "worst pause s": took_s, "worst second": most}
    finally:
        await rig.put_away()
        await rig.valkey.stop()
        await rig.valkey.start()


async def _worker(rig: Rig, chance: Random, hands: Hands, by_s: int) -> dict[str, float]:
    """Nothing ends or begins more than a tick early or late by the only worker's clock."""
    rig.add_worker(**hands.variables)
    await rig.workers(1)
    began_s, began_ms = rig.clock.monotonic(), rig.clock.now_ms()
    far = await rig.submit(COUNT, "fast", expires_ms=began_ms + FAR_MS)
    near = await rig.submit(COUNT // 2, "slow", expires_ms=began_ms + 6000)
    later = await rig.submit(50, "main", scheduled_ms=began_ms + 5000)
    await rig.has_sent(far, chance.randrange(100, COUNT // 2))
    hands.jump(by_s)
    jumped_s = rig.clock.monotonic()
    took_s = await rig.goes_on(jumped_s, 5, "the clock jumped")
    for job in (far, near, later):
        await rig.has_ended(job, 6 + FINISH_S)
    unknown = await rig.ended_well(far) + await rig.ended_well(later)
    rig.bounded(unknown, 0)
    times = {job: [x.t_mono for x in rig.lines() if x.job == job] for job in (near, later)}
    late_s = times[near][-1] - began_s - 6
    require(abs(late_s) <= TICK_S, f"the last before the deadline went {late_s:+.1f} s from it")
    start_s = times[later][0] - began_s - 5
    require(-0.1 <= start_s <= TICK_S + 1, f"the first went {start_s:+.1f} s from its time")
    return {
        "unknown": unknown,
        "worst pause s": took_s,
        "worst start after its time s": start_s,
        "worst past a deadline s": late_s,
    }


async def _api(rig: Rig, chance: Random, hands: Hands, by_s: int) -> dict[str, float]:
    """What was submitted before and after the jump is sent; a key that is revoked is refused."""
    rig.start_api(**hands.variables)
    await rig.apis_ready(1)
    await rig.workers(2)
    origin = rig.apis[0][1]
    before = await _submit(rig, COUNT // 2, "before")
    await rig.has_sent(before, chance.randrange(100, COUNT // 4))
    hands.jump(by_s)
    jumped_s = rig.clock.monotonic()
    after = await _submit(rig, 200, "after")
    first_s = await rig.starts(after, set(range(200)), jumped_s, 5) - jumped_s
    for job in (before, after):
        await rig.has_ended(job, 6 + FINISH_S)
    unknown = await rig.ended_well(before) + await rig.ended_well(after)
    rig.bounded(unknown, 0)
    # What it has just learned of the key must not last for as long as the clock goes back.
    hands.jump(max(by_s, 0))
    require((await ask(origin, KEY, "after", [], "main")).status != 401, "a good key is refused")
    hands.jump(min(by_s, 0))
    await rig.stack.archive.revoke_key(KEY_ID)

    async def is_refused() -> bool:
        return (await ask(origin, KEY, "after", [], "main")).status == 401

    revoked_s = rig.clock.monotonic()
    await rig.until(is_refused, REVOKED_S, "a revoked key is refused", 0.1)
    return {
        "unknown": unknown,
        "worst start after the jump s": first_s,
        "worst time of a revoked key s": rig.clock.monotonic() - revoked_s,
    }


async def _submit(rig: Rig, count: int, key: str) -> str:
    phones = rig.phones(count)
    answer = await ask(rig.apis[0][1], KEY, key, phones, "main")
    require(answer.status == 202, f"a submission was answered {answer.status} {answer.code}")
    job = str(answer.body["jobId"])
    rig.accepted.append(oracle.Accepted(job, phones))
    return job
