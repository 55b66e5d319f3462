"""What the archive writer tells of a job that has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import redis.asyncio
from prometheus_client import CollectorRegistry

from shared.archive import Archive, NewJob, SenderRow, pack_blob
from shared.clock import Clock
from shared.ids import Ids
from shared.metrics import WorkerMetrics
from shared.models import Chunk, Detail, Fact, JobSpec, State
from shared.queue import Queue
from shared.settings import Settings
from worker.log_writer import LogWriter

IDS = Ids()


async def cancelled_job(queue: Queue, archive: Archive, created_ms: int) -> str:
    """Return a job that was accepted at `created_ms` and has just been cancelled."""
    owner, job = str(IDS.user_id()), IDS.job_id(0)
    await archive.add_user(owner, f"{owner}@example.com", "hash", "user")
    chunks = [msgspec.msgpack.encode(Chunk([15550000000, 15550000001]))]
    await archive.add_job(
        NewJob(
            id=job, owner=owner, campaign_id=None, name=None, kind="template",
            template_name="t", template_language="en", sender_id="s1", sender_name="main",
            message=b"{}", vars=[], chunk_size=2, recipients=2, blob=pack_blob(chunks),
            intake=b"{}", rate=0.0, weight=4, priority="normal", scheduled_ms=0, expires_ms=0,
            on_unknown="hold", reserved=2, step=2, born="b", created_ms=created_ms,
        )
    )  # fmt: skip
    await queue.sender(0, "s1", version=1, rate=0, burst=0, paused=True, why="")
    await queue.stage(job, 0, chunks)
    await queue.submit(JobSpec(job, "s1", owner, 2, 2, 2, 2, b"{}", [], created_ms=created_ms))
    await queue.control(job, "cancel", by=owner)
    return job


async def test_a_jobs_duration_runs_from_accepted_and_is_told_once(
    queue: Queue,
    archive: Archive,
    settings: Settings,
    eventually: Callable[..., Awaitable[Any]],
) -> None:
    clock, registry, stop = Clock(), CollectorRegistry(), asyncio.Event()
    await archive.add_sender(SenderRow("s1", "main", "1", b"x"))
    await queue.give_born(0, "b")
    await queue.prepare(0)
    await cancelled_job(queue, archive, clock.now_ms() - 90_000)
    writer = LogWriter(queue, archive, settings, clock, WorkerMetrics(registry), "a1")
    running = asyncio.create_task(writer.run(stop))

    def value(part: str) -> float:
        name = f"drumbeat_job_duration_seconds_{part}"
        return registry.get_sample_value(name, {"kind": "template"}) or 0.0

    await eventually(lambda: value("count") == 1)
    assert 90 <= value("sum") < 120
    assert registry.get_sample_value("drumbeat_jobs_finished_total", {"state": "cancelled"}) == 1
    stop.set()
    await asyncio.wait_for(running, 10)
    assert value("count") == 1


async def tell(settings: Settings, job: str, facts: bytes, record: bytes) -> str:
    """Put facts into the outcomes beside the door, as a script does for a job that is gone."""
    assert settings.redis_url is not None
    async with redis.asyncio.Redis.from_url(settings.redis_url) as client:
        fields = {"k": "facts", "j": job, "c": 0, "z": 0, "f": facts, "d": record}
        return bytes(await client.xadd("{s0}:outcomes", fields)).decode()


async def pending(settings: Settings) -> list[str]:
    """Return the ids of what is given and not acknowledged."""
    assert settings.redis_url is not None
    async with redis.asyncio.Redis.from_url(settings.redis_url) as client:
        found = await client.xpending_range("{s0}:outcomes", "archive", "-", "+", 100)
        return [entry["message_id"].decode() for entry in found]


async def test_intents_told_again_of_a_job_that_is_gone_end_no_worker(
    queue: Queue, archive: Archive, settings: Settings, eventually: Callable[..., Awaitable[Any]]
) -> None:
    """A fail-over loses a job, its workers tell its intents: they carry no details."""
    await archive.add_sender(SenderRow("s1", "main", "1", b"x"))
    await queue.give_born(0, "b")
    await queue.prepare(0)
    job = await cancelled_job(queue, archive, Clock().now_ms())
    await tell(settings, job, Fact(0, State.INTENT, 1).pack(), b"")
    await tell(settings, job, Fact(1, State.SENT, 1).pack(), b"")
    stop, metrics = asyncio.Event(), WorkerMetrics(CollectorRegistry())
    writer = LogWriter(queue, archive, settings, Clock(), metrics, "a1")
    running = asyncio.create_task(writer.run(stop))

    async def logged() -> dict[int, State]:
        return {position: state for position, (state, _) in (await archive.logged(job)).items()}

    async def is_written() -> bool:
        return await logged() == {0: State.CANCELLED, 1: State.SENT}

    async def is_acknowledged() -> bool:
        return not await pending(settings)

    await eventually(is_written)
    await eventually(is_acknowledged)
    stop.set()
    await asyncio.wait_for(running, 10)


@pytest.mark.parametrize(
    ("facts", "record"),
    [
        (Fact(0, State.SENT, 1).pack(), b"\x92\x01"),
        (Fact(0, State.SENT, 1).pack()[:5], b""),
        (Fact(500, State.SENT, 1).pack(), b""),
        (
            Fact(0, State.SENT, 1).pack(),
            msgspec.msgpack.encode([Detail(0, 15550000000, 1, wamid="nul \0")]),
        ),
    ],
    ids=["record", "facts", "position", "text"],
)
async def test_what_can_never_be_written_holds_nobody_up(
    facts: bytes,
    record: bytes,
    queue: Queue,
    archive: Archive,
    settings: Settings,
    eventually: Callable[..., Awaitable[Any]],
) -> None:
    await archive.add_sender(SenderRow("s1", "main", "1", b"x"))
    await queue.give_born(0, "b")
    await queue.prepare(0)
    first = await cancelled_job(queue, archive, Clock().now_ms())
    bad = await tell(settings, first, facts, record)
    second = await cancelled_job(queue, archive, Clock().now_ms())
    stop, metrics = asyncio.Event(), WorkerMetrics(CollectorRegistry())
    writer = LogWriter(queue, archive, settings, Clock(), metrics, "a1")
    running = asyncio.create_task(writer.run(stop))

    async def has_ended() -> bool:
        rows = [await archive.job(job, None) for job in (first, second)]
        return all(row is not None and row.state == "cancelled" for row in rows)

    await eventually(has_ended)
    # Its facts are kept for whoever can read them.
    assert await pending(settings) == [bad]
    stop.set()
    await asyncio.wait_for(running, 10)
