"""What the hub writes to the log: a job's tenths, every snapshot at debug, the connections."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import structlog
from prometheus_client import CollectorRegistry

from api.hub import LOG_S, Hub
from shared import logs
from shared.clock import Clock
from shared.ids import Ids
from shared.metrics import ApiMetrics
from shared.models import Chunk, Claim, Fact, Intent, JobSpec, State
from shared.queue import Queue
from shared.settings import Settings
from tests.conftest import replaced

Eventually = Callable[..., Awaitable[Any]]
Lines = Callable[[str], list[dict[str, Any]]]
SIZE = 20


@pytest.fixture
def lines(settings: Settings) -> Iterator[Lines]:
    """Return what gives the lines of an event so far, debug included."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    out = io.StringIO()
    logs.setup(replaced(settings, log_level="debug", log_format="json"), "api", stream=out)

    def of(event: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in out.getvalue().splitlines()]
        return [line for line in found if line["event"] == event]

    yield of
    root.handlers[:], root.level = before
    structlog.reset_defaults()


class Sending:
    """A job in one claim, whose recipients are reported one by one."""

    def __init__(self, queue: Queue, job: str, claim: Claim) -> None:
        self.queue, self.job, self.claim, self.done = queue, job, claim, 0

    async def report(self, count: int) -> None:
        for index in range(self.done, self.done + count):
            intent = Intent(index, 1).pack()
            await self.queue.report("w1", self.claim, intents=intent)
            await self.queue.report("w1", self.claim, facts=Fact(index, State.SENT, 1).pack())
        self.done += count

    async def seen(self, lines: Lines) -> dict[str, Any] | None:
        """Return the newest line of the job if it has the newest number; tick meanwhile."""
        await self.queue.tick(0, "w1", slots=4, entries=[self.claim.entry])
        mine = [line for line in lines("job.progress") if line["jobId"] == self.job]
        return mine[-1] if mine and mine[-1]["done"] == self.done else None


@pytest.fixture
async def sending(queue: Queue, settings: Settings) -> Sending:
    assert settings.redis_url
    await queue.give_born(0, "b")
    await queue.prepare(0)
    await queue.sender(0, "s1", version=1, rate=0, burst=0, paused=False, why="")
    job = Ids().job_id(0)
    chunk = msgspec.msgpack.encode(Chunk([15550000000 + i for i in range(SIZE)]))
    await queue.stage(job, 0, [chunk])
    spec = JobSpec(job, "s1", "u1", SIZE, SIZE, SIZE, SIZE, b"{}", [], created_ms=1)
    assert (await queue.submit(spec)).kind == "made"
    await queue.tick(0, "w1", slots=4)
    (claim,) = await queue.claim(0, "w1", 1, 50)
    await queue.begin("w1", [claim])
    return Sending(queue, job, claim)


@asynccontextmanager
async def running(queue: Queue, log_s: float = LOG_S) -> AsyncIterator[Hub]:
    settings = replaced(queue.settings, sse_interval_ms=10)
    hub = Hub(queue, settings, Clock(), ApiMetrics(CollectorRegistry()), log_s)
    task = asyncio.create_task(hub.run())
    yield hub
    await hub.close()
    await asyncio.wait_for(task, 5)


async def test_a_watched_jobs_tenths_are_info_and_every_other_snapshot_is_debug(
    queue: Queue, sending: Sending, lines: Lines, eventually: Eventually
) -> None:
    async with running(queue) as hub:
        subscription = hub.subscribe([sending.job])
        levels = {}
        for count in (1, 1, 1, 2, 7):
            await sending.report(count)
            line = await eventually(lambda: sending.seen(lines))
            levels[sending.done] = line["level"]
            assert (line["sent"], line["total"], line["failed"]) == (sending.done, SIZE, 0)
        # 5 %, 10 %, 15 %, 25 %, 60 %: a tenth that was passed over is said with the next number.
        assert levels == {1: "debug", 2: "info", 3: "debug", 5: "info", 12: "info"}
        hub.unsubscribe(subscription, "client")
    told = [line["done"] for line in lines("job.progress") if line["level"] == "info"]
    assert told == [2, 5, 12]


async def test_a_job_nobody_watches_has_its_tenths_in_the_log_too(
    queue: Queue, sending: Sending, lines: Lines, eventually: Eventually
) -> None:
    async with running(queue):
        await sending.report(10)
        line = await eventually(lambda: sending.seen(lines), within_s=10)
        assert (line["level"], line["done"]) == ("info", 10)


async def test_the_connections_are_in_the_log_again_and_again(
    queue: Queue, sending: Sending, lines: Lines, eventually: Eventually
) -> None:
    async with running(queue, log_s=0.3) as hub:
        gone = hub.subscribe([sending.job])
        kept = hub.subscribe([sending.job])
        hub.unsubscribe(gone, "client")
        status = (await queue.statuses([sending.job]))[0]
        assert status is not None
        hub.sent(hub.frame(status, "snapshot"))
        first, second, *_ = await eventually(
            lambda: lines("sse.stats") if len(lines("sse.stats")) > 1 else None
        )
        assert (first["connections"], first["disconnects"], first["events"]) == (1, 1, 1)
        # Of the time since the line before, not of all time.
        assert (second["connections"], second["disconnects"], second["events"]) == (1, 0, 0)
        hub.unsubscribe(kept, "client")
    assert LOG_S == 60
