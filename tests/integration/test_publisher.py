"""Outcomes reach PostgreSQL, and a Redis that lost everything gets back what can be vouched for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
import redis.asyncio
from prometheus_client import CollectorRegistry

from shared.archive import Archive, JobRow, NewJob, SenderRow, pack_blob
from shared.clock import Clock
from shared.errors import QueueError
from shared.ids import Ids
from shared.metrics import WorkerMetrics
from shared.models import Chunk, Detail, Fact, Go, Intent, State, state_of
from shared.queue import Queue
from shared.sealing import Sealing
from shared.settings import Secret, Settings
from tests.conftest import replaced
from worker.log_writer import LogWriter
from worker.publisher import Publisher
from worker.senders import Senders

Eventually = Callable[..., Awaitable[Any]]
IDS = Ids()
MESSAGE = b'{"kind":"text","text":{"body":"hello"}}'
COUNT, SIZE = 120, 50


class Bench:
    """The side tasks of one worker, and the jobs they look after."""

    def __init__(self, queue: Queue, archive: Archive, settings: Settings) -> None:
        self.queue, self.archive, self.settings = queue, archive, settings
        self.sealing = Sealing(settings.bulk_secret_key)
        self.senders = Senders(archive, queue, settings, self.sealing, Clock())
        self.publisher = Publisher(queue, archive, settings, Clock(), IDS, self.senders)
        self.metrics = WorkerMetrics(CollectorRegistry())
        self.writer = LogWriter(queue, archive, settings, Clock(), self.metrics, "a1")
        self.owner = ""

    async def start(self) -> None:
        self.owner = str(IDS.user_id())
        await self.archive.add_user(self.owner, "a@example.com", "hash", "user")
        await self.add_sender()
        await self.queue.prepare(0)

    async def add_sender(self, **changes: Any) -> None:
        row = SenderRow("snd_main", "main", "1001", self.sealing.seal("token"), is_default=True)
        await self.archive.add_sender(msgspec.structs.replace(row, **changes))

    async def accept(self, **changes: Any) -> str:
        job = IDS.job_id(0)
        phones = [15550000000 + i for i in range(COUNT)]
        chunks = [
            msgspec.msgpack.encode(Chunk(phones[i : i + SIZE])) for i in range(0, COUNT, SIZE)
        ]
        fields: dict[str, Any] = {
            "id": job, "owner": self.owner, "campaign_id": None, "name": None, "kind": "text",
            "template_name": None, "template_language": None, "sender_id": "snd_main",
            "sender_name": "main", "message": MESSAGE, "vars": [], "chunk_size": SIZE,
            "recipients": COUNT, "blob": pack_blob(chunks), "intake": b"{}", "rate": 0.0,
            "weight": 4, "priority": "normal", "scheduled_ms": 0, "expires_ms": 0,
            "on_unknown": "hold", "reserved": SIZE, "step": SIZE, "born": "", "created_ms": 1,
        }  # fmt: skip
        await self.archive.add_job(NewJob(**{**fields, **changes}))
        return job

    async def send(self, most: int = 1000) -> int:
        """Be a worker that sends at most `most` recipients; return how many."""
        sent = 0
        await self.queue.tick(0, "w1", slots=8)
        claims = await self.queue.claim(0, "w1", 64, 50)
        for claim, begun in zip(claims, await self.queue.begin("w1", claims), strict=True):
            if not isinstance(begun, Go):
                continue
            todo = [
                i
                for i in claim.indices(len(begun.chunk.phones))
                if state_of(begun.states[i]) is State.PENDING
            ][: most - sent]
            intents = b"".join(Intent(i, 1).pack() for i in todo)
            await self.queue.report("w1", claim, intents=intents)
            record = msgspec.msgpack.encode(
                [Detail(i, begun.chunk.phones[i], 5, f"wamid.{i}") for i in todo]
            )
            facts = b"".join(Fact(i, State.SENT, 1).pack() for i in todo)
            await self.queue.report("w1", claim, facts=facts, record=record, done=True)
            sent += len(todo)
        return sent

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        task = asyncio.create_task(self.writer.run(stop))
        try:
            yield
        finally:
            stop.set()
            await task

    async def row(self, job: str) -> JobRow:
        row = await self.archive.job(job, None)
        assert row is not None
        return row


@pytest.fixture
async def bench(queue: Queue, archive: Archive, settings: Settings) -> Bench:
    made = Bench(queue, archive, settings)
    await made.start()
    return made


async def test_an_accepted_job_is_published_sent_raised_and_archived(
    bench: Bench, eventually: Eventually
) -> None:
    job = await bench.accept()
    await bench.publisher.look(0)
    assert bench.senders.get("snd_main") is not None
    assert await bench.queue.born(0)
    assert await bench.queue.exists([job]) == [True]
    sent = 0
    async with bench.writing():
        async with asyncio.timeout(20):
            while sent < COUNT:
                sent += await bench.send()

        async def is_over() -> bool:
            return (await bench.row(job)).state == "completed"

        await eventually(is_over, within_s=10)
    row = await bench.row(job)
    assert (row.sent, row.failed, row.unknown) == (COUNT, 0, 0)
    assert row.end_event
    assert row.reserved >= COUNT
    assert len(await bench.archive.logged(job)) == COUNT
    client = bench.queue._commands[0]
    assert await client.ttl(f"{{s0}}:job:{job}") > 0
    assert await client.xlen("{s0}:outcomes") == 0
    value = bench.metrics.registry.get_sample_value
    assert value("drumbeat_messages_total", {"sender": "main", "outcome": "sent"}) == COUNT


async def test_after_a_wipe_logged_is_final_released_is_unknown_the_rest_is_sent(
    bench: Bench, eventually: Eventually
) -> None:
    job = await bench.accept()
    await bench.publisher.look(0)
    async with bench.writing():
        sent = await bench.send(most=20)
        assert sent == 20

        async def is_logged() -> bool:
            return len(await bench.archive.logged(job)) == sent

        await eventually(is_logged, within_s=10)
    reserved = (await bench.row(job)).reserved
    await bench.queue._commands[0].flushall()
    await bench.queue.prepare(0)
    await bench.publisher.look(0)
    status = (await bench.queue.statuses([job]))[0]
    assert status is not None
    assert (status.tally.sent, status.tally.unknown) == (sent, reserved - sent)
    assert (await bench.row(job)).unknown == reserved - sent
    async with bench.writing():

        async def is_completed() -> bool:
            await bench.send()
            return (await bench.row(job)).state == "completed"

        await eventually(is_completed, within_s=20)
    row = await bench.row(job)
    assert (row.sent + row.unknown, row.unknown) == (COUNT, reserved - sent)
    assert len(await bench.archive.logged(job)) == COUNT


async def test_a_job_that_a_failover_lost_goes_on_where_its_log_ends(
    bench: Bench, eventually: Eventually
) -> None:
    await bench.publisher.look(0)
    job = await bench.accept(born=await bench.queue.born(0))
    await bench.publisher.look(0)
    async with bench.writing():
        sent = await bench.send(most=20)

        async def is_logged() -> bool:
            return len(await bench.archive.logged(job)) == sent

        await eventually(is_logged, within_s=10)
        client = bench.queue._commands[0]
        await client.delete(*[key async for key in client.scan_iter(f"*job:{job}*")])
        await bench.publisher.look(0)
        status = (await bench.queue.statuses([job]))[0]
        assert status is not None
        assert (status.tally.sent, status.tally.unknown) == (sent, 0)

        async def is_completed() -> bool:
            nonlocal sent
            sent += await bench.send()
            return (await bench.row(job)).state == "completed"

        await eventually(is_completed, within_s=20)
    row = await bench.row(job)
    assert (sent, row.sent, row.unknown) == (COUNT, COUNT, 0)


async def test_a_paused_job_comes_back_paused_and_goes_on_when_resumed(
    bench: Bench, eventually: Eventually
) -> None:
    job = await bench.accept()
    await bench.publisher.look(0)
    await bench.queue.control(job, "pause", by="u1", reason="lunch")
    async with bench.writing():

        async def is_paused() -> bool:
            return (await bench.row(job)).state == "paused"

        await eventually(is_paused, within_s=10)
    await bench.archive._pool.execute(
        "UPDATE bulk_jobs SET receipts_version = 3, delivered = 2, read = 1 WHERE id = $1", job
    )
    await bench.queue._commands[0].flushall()
    await bench.queue.prepare(0)
    await bench.publisher.look(0)
    status = (await bench.queue.statuses([job]))[0]
    assert status is not None
    assert (status.state, status.reason) == ("paused", "lunch")
    assert (status.delivered, status.read) == (2, 1)
    assert await bench.send() == 0
    await bench.queue.control(job, "resume", by="u1")
    await bench.writer.raise_marks(0)
    assert await bench.send() > 0


async def test_a_job_that_was_being_cancelled_comes_back_cancelled(
    bench: Bench, eventually: Eventually
) -> None:
    job = await bench.accept()
    await bench.publisher.look(0)
    await bench.queue.tick(0, "w1", slots=8)
    await bench.queue.claim(0, "w1", 64, 50)
    await bench.queue.control(job, "cancel", by="u1")
    async with bench.writing():

        async def is_known() -> bool:
            return (await bench.row(job)).state == "cancelling"

        await eventually(is_known, within_s=10)
        reserved = (await bench.row(job)).reserved
        await bench.queue._commands[0].flushall()
        await bench.queue.prepare(0)
        await bench.publisher.look(0)

        async def is_over() -> bool:
            return (await bench.row(job)).state == "cancelled"

        await eventually(is_over, within_s=10)
    row = await bench.row(job)
    assert 0 < row.unknown <= reserved
    assert row.cancelled == COUNT - row.unknown


async def test_a_restorer_that_dies_leaves_no_more_in_doubt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """It raised the mark first: the next one doubted what had never been released."""
    job = await bench.accept()
    await bench.publisher.look(0)
    async with bench.writing():

        async def is_queued() -> bool:
            return (await bench.row(job)).state == "queued"

        await eventually(is_queued, within_s=10)
    reserved = (await bench.row(job)).reserved
    await bench.queue._commands[0].flushall()
    await bench.queue.prepare(0)

    async def die(*_args: Any) -> None:
        raise QueueError("gone", refused=False)

    with monkeypatch.context() as patch:
        patch.setattr(bench.queue, "restore", die)
        with pytest.raises(QueueError):
            await bench.publisher.look(0)
    await bench.publisher.look(0)
    status = (await bench.queue.statuses([job]))[0]
    assert status is not None
    assert (status.tally.unknown, status.state) == (reserved, "queued")
    await bench.writer.raise_marks(0)
    assert await bench.send() > 0


async def test_a_young_acceptance_is_left_to_the_api(bench: Bench) -> None:
    job = await bench.accept(created_ms=Clock().now_ms())
    await bench.publisher.look(0)
    assert await bench.queue.exists([job]) == [False]


async def test_a_sealed_token_pauses_and_the_right_key_frees(bench: Bench) -> None:
    other = Sealing((Secret("x" * 32),))
    blind = Senders(bench.archive, bench.queue, bench.settings, other, Clock())
    await blind.refresh()
    assert blind.get("snd_main") is None
    status = await bench.queue.sender_status(0, "snd_main")
    assert (status.paused, status.why) == (True, "token")
    await bench.senders.refresh()
    await bench.senders.refresh()
    assert not (await bench.queue.sender_status(0, "snd_main")).paused


async def test_another_default_rate_reaches_redis_after_a_restart(bench: Bench) -> None:
    await bench.senders.refresh()
    slow = replaced(bench.settings, bulk_batch_size=10, bulk_pause_ms=1000)
    await Senders(bench.archive, bench.queue, slow, bench.sealing, Clock()).refresh()
    assert (await bench.queue.sender_status(0, "snd_main")).rate_max == 10
    await bench.archive.set_rate("snd_main", 7.0)
    await bench.senders.refresh()
    assert (await bench.queue.sender_status(0, "snd_main")).rate_max == 7


async def test_entries_of_a_reader_that_died_are_taken_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    job = await bench.accept()
    await bench.publisher.look(0)
    assert await bench.queue.read_outcomes(0, "dead", 200, 50)
    claim = bench.queue.claim_stale_outcomes
    monkeypatch.setattr("worker.log_writer._STALE_EVERY_S", 0.1)
    monkeypatch.setattr(
        bench.queue, "claim_stale_outcomes", lambda s, c, cursor: claim(s, c, cursor, idle_ms=0)
    )
    async with bench.writing():

        async def is_known() -> bool:
            return (await bench.row(job)).state != "accepted"

        await eventually(is_known, within_s=10)
    with suppress(redis.asyncio.RedisError):
        pending = await bench.queue._commands[0].xpending("{s0}:outcomes", "archive")
        assert pending["pending"] == 0
