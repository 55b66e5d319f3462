"""1, 2, 4 and 8 workers where the answer time is the limit, not these cores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from tests.bench import figures
from tests.bench.figures import Round
from tests.bench.rig import Asked, FarSide, Rig

COUNTS: Final = (1, 2, 4, 8)
LATENCY_MS: Final = 100
SLOTS: Final = 4  # of five requests each: 20 at once, 200 messages/s at most


async def grown(rig: Rig, far: FarSide, turn: int, count: int, share: int) -> Round:
    """Have `count` workers send, each its share of the messages."""
    async with rig.system(far) as system:
        await system.add_workers(count, WORKER_SLOTS=str(SLOTS))
        jobs = await system.submit([count * share])
        return Round(figures.workers(count), turn, await system.send(jobs, count * share))


async def scaling(rig: Rig, asked: Asked) -> AsyncIterator[Round]:
    """Measure each number of workers in turns."""
    async with rig.far_side(LATENCY_MS) as far:
        for turn in range(max(1, asked.rounds // 2)):
            for count in COUNTS:
                yield await grown(rig, far, turn, count, asked.messages // 8)
