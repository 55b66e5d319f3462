"""G14: Valkey's clock jumps while it sends; needs libfaketime (`apt install libfaketime`)."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Final

from shared.embedded.valkey import wait_open
from tests.e2e.stack import most_in
from tests.faults.real.rig import NotHere, Rig, require
from tests.faults.real.workers import FINISH_S

COUNT: Final = 2000
RATE: Final = 400
JUMPS: Final = {"+1 h": 3600, "-1 h": -3600, "+1 d": 86_400, "-1 d": -86_400}


def library() -> Path:
    """Return libfaketime's path: LIBFAKETIME, else where Debian puts it."""
    given = os.environ.get("LIBFAKETIME", "")
    places = [Path(given)] if given else Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    for place in places:
        if place.exists():
            return place
    raise NotHere("no libfaketime")


async def _time(rig: Rig) -> int:
    async with rig.redis() as client:
        return int((await client.time())[0])


async def jumps(rig: Rig, chance: Random, index: int) -> dict[str, float]:
    """Move the server's clock, not its monotonic one, by an hour or a day, either way."""
    preload, control = library(), rig.folder / "valkey-clock"
    control.write_text("+0\n")
    try:
        await rig.valkey.stop()
        child = rig.valkey.child
        assert child is not None
        child.env |= {
            "LD_PRELOAD": str(preload),
            "FAKETIME_TIMESTAMP_FILE": str(control),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        child.start()
        await wait_open(child, rig.valkey.port)
        await rig.workers(2)
        job = await rig.submit(COUNT, "fast")
        await rig.has_sent(job, chance.randrange(100, COUNT // 2))
        reaped, before = rig.logged("worker.reaped"), await rig.queue.last_event(0)
        jump_s = [*JUMPS.values()][index % 4]
        jumped_s, was_s = rig.clock.monotonic(), await _time(rig)
        control.write_text(f"{jump_s:+d}\n")
        require(abs(await _time(rig) - was_s - jump_s) < 60, "the clock did not jump")
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
        found = await rig.verdict()
        require(not found, "; ".join(found[:5]))
        return {"unknown": unknown, "worst pause s": took_s, "worst second": most}
    finally:
        await rig.put_away()
        await rig.valkey.stop()
        await rig.valkey.start()
