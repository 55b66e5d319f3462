"""Pause, resume and cancel over HTTP: when the last request leaves, and that the sums are exact."""

from __future__ import annotations

from typing import Any

import pytest

from api.client import Client
from shared.clock import Clock
from tests.e2e.stack import KEY, Eventually, Stack, sent

STOP_S = 1.5  # promised: nothing leaves later than this after the answer


def body(count: int) -> dict[str, Any]:
    message = {"kind": "text", "text": {"body": "hello", "preview_url": False}}
    recipients = [f"+{393331000000 + i}" for i in range(count)]
    return {"recipients": recipients, "message": message, "sender": "fast"}


async def stop(stack: Stack, client: Client, job: str, action: str) -> float:
    """Ask for it; return how long after the answer the last request came."""
    clock = Clock()
    await client.control(job, action)
    answered_s = clock.monotonic()
    # Long enough for whatever was not stopped to show itself.
    await clock.sleep(STOP_S + 0.7)
    return stack.times()[-1] - answered_s


@pytest.mark.parametrize("latency_ms", [20, pytest.param(700, marks=pytest.mark.slow)])
async def test_nothing_leaves_once_a_pause_or_cancel_is_answered(
    stack: Stack, eventually: Eventually, latency_ms: int
) -> None:
    await stack.configure(latency_ms=latency_ms, latency_p99_ms=latency_ms)
    await stack.add_key()
    _, origin = await stack.add_api(eventually)
    await stack.add_workers(2, eventually)
    async with Client(origin, KEY) as client:
        job = (await client.submit(body(4000)))["jobId"]

        async def has(count: int) -> bool:
            return await sent(stack, job) >= count

        await eventually(lambda: has(200), within_s=30)
        late_s = await stop(stack, client, job, "pause")
        print(f"\n{latency_ms} ms: the last request {late_s:.2f} s after the pause")  # noqa: T201
        assert late_s <= STOP_S
        tally = (await client.job(job))["progress"]
        assert (tally["in_flight"], tally["unknown"]) == (0, 0)
        assert tally["sent"] == len(stack.accepted())
        assert tally["sent"] + tally["queued"] == 4000

        paused_at = tally["sent"]
        await client.control(job, "resume")
        await eventually(lambda: has(paused_at + 200), within_s=10)
        late_s = await stop(stack, client, job, "cancel")
        print(f"{latency_ms} ms: the last request {late_s:.2f} s after the cancel")  # noqa: T201
        assert late_s <= STOP_S
        await eventually(lambda: stack.is_over(job), within_s=10)
        shown = await client.job(job)
    tally = shown["progress"]
    assert shown["state"] == "cancelled"
    assert tally["sent"] + tally["cancelled"] == tally["total"] == 4000
    accepted = stack.accepted()
    assert set(accepted.values()) == {1}
    assert len(accepted) == tally["sent"]
    await stack.check(job, eventually)
