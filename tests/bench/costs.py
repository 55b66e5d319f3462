"""Does a message cost more when its job is large, or one of many, or its sender one of many?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from tests.bench.figures import MANY_JOBS, MANY_SENDERS, ONE_JOB, Round
from tests.bench.rig import Asked, FarSide, Rig

EACH: Final = 50  # recipients of a job, where there are many
ALL: Final = 1_000 * EACH


class Shape(NamedTuple):
    """How the same messages are spread."""

    name: str
    sizes: list[int]
    senders: int = 1


SHAPES: Final = (
    Shape(ONE_JOB, [ALL]),
    Shape("5 jobs of 10,000", [10_000] * 5),
    Shape("50 jobs of 1,000", [1_000] * 50),
    Shape("100 jobs of 500", [500] * 100),
    Shape(MANY_JOBS, [EACH] * 1_000),
    Shape("100 senders", [EACH] * 1_000, senders=100),
    Shape(MANY_SENDERS, [EACH] * 1_000, senders=1_000),
)

ENDS: Final = frozenset({ONE_JOB, MANY_JOBS, MANY_SENDERS})


async def spread(rig: Rig, far: FarSide, turn: int, shape: Shape) -> Round:
    """Have one worker send what is spread so."""
    count = sum(shape.sizes)
    async with rig.system(far, senders=shape.senders) as system:
        await system.add_workers()
        jobs = await system.submit(shape.sizes, shape.senders)
        return Round(shape.name, turn, await system.send(jobs, count))


async def costs(rig: Rig, asked: Asked) -> AsyncIterator[Round]:
    """Measure each shape in turns."""
    async with rig.far_side() as far:
        for turn in range(asked.rounds):
            for shape in SHAPES:
                if asked.is_quick and shape.name not in ENDS:
                    continue
                yield await spread(rig, far, turn, shape)
