"""How long an API takes to accept 50,000 recipients over HTTP, and how late its loop is then."""

from __future__ import annotations

import asyncio
import statistics

import aiohttp
import msgspec
import pytest

from shared.clock import Clock
from tests.e2e.stack import KEY, Eventually, Stack, stack

pytestmark = pytest.mark.slow
COUNT, ROUNDS = 50_000, 9
PROBE_S = 0.005
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
__all__ = ["stack"]


def body_of(first: int) -> bytes:
    return msgspec.json.encode(
        {
            "recipients": [f"+{first + i}" for i in range(COUNT)],
            "message": {"kind": "text", "text": {"body": "hello", "preview_url": False}},
            "sender": "steady",
        }
    )


class Prober:
    """Asks /livez again and again, one request at a time: what its loop is late, they wait."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http, self._url = http, url
        self.waits_s: list[float] = []

    async def run(self) -> None:
        clock = Clock()
        while True:
            start_s = clock.monotonic()
            async with self._http.get(self._url) as answer:
                await answer.read()
            self.waits_s.append(clock.monotonic() - start_s)
            await clock.sleep(PROBE_S)


async def test_fifty_thousand_recipients_are_accepted(stack: Stack, eventually: Eventually) -> None:
    await stack.add_key()
    _, origin = await stack.add_api(eventually, LOG_LEVEL="warning")
    clock, times, rows = Clock(), [], []
    bodies = [body_of(393330000000 + COUNT * turn) for turn in range(ROUNDS)]
    # The probe has a connection of its own, or it would wait behind the body.
    async with aiohttp.ClientSession() as http, aiohttp.ClientSession() as other:
        for body in bodies:
            prober = Prober(other, f"{origin}/livez")
            probing = asyncio.create_task(prober.run())
            start_s = clock.monotonic()
            url = f"{origin}/api/bulk/send"
            async with http.post(url, data=body, headers=HEADERS) as answer:
                made = await answer.json()
            times.append(clock.monotonic() - start_s)
            probing.cancel()
            await asyncio.wait([probing])
            assert answer.status == 202, made
            assert made["intake"]["accepted"] == COUNT
            rows.append(sorted(prober.waits_s))
            # The next one is not to meet what this one left to do.
            await clock.sleep(0.5)
    worst = [row[-1] for row in rows]
    print(  # noqa: T201
        f"\n{COUNT:,} recipients, {len(bodies[0]):,} bytes, accepted over HTTP in "
        f"{statistics.median(times):.3f} s (median of {ROUNDS}; {min(times):.3f} to "
        f"{max(times):.3f})\n  its loop was late by at most {1000 * statistics.median(worst):.0f} "
        f"ms (median of the worst; {1000 * max(worst):.0f} ms in all)"
    )
    assert statistics.median(times) <= 0.5
