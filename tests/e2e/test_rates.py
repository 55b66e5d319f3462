"""A sender's rate belongs to it, whatever the pool and its neighbours do; read from the ledger."""

from __future__ import annotations

import signal

import pytest

from shared.clock import Clock
from shared.embedded.children import Child
from tests.e2e.stack import CONCURRENCY, Eventually, Stack, excess_over, held_by, most_in, sent
from tests.integration.test_worker import numbers

RATE, BURST = 80.0, 20.0  # `steady`, and a quarter of a second of it
CHUNK = 50
LATE_S = 0.05


async def answer_in(stack: Stack, latency_ms: int) -> None:
    await stack.configure(latency_ms=latency_ms, latency_p99_ms=latency_ms)


def mean_of(times: list[float], ramp_s: float) -> float:
    """Return the mean rate, less what the start and the end of a job blur."""
    inner = [t for t in times if times[0] + ramp_s <= t < times[-1] - ramp_s]
    return (len(inner) - 1) / (inner[-1] - inner[0])


async def hold_the_rate(stack: Stack, eventually: Eventually, count: int, latency_ms: int) -> None:
    await answer_in(stack, latency_ms)
    await stack.add_workers(4, eventually)
    # Settled: what a claim costs in time is learnt from the first answers.
    first = await stack.submit(numbers(160, 393551000000), sender="snd_steady")
    await eventually(lambda: stack.is_over(first), within_s=20)
    skip = len(stack.lines())
    job = await stack.submit(numbers(count, 393331000000), sender="snd_steady")
    await eventually(lambda: stack.is_over(job), within_s=count / RATE * 1.2 + 20)
    times = sorted(line.t_mono for line in stack.lines()[skip:])
    # So long a claim takes when its answers do: until then, and from then on, fewer are at work.
    ramp_s = 1.0 + CHUNK * latency_ms / 1000 / CONCURRENCY
    most, mean, excess = most_in(times, 1.0), mean_of(times, ramp_s), excess_over(times, RATE)
    whole = len(times) / (times[-1] - times[0])
    print(  # noqa: T201 - the figures of the run
        f"\n{latency_ms} ms: at most {most} in a second, mean {mean:.2f}/s, of the whole job "
        f"{whole:.2f}/s, {excess:.1f} above the rate in the worst window"
    )
    assert len(times) == count
    # A window's two ends.
    assert most <= RATE + BURST + 1
    # The worst window may begin with requests that a busy machine sent late.
    assert excess <= BURST + 1 + LATE_S * RATE
    assert min(mean, whole) >= 0.95 * RATE
    assert set(stack.accepted().values()) == {1}


async def test_four_workers_keep_one_senders_rate(stack: Stack, eventually: Eventually) -> None:
    await hold_the_rate(stack, eventually, 480, 100)


@pytest.mark.slow
@pytest.mark.parametrize("latency_ms", [100, 500])
async def test_four_workers_keep_one_senders_rate_for_long(
    stack: Stack, eventually: Eventually, latency_ms: int
) -> None:
    await hold_the_rate(stack, eventually, 2000, latency_ms)


@pytest.mark.parametrize("latency_ms", [100, 500])
@pytest.mark.slow
async def test_a_worker_stalled_for_three_seconds_does_not_make_up_for_it(
    stack: Stack, eventually: Eventually, latency_ms: int
) -> None:
    await answer_in(stack, latency_ms)
    await stack.add_workers(4, eventually, WORKER_LEASE_MS="10000")
    job = await stack.submit(numbers(1600, 393331000000), sender="snd_steady")

    async def has_begun() -> bool:
        return await sent(stack, job) > 320

    await eventually(has_begun, within_s=30)

    async def holder() -> Child | None:
        for child in stack.workers:
            if await held_by(stack, child):
                return child
        return None

    # One with claims in hand, or there is nothing to make up for.
    stalled: Child = await eventually(holder, within_s=5)
    stalled.send(signal.SIGSTOP)
    # The stall is the fault under test, not a wait for something.
    await Clock().sleep(3.0)
    stalled.send(signal.SIGCONT)
    await eventually(lambda: stack.is_over(job), within_s=60)
    times = stack.times()
    excess = excess_over(times, RATE)
    allowed = BURST + 1.2 * RATE + 2 * CHUNK
    print(  # noqa: T201
        f"\n{latency_ms} ms, stalled: {excess:.1f} above the rate in the worst window, "
        f"{allowed:.0f} allowed; at most {most_in(times, 1.0)} in a second"
    )
    assert excess <= allowed
    assert set(stack.accepted().values()) == {1}
    await stack.check(job, eventually)


async def test_ten_behind_fifty_thousand_are_done_within_three_seconds(
    stack: Stack, eventually: Eventually
) -> None:
    await stack.add_workers(1, eventually)
    large = await stack.submit(numbers(50_000, 393331000000), sender="snd_steady")

    async def is_in_its_stride() -> bool:
        return await sent(stack, large) > 2 * RATE

    await eventually(is_in_its_stride, within_s=10)
    small = await stack.submit(numbers(10, 393441000000), sender="snd_steady")
    start_s = Clock().monotonic()
    await eventually(lambda: stack.is_over(small), within_s=10)
    took_s = Clock().monotonic() - start_s
    print(f"\nten behind 50,000 took {took_s:.2f} s")  # noqa: T201
    assert took_s <= 3.0
    assert (await stack.status(small)).tally.sent == 10
    assert await sent(stack, large) < 50_000


async def test_slow_senders_do_not_slow_a_fast_one(stack: Stack, eventually: Eventually) -> None:
    await stack.add_workers(1, eventually)
    for i in range(16):
        await stack.submit(numbers(100, 393441000000 + 1000 * i), sender=f"snd_{i}")
    clock = Clock()
    start_s = clock.monotonic()
    job = await stack.submit(numbers(1200, 393331000000), sender="snd_fast")
    await eventually(lambda: stack.is_over(job), within_s=20)
    took_s = clock.monotonic() - start_s
    print(f"\n1,200 at 400/s beside sixteen at 1/s took {took_s:.2f} s")  # noqa: T201
    # Ideal: 3.0 s.
    assert took_s <= 3.6
    assert (await stack.status(job)).tally.sent == 1200
