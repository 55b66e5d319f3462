"""A process whose wall clock is wrong by an hour or a day, as after a bad synchronisation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from shared.clock import Clock
from shared.metrics import WorkerMetrics
from shared.models import Go
from shared.queue import Queue
from shared.settings import Settings
from tests.conftest import replaced
from tests.e2e.stack import Stack
from tests.integration.desk import Api, session_of
from tests.integration.test_people import key_of
from tests.integration.test_topologies import submit
from tests.integration.test_worker import numbers
from worker import app
from worker.tick import Pulse

Eventually = Callable[..., Awaitable[Any]]
DAY_MS = 86_400_000


class Wrong(Clock):
    """A wall clock that is wrong by `by_ms`; the monotonic one is right."""

    by_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.by_ms


@pytest.mark.redis
@pytest.mark.parametrize("by_ms", [DAY_MS, -DAY_MS])
async def test_a_worker_knows_the_time_of_the_server_whatever_its_own_clock_says(
    queue: Queue, settings: Settings, by_ms: int
) -> None:
    clock = Wrong()
    clock.by_ms = by_ms
    await queue.prepare(0)
    await queue.give_born(0, "b")
    pulse = Pulse(queue, "w", settings, clock, WorkerMetrics(CollectorRegistry()))
    await pulse._tick(0)
    assert abs(pulse.server_ms(0) - Clock().now_ms()) < 500


@pytest.mark.redis
@pytest.mark.parametrize("rate", [0.0, 50.0])
async def test_what_was_released_before_the_servers_clock_went_back_starts_now(
    queue: Queue, rate: float
) -> None:
    await queue.prepare(0)
    await queue.sender(0, "s", version=1, rate=rate, burst=0, paused=False, why="")
    await submit(queue)
    assert (await queue.tick(0, "w", slots=1)).now_ms
    raw, key = queue._commands[0], "{s0}:ready"
    [(entry, fields)] = await raw.xrange(key)
    for name in (b"r", b"s"):
        fields[name] = int(fields[name]) + DAY_MS
    await raw.xdel(key, entry)
    await raw.xadd(key, fields)
    [claim] = await queue.claim(0, "w", 1, 100)
    [begun] = await queue.begin("w", [claim])
    assert isinstance(begun, Go)
    assert begun.start_ms - begun.now_ms < 1000


async def test_a_worker_whose_clock_is_a_day_ahead_sends_what_has_a_deadline_today(
    stack: Stack, settings: Settings, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_an_hour_ms = Clock().now_ms() + 3_600_000
    job = await stack.submit(numbers(200), expires_ms=in_an_hour_ms)
    now_ms = Clock.now_ms
    monkeypatch.setattr(Clock, "now_ms", lambda self: now_ms(self) + DAY_MS)
    stop = asyncio.Event()
    running = asyncio.create_task(app.run(replaced(settings, graph_base_url=stack.origin), stop))
    try:
        await eventually(lambda: stack.is_over(job), within_s=10)
        assert (await stack.status(job)).tally.sent == 200
        await stack.check(job, eventually)
    finally:
        stop.set()
        await running


async def test_a_revoked_key_is_refused_within_a_second_though_the_clock_was_set_back(
    api: Api, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await session_of(api, "ann")
    made = await key_of(api, session)
    bearer = {"Authorization": f"Bearer {made['key']}"}
    assert (await api.client.get("/api/bulk/jobs", headers=bearer)).status == 200
    now_ms = Clock.now_ms
    monkeypatch.setattr(Clock, "now_ms", lambda self: now_ms(self) - DAY_MS)
    path = f"/api/keys/{made['id']}"
    assert (await api.client.delete(path, headers=session)).status == 204

    async def is_refused() -> bool:
        return (await api.client.get("/api/bulk/jobs", headers=bearer)).status == 401

    await eventually(is_refused, within_s=2)
