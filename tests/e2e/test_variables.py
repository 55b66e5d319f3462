"""Each variable of the original guide, by what it does at the far side."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from api.client import Client
from shared.clock import Clock
from shared.errors import InvalidError, UnavailableError
from tests.e2e.stack import KEY, Eventually, Stack, most_in, sent
from tests.integration.test_worker import numbers

ALWAYS = 15550008000  # the sandbox refuses +1555…8000 with 131000, each time


def body(count: int, sender: str = "main") -> dict[str, Any]:
    message = {"kind": "text", "text": {"body": "hello", "preview_url": False}}
    recipients = [f"+{393331000000 + i}" for i in range(count)]
    return {"recipients": recipients, "message": message, "sender": sender}


async def test_the_graph_version_stands_in_the_path(stack: Stack, eventually: Eventually) -> None:
    await stack.add_workers(1, eventually, GRAPH_API_VERSION="v21.0")
    job = await stack.submit(numbers(5, 393331000000))
    await eventually(lambda: stack.is_over(job), within_s=10)
    assert [line.version for line in stack.lines()] == ["v21.0"] * 5


async def test_the_batch_size_cuts_a_job_into_chunks(stack: Stack, eventually: Eventually) -> None:
    await stack.add_key()
    _, origin = await stack.add_api(eventually, BULK_BATCH_SIZE="7")
    async with Client(origin, KEY) as client:
        job = (await client.submit(body(100)))["jobId"]
    raw = stack.raw()
    chunks = await raw.xlen(f"{{s0}}:job:{job}:chunks")
    await raw.aclose()
    assert chunks == 15
    await stack.add_workers(1, eventually, BULK_BATCH_SIZE="7")
    await eventually(lambda: stack.is_over(job), within_s=10)
    accepted = stack.accepted()
    assert (len(accepted), set(accepted.values())) == (100, {1})


@pytest.mark.parametrize("at_once", [1, 3, 8])
async def test_the_concurrency_is_the_requests_at_once_of_a_claim(
    stack: Stack, eventually: Eventually, at_once: int
) -> None:
    latency_s = 0.25
    await stack.configure(latency_ms=1000 * latency_s, latency_p99_ms=1000 * latency_s)
    await stack.add_workers(1, eventually, BULK_CONCURRENCY=str(at_once))
    # One claim: less than a chunk, and no rate that could keep it from going at once.
    job = await stack.submit(numbers(4 * at_once, 393331000000))
    await eventually(lambda: stack.is_over(job), within_s=20)
    times = stack.times()
    # Within one answer time nobody's place is free again.
    assert most_in(times, 0.98 * latency_s) == at_once
    assert times[-1] - times[0] >= 3 * latency_s


def rates_in(stack: Stack, from_s: float, for_s: float) -> dict[str, float]:
    """Return the requests a second of each phone number id in a stretch of time."""
    came = Counter(x.sender for x in stack.lines() if from_s <= x.t_mono < from_s + for_s)
    return {sender: count / for_s for sender, count in came.items()}


async def test_a_doubled_pause_halves_the_speed_of_senders_without_a_rate(
    stack: Stack, eventually: Eventually
) -> None:
    jobs = {
        "2000": await stack.submit(numbers(3000, 393331000000), sender="snd_plain"),
        "180.0": await stack.submit(numbers(3000, 393441000000), sender="snd_steady"),
    }
    clock, found = Clock(), []
    for pause in ("500", "1000"):
        # The default batch of 50: 100 a second, then 50.
        await stack.add_workers(1, eventually, BULK_PAUSE_MS=pause)
        start_s = clock.monotonic() + 1.0  # after the burst

        async def is_measured(start_s: float = start_s) -> bool:
            return all(
                any(x.sender == number and x.t_mono >= start_s + 2 for x in stack.lines())
                for number in jobs
            )

        await eventually(is_measured, within_s=20, every_s=0.1)
        found.append(rates_in(stack, start_s, 2.0))
        await stack.workers.pop().stop()
    print(f"\nBULK_PAUSE_MS 500, then 1000: {found}")  # noqa: T201
    for number, first, second in (("2000", 100, 50), ("180.0", 80, 80)):
        assert found[0][number] == pytest.approx(first, rel=0.1)
        assert found[1][number] == pytest.approx(second, rel=0.1)
    for job in jobs.values():
        assert not await stack.is_over(job), "it was the same job in both stretches"


@pytest.mark.parametrize("retries", [0, 2])
async def test_the_retries_are_the_further_attempts(
    stack: Stack, eventually: Eventually, retries: int
) -> None:
    await stack.add_workers(1, eventually, BULK_MAX_RETRIES=str(retries), BULK_RETRY_BASE_MS="50")
    job = await stack.submit([ALWAYS, *numbers(5, 393331000000)])
    await eventually(lambda: stack.is_over(job), within_s=10)
    asked = Counter(line.to for line in stack.lines())
    assert asked.pop(f"+{ALWAYS}") == 1 + retries
    assert set(asked.values()) == {1}
    tally = (await stack.status(job)).tally
    assert (tally.sent, tally.failed) == (5, 1)


@pytest.mark.parametrize("base_ms", [50, 1000])
async def test_the_retry_base_is_the_longest_first_wait(
    stack: Stack, eventually: Eventually, base_ms: int
) -> None:
    await stack.configure(latency_ms=0)
    await stack.add_workers(
        1, eventually, BULK_MAX_RETRIES="1", BULK_RETRY_BASE_MS=str(base_ms), BULK_CONCURRENCY="20"
    )
    # Fourteen: the twentieth equal refusal in a row would pause a job.
    job = await stack.submit([ALWAYS + 10_000 * i for i in range(14)])
    await eventually(lambda: stack.is_over(job), within_s=20)
    times: dict[str, list[float]] = {}
    for line in stack.lines():
        times.setdefault(line.to, []).append(line.t_mono)
    waits_s = sorted(b - a for came in times.values() for a, b in pairwise(came))
    print(f"\nbase {base_ms} ms: waits {waits_s[0]:.3f} to {waits_s[-1]:.3f} s")  # noqa: T201
    assert len(waits_s) == 14
    assert waits_s[-1] <= base_ms / 1000 + 0.4
    if base_ms == 1000:
        # 14 draws of [0, 1) all below 0.45: once in 70,000 runs.
        assert waits_s[-1] > 0.45


async def test_a_job_above_the_cap_is_refused_and_leaves_nothing(
    stack: Stack, eventually: Eventually
) -> None:
    await stack.add_key()
    _, origin = await stack.add_api(eventually)
    _, small = await stack.add_api(eventually, BULK_HARD_CAP="3")
    await stack.add_workers(1, eventually)
    async with Client(origin, KEY) as client, Client(small, KEY) as capped:
        with pytest.raises(InvalidError) as refused:
            await client.submit(body(50_001))
        assert refused.value.word == "too_many_recipients"
        with pytest.raises(InvalidError) as refused:
            await capped.submit(body(4))
        assert refused.value.word == "too_many_recipients"
        assert (await client.jobs())["data"] == []
        job = (await capped.submit(body(3)))["jobId"]
        await eventually(lambda: stack.is_over(job), within_s=10)
    # What was refused would have come before it.
    assert len(stack.lines()) == 3


async def test_switched_off_nothing_is_taken_or_sent_and_reading_goes_on(
    stack: Stack, eventually: Eventually
) -> None:
    await stack.add_key()
    running, origin = await stack.add_api(eventually)
    await stack.add_workers(1, eventually)
    async with Client(origin, KEY) as client:
        job = (await client.submit(body(2000, "steady")))["jobId"]

    async def has_begun() -> bool:
        return await sent(stack, job) > 40

    await eventually(has_begun, within_s=10)
    # As one does: the variable set, the process started anew; the workers know nothing of it.
    await running.stop()
    off, origin = await stack.add_api(eventually, DISABLE_BULK_MESSAGING="true")
    clock = Clock()
    ready_s = clock.monotonic()
    async with Client(origin, KEY) as client:
        with pytest.raises(UnavailableError) as refused:
            await client.submit(body(1))
        assert refused.value.word == "bulk_disabled"
        # Long enough for a worker that did not hear of it to show itself.
        await clock.sleep(3.0)
        late_s = stack.times()[-1] - ready_s
        print(f"\nthe last request came {late_s:.2f} s after the API was ready")  # noqa: T201
        assert late_s <= 1.5
        assert (await client.job(job))["state"] == "running"
        assert [j["jobId"] for j in (await client.jobs())["data"]] == [job]
        async for _, event in client.watch(job):
            assert event["progress"]["sent"] == len(stack.accepted()) < 2000
            assert event["wait"]["reason"] == "kill_switch"
            break
    before = len(stack.lines())
    await off.stop()
    await stack.add_api(eventually)
    await eventually(lambda: len(stack.lines()) > before + 40, within_s=15)
    assert set(stack.accepted().values()) == {1}
