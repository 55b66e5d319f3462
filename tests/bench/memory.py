"""What a worker occupies after half a million messages; without `--long` after a tenth."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from tests.bench.figures import THIN, Round
from tests.bench.machine import rss_mb
from tests.bench.rig import Asked, Rig

COUNT, JOBS = 50_000, 10
JOBS_SHORT: Final = 1


async def after_many(rig: Rig, asked: Asked) -> AsyncIterator[Round]:
    """Send job after job; a round for each, so that growth would show."""
    async with rig.far_side() as far, rig.system(far) as system:
        await system.add_workers()
        idle_mb = rss_mb(system.stack.workers[0].pid)
        for turn in range(JOBS if asked.is_long else JOBS_SHORT):
            far.forget()
            jobs = await system.submit([COUNT])
            found = await system.send(jobs, COUNT)
            found |= {"idle_rss_mb": idle_mb, "messages": float(COUNT * (turn + 1))}
            yield Round(THIN, turn, found)
