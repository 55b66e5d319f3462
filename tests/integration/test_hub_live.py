"""The hub on a real Valkey: nothing between subscribing and reading, the last number, outages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
import redis.asyncio
from prometheus_client import CollectorRegistry

from api.hub import Frame, Hub, Subscription
from shared import settings as settings_module
from shared.clock import Clock
from shared.embedded.valkey import Valkey
from shared.errors import QueueError, TooManyError
from shared.ids import Ids
from shared.metrics import ApiMetrics
from shared.models import Chunk, EventNote, JobSpec
from shared.queue import Queue

Eventually = Callable[..., Awaitable[Any]]


@pytest.fixture
async def raw(valkey: Valkey) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(valkey.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def queue(valkey: Valkey, raw: redis.asyncio.Redis) -> AsyncIterator[Queue]:
    assert await raw.ping()
    environ = {
        "REDIS_URL": valkey.url,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1/none",
        "BULK_SECRET_KEY": "0123456789abcdef0123456789abcdef",
        "SSE_INTERVAL_MS": "50",
        "SSE_HEARTBEAT_S": "1",
        "SSE_PER_USER": "2",
    }
    opened = await Queue.open(settings_module.load(environ, None))
    await opened.give_born(0, "b1")
    await opened.prepare(0)
    yield opened
    await opened.close()


@pytest.fixture
async def hub(queue: Queue) -> AsyncIterator[Hub]:
    made = Hub(queue, queue.settings, Clock(), ApiMetrics(CollectorRegistry()))
    running = asyncio.create_task(made.run())
    yield made
    await made.close()
    await asyncio.wait_for(running, 5)


async def submit(queue: Queue) -> str:
    # Nothing is released to a paused sender, so that a cancel ends the job at once.
    await queue.sender(0, "s1", version=1, rate=0, burst=0, paused=True, why="")
    job = Ids().job_id(0)
    await queue.stage(job, 0, [msgspec.msgpack.encode(Chunk([15550000000, 15550000001]))])
    spec = JobSpec(job, "s1", "u1", 2, 50, 2, 2, b"{}", [], created_ms=1)
    assert (await queue.submit(spec)).kind == "made"
    return job


def newest(subscription: Subscription, state: str = "") -> Callable[[], Frame | None]:
    """Return what looks for the newest frame, in this state when one is given."""
    wanted = f'"state":"{state}'.encode()
    seen: list[Frame] = []

    def look() -> Frame | None:
        seen.extend(subscription.take())
        return seen[-1] if seen and wanted in seen[-1].data else None

    return look


async def test_every_watcher_gets_the_same_bytes_and_the_end(
    hub: Hub, queue: Queue, eventually: Eventually
) -> None:
    job = await submit(queue)
    first, second = hub.subscribe([job]), hub.subscribe([job])
    assert hub.connections == 2
    await queue.control(job, "pause", by="u1", reason="lunch")
    frame = await eventually(newest(first, "paused"))
    other = await eventually(newest(second, "paused"))
    assert other.data is frame.data
    await queue.control(job, "resume", by="u1")
    await queue.control(job, "cancel", by="u1")
    look = newest(first)
    end = await eventually(lambda: (frame := look()) is not None and frame.is_end and frame)
    status = (await queue.statuses([job]))[0]
    assert status is not None
    assert (status.is_ended, status.event) == (True, end.event)
    hub.unsubscribe(first, "end")
    hub.unsubscribe(second, "end")
    assert hub.connections == 0


async def test_a_change_between_subscribing_and_reading_is_not_told_twice(
    hub: Hub, queue: Queue, eventually: Eventually
) -> None:
    job = await submit(queue)
    subscription = hub.subscribe([job])
    await queue.control(job, "pause", by="u1")
    status = (await hub.snapshots([job]))[0]
    assert status is not None
    assert status.state == "paused"
    assert subscription.accept(hub.frame(status, "snapshot"))
    await eventually(subscription.ready.is_set)
    assert subscription.take() == []
    await queue.control(job, "cancel", by="u1")
    assert (await eventually(newest(subscription, "cancelled"))).is_end
    hub.unsubscribe(subscription, "end")


async def test_a_note_that_never_arrives_is_found_by_the_heartbeat(
    hub: Hub,
    queue: Queue,
    raw: redis.asyncio.Redis,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_deaf = asyncio.Event()

    async def deaf(_shard: int, _after: str) -> list[EventNote]:
        is_deaf.set()
        await asyncio.sleep(0.05)
        await raw.xtrim("{s0}:events", maxlen=0)
        return []

    monkeypatch.setattr(queue, "read_events", deaf)
    job = await submit(queue)
    subscription = hub.subscribe([job])
    await asyncio.wait_for(is_deaf.wait(), 5)
    await queue.control(job, "cancel", by="u1")
    look = newest(subscription)
    assert await eventually(lambda: (frame := look()) is not None and frame.is_end)
    hub.unsubscribe(subscription, "end")


async def test_an_outage_ends_nothing_and_the_newest_snapshot_follows(
    hub: Hub, queue: Queue, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await submit(queue)
    subscription = hub.subscribe([job])

    asked: list[object] = []

    async def lost(*words: object) -> list[Any]:
        asked.extend(words)
        raise QueueError("lost", refused=True)

    with monkeypatch.context() as patch:
        patch.setattr(queue, "read_events", lost)
        patch.setattr(queue, "statuses", lost)
        await queue.control(job, "pause", by="u1")
        # The heartbeat has asked for the job, and been told nothing.
        await eventually(lambda: [job] in asked)
        assert subscription.take() == []
    assert await eventually(newest(subscription, "paused"))
    hub.unsubscribe(subscription, "client")


async def test_a_user_has_so_many_streams_and_closing_wakes_them(hub: Hub) -> None:
    with hub.seat("u1", "192.0.2.1"), hub.seat("u1", "192.0.2.1"):
        with pytest.raises(TooManyError), hub.seat("u1", "192.0.2.2"):
            pass
        assert hub.users == 1
        assert (await hub.totals())[:2] == (0, 1)
    assert hub.users == 0
    subscription = hub.subscribe([Ids().job_id(0)])
    closing = asyncio.create_task(hub.close())
    await asyncio.wait_for(subscription.ready.wait(), 1)
    assert subscription.is_closing
    hub.unsubscribe(subscription, "bye")
    await asyncio.wait_for(closing, 0.5)
