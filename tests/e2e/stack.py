"""A whole system for a test: the pretended Graph, workers and, when asked, an API, as processes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import msgspec
import pytest
import redis.asyncio

from api.client import Client, LostError
from shared.archive import Archive, KeyRow, SenderRow
from shared.embedded.children import Child, is_open
from shared.ids import Ids
from shared.queue import Queue
from shared.sealing import Sealing
from shared.settings import Settings
from tests.conftest import Processes
from tests.integration.test_worker import Bench

Eventually = Callable[..., Awaitable[Any]]
FAST = ["--rate", "100000", "--latency", "20", "--no-fsync"]
WORKER = {"WORKER_LEASE_MS": "2000", "WORKER_TICK_MS": "100", "WORKER_SLOTS": "16"}
CONCURRENCY = 5
KEY_ID = "0123456789"
KEY = f"drb_{KEY_ID}_{'k' * 43}"


class Line(msgspec.Struct):
    """One request, as the ledger has it; `t_mono` is on the clock of every process here."""

    seq: int
    t_mono: float
    sender: str
    version: str
    attempt: int
    to: str
    opaque: str
    verdict: str
    code: int | None


_decode = msgspec.json.Decoder(Line).decode


class Stack(Bench):
    """A sandbox and workers as processes of their own."""

    workers: list[Child]
    processes: Processes
    origin: str

    def add_worker(self, **extra: str) -> Child:
        child = self.processes.worker(
            GRAPH_BASE_URL=self.origin, DRUMBEAT_EXIT_ON_EOF="1", **{**WORKER, **extra}
        )
        self.workers.append(child)
        return child

    async def add_workers(self, count: int, eventually: Eventually, **extra: str) -> None:
        """Start workers and wait until each has ticked."""
        for child in [self.add_worker(**extra) for _ in range(count)]:
            await eventually(lambda child=child: is_at_work(self, child), within_s=60)

    async def add_api(self, eventually: Eventually, **extra: str) -> tuple[Child, str]:
        """Start an API process; return it and its origin once it is ready."""
        values = {"GRAPH_BASE_URL": self.origin, "BULK_SUBMITS_PER_HOUR_IP": "0", **extra}
        child, origin = self.processes.api(**values)

        async def is_ready() -> bool:
            try:
                async with Client(origin) as client:
                    return bool(await client.ask("GET", "/readyz"))
            except LostError:
                return False

        await eventually(is_ready, within_s=30, every_s=0.1)
        return child, origin

    async def add_key(self) -> None:
        """Let `KEY` in as the owner of this stack's jobs."""
        digest = hashlib.sha256(KEY.encode()).digest()
        scopes = ["read", "send"]
        await self.archive.add_key(
            KeyRow(
                id=KEY_ID, user_id=self.owner, name="t", sha256=digest, scopes=scopes,
                last4=KEY[-4:], expires_at_ms=0, revoked=False, role="user", disabled=False,
            )
        )  # fmt: skip

    async def new_sandbox(self, eventually: Eventually, *words: str) -> None:
        """Send to another pretended Graph from now on: for workers that start after this."""
        _, self.origin, self.ledger = self.processes.sandbox(*words)
        await eventually(lambda: is_open(int(self.origin.rsplit(":", 1)[1])), within_s=20)

    async def configure(self, **changes: Any) -> None:
        """Change switches of the running sandbox."""
        url = f"{self.origin}/_sandbox/config"
        async with aiohttp.ClientSession() as http, http.patch(url, json=changes) as answer:
            assert answer.status == 200, await answer.text()

    def raw(self) -> Any:
        """Return a client of Redis beside the door; the caller closes it."""
        return redis.asyncio.Redis.from_url(self.processes.environ["REDIS_URL"])

    def lines(self) -> list[Line]:
        """Return what the far side has seen, in its order; a line half written is left out."""
        whole = self.ledger.read_bytes().rpartition(b"\n")[0]
        return [_decode(line) for line in whole.splitlines()]

    def times(self, sender: str | None = None) -> list[float]:
        """Return when the requests came, seconds, all of them or those of a phone number id."""
        return sorted(x.t_mono for x in self.lines() if sender in (None, x.sender))


async def held_by(stack: Stack, child: Child) -> list[tuple[str, int, list[int]]]:
    """Return what a worker process has claimed: job, chunk and the indices there."""
    out, raw = [], stack.raw()
    for entry in await raw.xpending_range("{s0}:ready", "workers", "-", "+", 1000):
        if not _is_of(entry["consumer"].decode(), child):
            continue
        [(_, fields)] = await raw.xrange("{s0}:ready", entry["message_id"], entry["message_id"])
        packed, chunk = fields[b"o"], int(fields[b"c"])
        indices = [*struct.unpack(f">{len(packed) // 2}H", packed)]
        out.append((fields[b"j"].decode(), chunk, indices or [*range(int(fields[b"n"]))]))
    await raw.aclose()
    return out


async def is_at_work(stack: Stack, child: Child) -> bool:
    """Tell whether a worker process has ticked."""
    workers = (await stack.queue.stats(0, [])).workers
    return any(_is_of(name, child) for name in workers)


def _is_of(name: str, child: Child) -> bool:
    # A consumer is named after its process (shared/ids.py).
    return name.startswith(f"w{child.pid}-")


def most_in(times: Sequence[float], window_s: float) -> int:
    """Return the most of `times`, which rise, that lie in any half-open window.

    >>> most_in([0.0, 0.4, 1.0, 1.3], 1.0)
    3
    """
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def excess_over(times: Sequence[float], rate: float) -> float:
    """Return by how much any window, of whatever length, holds more than `rate` x its length.

    >>> excess_over([0.0, 0.0, 0.5, 1.0], 2.0)
    2.0
    """
    worst, least = 0.0, float("inf")
    for index, at in enumerate(times):
        least = min(least, index - rate * at)
        worst = max(worst, index + 1 - rate * at - least)
    return worst


@pytest.fixture
async def stack(
    settings: Settings,
    queue: Queue,
    archive: Archive,
    processes: Processes,
    eventually: Eventually,
) -> AsyncIterator[Stack]:
    _, origin, ledger = processes.sandbox(*FAST)
    await eventually(lambda: is_open(int(origin.rsplit(":", 1)[1])), within_s=20)
    owner = str(Ids().user_id())
    await archive.add_user(owner, "a@example.com", "hash", "user")
    sealed = Sealing(settings.bulk_secret_key).seal("token")
    for name, rate in (("main", 0.0), ("fast", 400.0), ("steady", 80.0)):
        await archive.add_sender(SenderRow(f"snd_{name}", name, f"1{rate}", sealed, rate=rate))
    # Without a rate of its own: what the variables say is its rate.
    await archive.add_sender(SenderRow("snd_plain", "plain", "2000", sealed))
    for i in range(16):
        await archive.add_sender(SenderRow(f"snd_{i}", f"one-{i}", f"9{i}", sealed, rate=1.0))
    await queue.give_born(0, "b")
    made = Stack(queue, archive, ledger, owner)
    made.workers, made.processes, made.origin = [], processes, origin
    yield made
    await processes.stop()


async def workers_are_up(stack: Stack, count: int) -> bool:
    return len((await stack.queue.stats(0, [])).workers) >= count


async def sent(stack: Stack, job: str) -> int:
    return (await stack.status(job)).tally.sent
