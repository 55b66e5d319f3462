"""What a message costs: client alone, our worker, the peers; flat out, and at 1,000 a second."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Final

from tests.bench.contest import BULLMQ_PEER, PEERS, compete
from tests.bench.figures import AIOHTTP, ALONE, ALONE_AIOHTTP, THIN, Round
from tests.bench.rig import Asked, FarSide, Rig
from tests.conftest import ROOT

CLIENTS: Final = {THIN: "thin", AIOHTTP: "aiohttp"}
ALONES: Final = {ALONE: "thin", ALONE_AIOHTTP: "aiohttp"}
RATE: Final = 1000  # messages per second
LATENCY_MS: Final = 100
PACED_CONCURRENCY: Final = 200  # of a peer: twice what the rate and the latency need
MOST_CONCURRENCY: Final = 20  # requests at once per claim, so that the core is the limit
MOST_SLOTS: Final = 64


async def alone(client: str, far: FarSide, count: int) -> float:
    """Return the CPU seconds per 1,000 messages of a Graph client alone."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.client_alone", client, far.origin, str(count),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    out, _ = await child.communicate()
    return float(out)


async def ours(
    rig: Rig, far: FarSide, name: str, turn: int, count: int, rate: float = 0.0, **extra: str
) -> Round:
    """Have one of our workers send a job, everything on."""
    async with rig.system(far, rate=rate) as system:
        await system.add_workers(GRAPH_CLIENT=CLIENTS[name], **extra)
        jobs = await system.submit([count])
        return Round(name, turn, await system.send(jobs, count))


async def flat_out(rig: Rig, asked: Asked) -> AsyncIterator[Round]:
    """Measure at 0 ms: all in turns, round after round."""
    async with rig.far_side() as far:
        for turn in range(asked.rounds):
            for name, client in ALONES.items():
                cost = await alone(client, far, asked.messages)
                yield Round(name, turn, {"worker_cpu_s_per_1000": cost})
            for name in CLIENTS:
                yield await ours(rig, far, name, turn, asked.messages)
            for peer in PEERS:
                yield await compete(rig, peer, far, turn, asked.messages)


async def paced(rig: Rig, asked: Asked) -> AsyncIterator[Round]:
    """Measure at 100 ms, 1,000 messages/s asked; a peer without a limiter gives what it can."""
    async with rig.far_side(LATENCY_MS) as far:
        for turn in range(asked.rounds):
            for name in CLIENTS:
                yield at_rate(await ours(rig, far, name, turn, asked.messages, RATE))
            for peer in PEERS:
                yield at_rate(
                    await compete(
                        rig, peer, far, turn, asked.messages,
                        concurrency=PACED_CONCURRENCY, rate=RATE,
                    )
                )  # fmt: skip


async def most(rig: Rig, asked: Asked) -> AsyncIterator[Round]:
    """Measure how much one process sends at 100 ms, as many requests at once as it can use."""
    async with rig.far_side(LATENCY_MS) as far:
        for turn in range(asked.rounds):
            yield await ours(
                rig, far, THIN, turn, 2 * asked.messages,
                BULK_CONCURRENCY=str(MOST_CONCURRENCY), WORKER_SLOTS=str(MOST_SLOTS),
            )  # fmt: skip
            yield await compete(
                rig, BULLMQ_PEER, far, turn, 2 * asked.messages,
                concurrency=MOST_CONCURRENCY * MOST_SLOTS,
            )  # fmt: skip


def at_rate(done: Round) -> Round:
    """Add the share of a core that a thousand messages a second take, reached or not.

    >>> at_rate(Round("x", 0, {"worker_cpu_s_per_1000": 0.2})).figures["core_at_1000_per_s"]
    0.2
    """
    # CPU seconds for a thousand, a thousand each second: the figure is the same.
    if "worker_cpu_s_per_1000" in done.figures:
        done.figures["core_at_1000_per_s"] = done.figures["worker_cpu_s_per_1000"]
    return done
