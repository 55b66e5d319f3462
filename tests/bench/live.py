"""10,000 readers of one job on one API process, eight events: how late do they come to all?"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from typing import Final

from shared.clock import Clock
from tests.bench.accept import until_ready
from tests.bench.figures import THIN, Round
from tests.bench.machine import cpu_s, rss_mb
from tests.bench.rig import Asked, Rig, StalledError, System
from tests.conftest import ROOT
from tests.e2e.stack import KEY

READERS: Final = 10_000
EVENTS: Final = 8
BETWEEN_S: Final = 5.0  # all have one before the next could replace it
OPEN_S: Final = 240.0
ALL_MAY: Final = {
    "SSE_PER_USER": "100000",
    "SSE_PER_IP": "100000",
    "CONNECTIONS_PER_IP": "100000",
    "LOG_LEVEL": "warning",
}


class Readers:
    """The readers, as a process that is told one line and answers with one."""

    def __init__(self, process: Process) -> None:
        """Take what `open` has started."""
        self._process = process

    @classmethod
    async def open(cls, port: int, job: str, count: int) -> Readers:
        """Start them, and wait until each has its first frame."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.subscribers",
            str(port), f"/realtime/bulk/{job}", KEY, str(count),
            stdin=PIPE, stdout=PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        made = cls(process)
        try:
            await made._told(OPEN_S)
        except BaseException:
            await made.close()
            raise
        return made

    async def late(self, caused: dict[str, float]) -> dict[str, float]:
        """Return how late the frames of events came, event id → when it was caused."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(caused).encode() + b"\n")
        return await self._told(30)

    async def close(self) -> None:
        """End them."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def _told(self, within_s: float) -> dict[str, float]:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise StalledError(f"not within {within_s:g} s: the readers") from error
        if not line:
            raise StalledError("the readers have ended")
        found: dict[str, float] = json.loads(line)
        return found


async def cause(system: System, job: str) -> dict[str, float]:
    """Pause and resume a job in turns; return when each event was caused."""
    clock, caused = Clock(), {}
    for number in range(EVENTS):
        at_s = clock.monotonic()
        done = await system.stack.queue.control(job, "resume" if number % 2 else "pause")
        if done.kind != "ok":
            raise StalledError(f"no event: {done}")
        caused[done.event] = at_s
        await clock.sleep(BETWEEN_S)
    return caused


async def watched(rig: Rig, asked: Asked) -> AsyncIterator[Round]:
    """Measure; a job that nobody sends changes when it is told to, and only then."""
    async with rig.far_side() as far:
        for turn in range(max(1, asked.rounds // 2)):
            async with rig.system(far) as system:
                yield Round(THIN, turn, await one_turn(system))


async def one_turn(system: System) -> dict[str, float | None]:
    """Open the readers, cause the events, read how late they were."""
    await system.stack.add_key()
    api, origin = await system.stack.add_api(until_ready, **ALL_MAY)
    [job] = await system.submit([1])
    port = int(origin.rsplit(":", 1)[1])
    readers = await Readers.open(port, job, READERS)
    try:
        before_s = cpu_s(api.pid)
        caused = await cause(system, job)
        used_s = cpu_s(api.pid) - before_s
        late = await readers.late(caused)
    finally:
        await readers.close()
    return {
        "p50_s": late["p50_s"],
        "p99_s": late["p99_s"],
        "max_s": late["max_s"],
        "missing": READERS * EVENTS - late["frames"],
        "cpu_s_per_1000": round(used_s * 1000 / max(1.0, late["frames"]), 4),
        "rss_mb": rss_mb(api.pid),
    }
