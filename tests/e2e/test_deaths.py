"""Whole processes that die at the wrong moment: nobody lost, nobody twice."""

from __future__ import annotations

import signal

import pytest

from shared.clock import Clock
from shared.embedded.children import is_open
from shared.embedded.valkey import Valkey
from shared.errors import QueueError
from tests.e2e.stack import CONCURRENCY, Eventually, Stack, sent, workers_are_up
from tests.integration.test_worker import numbers


async def test_a_killed_worker_loses_nobody_and_repeats_nobody(
    stack: Stack, eventually: Eventually
) -> None:
    for _ in range(3):
        stack.add_worker()
    await eventually(lambda: workers_are_up(stack, 3), within_s=30)
    job = await stack.submit(numbers(2000, 393331000000), sender="snd_fast")

    async def is_half_way() -> bool:
        return await sent(stack, job) > 600

    await eventually(is_half_way, within_s=30)
    await stack.workers[0].kill()
    await eventually(lambda: stack.is_over(job), within_s=30)
    status = await stack.status(job)
    accepted = stack.accepted()
    assert set(accepted.values()) == {1}, "somebody was messaged twice"
    assert status.tally.done == 2000
    assert status.tally.sent + status.tally.unknown == 2000
    assert len(accepted) >= status.tally.sent
    assert status.tally.unknown <= 16 * 2 * CONCURRENCY
    await stack.check(job, eventually)


async def test_a_frozen_worker_is_fenced_and_repeats_nobody(
    stack: Stack, eventually: Eventually
) -> None:
    for _ in range(2):
        stack.add_worker()
    await eventually(lambda: workers_are_up(stack, 2), within_s=30)
    job = await stack.submit(numbers(1600, 393331000000), sender="snd_fast")

    async def has_begun() -> bool:
        return await sent(stack, job) > 300

    await eventually(has_begun, within_s=30)
    frozen = stack.workers[0]
    frozen.send(signal.SIGSTOP)
    await Clock().sleep(3.0)
    frozen.send(signal.SIGCONT)
    await eventually(lambda: stack.is_over(job), within_s=30)
    assert set(stack.accepted().values()) == {1}
    assert (await stack.status(job)).tally.done == 1600
    await frozen.stop()  # what it still knew is told by then
    await stack.check(job, eventually)


async def test_valkey_killed_in_mid_job_ends_exact(
    stack: Stack, valkey: Valkey, eventually: Eventually
) -> None:
    for _ in range(2):
        stack.add_worker()
    await eventually(lambda: workers_are_up(stack, 2), within_s=30)
    job = await stack.submit(numbers(1600, 393331000000), sender="snd_fast")

    async def has_begun() -> bool:
        return await sent(stack, job) > 300

    await eventually(has_begun, within_s=30)
    assert valkey.child is not None
    await valkey.child.kill()
    await Clock().sleep(0.5)
    await valkey.start()

    async def is_over() -> bool:
        try:
            return await stack.is_over(job)
        except QueueError:
            return False

    await eventually(is_over, within_s=40)
    status = await stack.status(job)
    assert (status.tally.sent, status.tally.unknown) == (1600, 0)
    assert set(stack.accepted().values()) == {1}
    await stack.check(job, eventually)


async def test_redis_frozen_longer_than_the_lease_makes_nobody_unknown(
    stack: Stack, valkey: Valkey, eventually: Eventually
) -> None:
    for _ in range(2):
        stack.add_worker()
    await eventually(lambda: workers_are_up(stack, 2), within_s=30)
    job = await stack.submit(numbers(1200, 393331000000), sender="snd_fast")

    async def has_begun() -> bool:
        return await sent(stack, job) > 200

    await eventually(has_begun, within_s=30)
    assert valkey.child is not None
    valkey.child.send(signal.SIGSTOP)
    await Clock().sleep(4.0)
    valkey.child.send(signal.SIGCONT)

    async def is_over() -> bool:
        try:
            return await stack.is_over(job)
        except QueueError:
            return False

    await eventually(is_over, within_s=40)
    status = await stack.status(job)
    assert (status.tally.sent, status.tally.unknown) == (1200, 0)
    assert set(stack.accepted().values()) == {1}
    await stack.check(job, eventually)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_fifty_thousand_are_each_sent_exactly_once(
    stack: Stack, eventually: Eventually
) -> None:
    _, stack.origin, stack.ledger = stack.processes.sandbox(
        "--rate", "1000000", "--latency", "0", "--no-fsync"
    )
    await eventually(lambda: is_open(int(stack.origin.rsplit(":", 1)[1])), within_s=20)
    stack.add_worker(WORKER_SLOTS="64")
    await eventually(lambda: workers_are_up(stack, 1), within_s=30)
    job = await stack.submit(numbers(50_000, 393331000000))
    await eventually(lambda: stack.is_over(job), within_s=120, every_s=0.2)
    accepted = stack.accepted()
    assert (len(accepted), set(accepted.values())) == (50_000, {1})
    assert (await stack.status(job)).tally.sent == 50_000
    await stack.check(job, eventually)
