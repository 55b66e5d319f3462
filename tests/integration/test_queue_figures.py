"""Figures of the whole fleet at the Redis door: switched off, in flight, waiting, draining."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from shared import keys
from shared.clock import Clock
from shared.ids import Ids
from shared.metrics import WorkerMetrics
from shared.models import Chunk, Go, Intent, JobSpec, Waiting
from shared.queue import Queue
from shared.settings import Settings
from worker.tick import Pulse


async def test_a_switch_holds_until_its_process_is_gone_or_an_operator_lifts_it(
    queue: Queue,
) -> None:
    await queue.give_born(0, "b")
    assert not await queue.is_off()
    await queue.switch(0, "worker-a", 60_000)
    assert await queue.is_off()
    await queue.switch(0, "worker-a", 0)
    assert not await queue.is_off()
    # A process that died does not lift its mark: it runs out, whoever looks.
    await queue._commands[0].zadd(f"{keys.tag(0)}off", {"worker-b": Clock().now_ms() - 1})
    assert not await queue.is_off()
    await queue.switch(0, "", 1)
    assert await queue.is_off()


async def test_claims_nobody_has_are_told_from_those_in_hand(
    queue: Queue, eventually: Callable[..., Awaitable[Any]]
) -> None:
    assert (await queue.waiting(0)).age_ms == 0
    await queue.give_born(0, "b")
    await queue.prepare(0)
    await queue.sender(0, "s1", version=1, rate=0, burst=0, paused=False, why="")
    job = Ids().job_id(0)
    chunks = [msgspec.msgpack.encode(Chunk([15550000000 + 2 * n, 15550000001])) for n in range(2)]
    await queue.stage(job, 0, chunks)
    spec = JobSpec(job, "s1", "u1", 4, 2, 4, 4, b"{}", [], created_ms=1)
    assert (await queue.submit(spec)).kind == "made"
    await queue.tick(0, "w1", slots=4)
    await queue.tick(0, "w2", slots=0)
    claims = await queue.claim(0, "w1", 1, 50)
    begun = (await queue.begin("w1", claims))[0]
    assert isinstance(begun, Go)
    await queue.report("w1", claims[0], intents=Intent(0, 1).pack())
    assert await queue.phases([job, Ids().job_id(0)]) == (1, 0)

    async def aged() -> Waiting | None:
        found = await queue.waiting(0)
        return found if found.age_ms > 20 else None

    found = await eventually(aged)
    assert (found.pending, found.draining) == (1, ["w2"])
    # The oldest entry of the stream is older still, but somebody has it.
    assert len(await queue.claim(0, "w1", 1, 50)) == 1
    assert (await queue.waiting(0))[:2] == (2, 0)


async def test_a_worker_that_drains_is_told_from_those_that_take_more(
    queue: Queue, settings: Settings
) -> None:
    await queue.give_born(0, "b")
    pulse = Pulse(queue, "w1", settings, Clock(), WorkerMetrics(CollectorRegistry()))
    await pulse._tick(0)
    assert (await queue.waiting(0)).draining == []
    pulse.is_draining = True
    await pulse._tick(0)
    assert (await queue.waiting(0)).draining == ["w1"]
