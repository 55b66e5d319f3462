"""What a message costs: a worker and Valkey against the same client alone, in turns, in one run."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis.asyncio

from shared.archive import Archive
from shared.clock import Clock
from shared.embedded.children import is_open
from shared.embedded.valkey import Valkey
from shared.ids import Ids
from shared.models import Chunk, JobSpec
from shared.queue import Queue
from tests.conftest import ROOT
from tests.e2e.stack import Stack, stack, workers_are_up
from tests.integration.test_worker import MESSAGE, numbers

pytestmark = pytest.mark.slow
COUNT, ROUNDS = 10_000, 4
TICKS = os.sysconf("SC_CLK_TCK")
__all__ = ["stack"]


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def alone(client: str, origin: str) -> float:
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "tests/bench/client_alone.py"), client, origin, str(COUNT),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    out, _ = await child.communicate()
    return float(out)


@pytest.mark.parametrize("client", ["aiohttp", "thin"])
async def test_a_worker_beside_its_client_alone(
    stack: Stack, valkey: Valkey, eventually: Callable[..., Awaitable[Any]], client: str
) -> None:
    stack.processes.environ["LOG_LEVEL"] = "warning"
    # One server for both: what differs between the two is the product.
    _, origin, stack.ledger = stack.processes.sandbox(
        "--rate", "1000000", "--latency", "0", "--no-fsync"
    )
    await eventually(lambda: is_open(int(origin.rsplit(":", 1)[1])), within_s=20)
    stack.origin = origin
    worker = stack.add_worker(
        WORKER_SLOTS="64", WORKER_LEASE_MS="10000", WORKER_TICK_MS="200", GRAPH_CLIENT=client
    )
    await eventually(lambda: workers_are_up(stack, 1), within_s=30)
    rows = []
    assert valkey.child is not None
    for turn in range(ROUNDS):
        lone = await alone(client, origin)
        before = cpu_s(worker.pid), cpu_s(valkey.child.pid)
        job = await stack.submit(numbers(COUNT, 393331000000 + COUNT * turn))
        await eventually(lambda job=job: stack.is_over(job), within_s=60, every_s=0.2)
        await Clock().sleep(1.0)
        after = cpu_s(worker.pid), cpu_s(valkey.child.pid)
        spent = [(b - a) * 1000 / COUNT for a, b in zip(before, after, strict=True)]
        rows.append((lone, *spent))
    lone, work, server = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"\nCPU s per 1,000 messages, medians of {ROUNDS} rounds of {COUNT:,}, {client}:")  # noqa: T201
    print(f"  client alone {lone:.3f} · worker {work:.3f} · Valkey {server:.3f}")  # noqa: T201
    ratios = [w / c for c, w, _ in rows]
    print(f"  worker / client alone: {statistics.median(ratios):.2f}")  # noqa: T201
    # The client alone sends to the same numbers again and again; jobs have their own.
    assert {n for to, n in stack.accepted().items() if to.startswith("+39333")} == {1}


@pytest.fixture
async def raw(valkey: Valkey) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(valkey.url)
    yield client
    await client.aclose()


async def test_bytes_of_a_queued_recipient(
    queue: Queue, archive: Archive, raw: redis.asyncio.Redis
) -> None:
    assert archive is not None
    await queue.give_born(0, "b")
    before = (await raw.info("memory"))["used_memory"]
    count, size = 50_000, 50
    phones = [393331000000 + i * 7 for i in range(count)]
    encoded = [msgspec.msgpack.encode(Chunk(phones[i : i + size])) for i in range(0, count, size)]
    job = Ids().job_id(0)
    await queue.stage(job, 0, encoded)
    await queue.submit(JobSpec(job, "s", "u", count, size, count, count, MESSAGE, []))
    after = (await raw.info("memory"))["used_memory"]
    print(f"\n{(after - before) / count:.1f} bytes of Redis per queued recipient")  # noqa: T201
    assert (after - before) / count < 30
