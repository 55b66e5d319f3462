"""The fleet's gauges: filled at a scrape, from the stores that answer, in bounded time."""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from api import stats
from api.app import open_resources
from api.fleet import OLD_S, Fleet
from api.resources import Resources
from shared.archive import NewJob, SenderRow, pack_blob
from shared.clock import Clock
from shared.embedded.children import free_port, is_open
from shared.embedded.postgres import Postgres
from shared.embedded.valkey import Valkey
from shared.ids import Ids
from shared.models import Chunk, Fact, Intent, JobSpec, State
from shared.settings import Settings
from tests.conftest import Processes

Eventually = Callable[..., Awaitable[Any]]
IDS = Ids()


class Stand:
    """An API's resources without its server, and somebody's jobs."""

    def __init__(self, made: Resources, registry: CollectorRegistry) -> None:
        self.made, self.registry, self.fleet = made, registry, Fleet(made)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"drumbeat_{name}", labels)

    async def submit(self, recipients: int) -> str:
        owner, job = str(IDS.user_id()), IDS.job_id(0)
        archive, queue = self.made.archive, self.made.queue
        await archive.add_user(owner, f"{owner}@example.com", "hash", "user")
        chunks = [msgspec.msgpack.encode(Chunk([15550000000 + i for i in range(recipients)]))]
        await archive.add_job(
            NewJob(
                id=job, owner=owner, campaign_id=None, name=None, kind="text", template_name=None,
                template_language=None, sender_id="s1", sender_name="main", message=b"{}",
                vars=[], chunk_size=50, recipients=recipients, blob=pack_blob(chunks),
                intake=b"{}", rate=0.0, weight=4, priority="normal", scheduled_ms=0, expires_ms=0,
                on_unknown="hold", reserved=50, step=50, born="b", created_ms=1,
            )
        )  # fmt: skip
        await queue.stage(job, 0, chunks)
        spec = JobSpec(job, "s1", owner, recipients, 50, 50, 50, b"{}", [], created_ms=1)
        assert (await queue.submit(spec)).kind == "made"
        # What the log writer would write of it.
        await archive._pool.execute("UPDATE bulk_jobs SET state = 'running' WHERE id = $1", job)
        return job


@pytest.fixture
async def stand(settings: Settings) -> AsyncIterator[Stand]:
    async with AsyncExitStack() as stack:
        registry = CollectorRegistry()
        made = await open_resources(settings, stack, registry)
        await made.archive.add_sender(SenderRow("s1", "main", "1", b"x", rate=20.0))
        await made.queue.give_born(0, "b")
        await made.queue.prepare(0)
        await made.queue.sender(0, "s1", version=1, rate=20, burst=5, paused=False, why="")
        yield Stand(made, registry)


async def test_a_backlog_is_told_by_phase_with_the_workers_it_needs(stand: Stand) -> None:
    queue = stand.made.queue
    await stand.submit(30)
    await queue.tick(0, "w1", slots=4)
    await queue.tick(0, "w2", slots=0)
    (claim, *_) = await queue.claim(0, "w1", 1, 50)
    await queue.begin("w1", [claim])
    intents = b"".join(Intent(index, 1).pack() for index in range(3))
    await queue.report("w1", claim, intents=intents)
    facts = Fact(0, State.SENT, 1).pack() + Fact(2, State.RETRY, 1, 0, 60).pack()
    await queue.report("w1", claim, facts=facts)
    await stand.fleet.refresh()
    assert {p: stand.value("backlog_messages", phase=p) for p in ("queued", "in_flight")} == {
        "queued": 27,
        "in_flight": 1,
    }
    assert stand.value("backlog_messages", phase="retrying") == 1
    shown = await stats.collect(stand.made)
    assert (shown.backlog.queued, shown.backlog.in_flight, shown.backlog.retrying) == (27, 1, 1)
    assert stand.value("jobs", state="running") == 1
    assert stand.value("workers", state="active") == 1
    assert stand.value("workers", state="draining") == 1
    assert (shown.demand.workers, shown.demand.wanted_workers) == (2, 1)
    assert stand.value("wanted_workers") == 1
    assert stand.value("demand_messages_per_second") == pytest.approx(29 / 600)
    assert stand.value("sender_rate_limit", sender="main") == 20
    assert stand.value("sender_blocked", sender="main") == 0
    assert stand.value("stream_pending", stream="ready") == 1
    assert (stand.value("stream_length", stream="ready") or 0) >= 1
    assert stand.value("redis_up") == stand.value("postgres_up") == 1
    assert (stand.value("redis_memory_used_bytes") or 0) > 100_000
    assert stand.value("redis_persistence_ok") == 1
    assert (stand.value("postgres_table_bytes", table="campaign_logs") or 0) > 0
    scale = await stand.fleet.scale()
    assert (scale["backlog"], scale["workers"], scale["wanted_workers"]) == (29, 2, 1)


async def test_what_is_read_is_kept_for_a_second_and_unknown_recipients_are_counted(
    stand: Stand, eventually: Eventually
) -> None:
    job = await stand.submit(2)
    await stand.fleet.refresh()
    assert stand.value("unknown_open") == 0
    await stand.made.archive._pool.execute("UPDATE bulk_jobs SET unknown = 2 WHERE id = $1", job)
    before = stand.made.clock.monotonic()
    await stand.fleet.refresh()
    assert stand.value("unknown_open") == 0

    async def is_seen() -> bool:
        await stand.fleet.refresh()
        return stand.value("unknown_open") == 2

    await eventually(is_seen)
    assert stand.made.clock.monotonic() - before > OLD_S / 2


async def test_a_store_that_is_away_empties_its_figures_and_no_others(
    stand: Stand, valkey: Valkey, postgres: Postgres
) -> None:
    await stand.submit(4)
    assert valkey.child is not None
    assert postgres.child is not None
    clock = Clock()
    await stand.fleet.refresh()
    assert stand.value("backlog_messages", phase="queued") == 4
    valkey.child.send(signal.SIGSTOP)
    try:
        await clock.sleep(OLD_S)  # what was read is kept for so long
        before = clock.monotonic()
        await stand.fleet.refresh()
        assert clock.monotonic() - before < 4
        assert stand.value("backlog_messages", phase="queued") is None
        assert math.isnan(stand.value("wanted_workers") or 0)
        assert stand.value("redis_up") == 0
        assert (stand.value("postgres_up"), stand.value("jobs", state="running")) == (1, 1)
        with pytest.raises(web.HTTPServiceUnavailable):
            await stand.fleet.scale()
    finally:
        valkey.child.send(signal.SIGCONT)
    await stand.made.archive._pool.close()
    await clock.sleep(OLD_S)
    await stand.fleet.refresh()
    assert (stand.value("redis_up"), stand.value("postgres_up")) == (1, 0)
    assert stand.value("jobs", state="running") is None
    assert stand.value("backlog_messages", phase="queued") == 4


async def test_a_scrape_of_the_api_shows_the_fleet_and_outlives_a_silent_redis(
    settings: Settings, processes: Processes, valkey: Valkey, eventually: Eventually
) -> None:
    port = free_port()
    assert settings.redis_url
    assert valkey.child is not None
    processes.api(METRICS_PORT=str(port))
    await eventually(lambda: is_open(port), within_s=20)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:

        async def scraped() -> str:
            async with http.get("/metrics", timeout=aiohttp.ClientTimeout(5)) as answer:
                assert answer.status == 200
                return await answer.text()

        text = await scraped()
        assert 'drumbeat_backlog_messages{phase="queued"} 0.0' in text
        assert "drumbeat_redis_up 1.0" in text
        async with http.get("/scale") as answer:
            assert (await answer.json())["wanted_workers"] == 0
        valkey.child.send(signal.SIGSTOP)
        try:

            async def is_told() -> bool:
                return "drumbeat_redis_up 0.0" in await scraped()

            await eventually(is_told, within_s=20)
        finally:
            valkey.child.send(signal.SIGCONT)
