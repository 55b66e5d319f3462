"""A million recipients are posted and sent, and no process holds more than a few of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import msgspec
import pytest

from shared.clock import Clock
from tests.e2e.stack import KEY, Eventually, Stack

JOBS, COUNT = 20, 50_000
SENDING_S = 20.0
WORKER_MB, API_MB = 20.0, 200.0
EVERY_S = 0.05
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


def rss_mb(pid: int) -> float:
    """Return what a process occupies, as the kernel counts it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has no memory")


class Watch:
    """The most that a process occupies from its idle size on."""

    def __init__(self, pid: int) -> None:
        self.pid, self.idle_mb = pid, rss_mb(pid)
        self.most_mb = self.idle_mb

    def look(self) -> None:
        self.most_mb = max(self.most_mb, rss_mb(self.pid))

    @property
    def more_mb(self) -> float:
        return self.most_mb - self.idle_mb

    def __str__(self) -> str:
        return f"{self.idle_mb:.1f} MB idle, at most {self.more_mb:+.1f} MB"


def body_of(first: int) -> bytes:
    return msgspec.json.encode(
        {
            "recipients": [f"+{first + i}" for i in range(COUNT)],
            "message": {"kind": "text", "text": {"body": "hello", "preview_url": False}},
            "sender": "main",
        }
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
async def test_a_million_recipients_do_not_pile_up_in_any_process(
    stack: Stack, eventually: Eventually
) -> None:
    await stack.new_sandbox(eventually, "--rate", "0", "--latency", "0", "--no-fsync")
    await stack.add_key()
    stack.processes.environ["LOG_LEVEL"] = "warning"
    api, origin = await stack.add_api(eventually)
    await stack.add_workers(1, eventually)
    clock = Clock()
    # Idle: what comes once, at the start, has come.
    await clock.sleep(2.0)
    worker_is, api_is = Watch(stack.workers[0].pid), Watch(api.pid)

    async def watch() -> None:
        while True:
            worker_is.look()
            api_is.look()
            await clock.sleep(EVERY_S)

    watching = asyncio.create_task(watch())
    start_s = clock.monotonic()
    async with aiohttp.ClientSession() as http:
        for turn in range(JOBS):
            body = body_of(393330000000 + COUNT * turn)
            async with http.post(f"{origin}/api/bulk/send", data=body, headers=HEADERS) as answer:
                assert answer.status == 202, await answer.text()
    posted_s = clock.monotonic() - start_s
    at_post = stack.ledger.stat().st_size
    # Then nothing is posted, and what is sent is sent at full speed.
    await clock.sleep(SENDING_S)
    watching.cancel()
    await asyncio.wait([watching])
    messages = len(stack.times())
    print(  # noqa: T201
        f"\n{JOBS} x {COUNT:,} posted in {posted_s:.1f} s; {messages:,} sent in "
        f"{posted_s + SENDING_S:.0f} s\n  worker {worker_is}\n  api {api_is}"
    )
    assert stack.ledger.stat().st_size > at_post > 0
    assert messages > 10_000, "too little was sent to say anything"
    assert worker_is.more_mb <= WORKER_MB
    assert api_is.more_mb <= API_MB
