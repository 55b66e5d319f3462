"""Two jobs, a consumer of webhooks and a writer of outcomes; webhooks as Meta writes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import msgspec
import pytest
from prometheus_client import CollectorRegistry

from api.progress import progress_of
from shared import keys
from shared.archive import Archive, NewJob, SenderRow, pack_blob
from shared.clock import Clock
from shared.connect import open_postgres
from shared.ids import Ids
from shared.inbox import Inbox
from shared.metrics import WorkerMetrics
from shared.models import Chunk, Detail, Fact, Intent, JobSpec, Reason, State
from shared.notices import Notices
from shared.opaque import opaque_for
from shared.queue import Queue
from shared.receipts import Receipts
from shared.sealing import Sealing
from shared.settings import Settings
from shared.templates import Templates
from worker.log_writer import LogWriter
from worker.noticeboard import Noticeboard
from worker.receipts import Consumer, Tools
from worker.scopes import Scopes
from worker.senders import Senders
from worker.tick import Pulse

IDS = Ids()
KEY = b"opaque"
FIRST = 15550000000
AT_S = 1_795_511_671
Eventually = Callable[..., Awaitable[Any]]


class Post:
    """Two jobs' worth of doors, one consumer of webhooks, one writer of outcomes."""

    def __init__(self, settings: Settings, queue: Queue, pool: asyncpg.Pool[Any]) -> None:
        self.queue, self.pool, self.archive = queue, pool, Archive(pool)
        self.registry, clock = CollectorRegistry(), Clock()
        metrics = WorkerMetrics(self.registry)
        self.inbox = Inbox.open(settings, clock)
        sealing = Sealing(settings.bulk_secret_key)
        self.senders = Senders(self.archive, queue, settings, sealing, clock)
        pulse = Pulse(queue, "w1", settings, clock, metrics)
        scopes = Scopes(queue, self.archive, self.senders, pulse, clock)
        self.templates = Templates(pool)
        self.tools = Tools(
            queue,
            self.inbox,
            Receipts(pool),
            self.senders,
            scopes,
            Noticeboard(Notices(pool), self.templates, scopes, self.senders, metrics),
            clock,
            metrics,
            KEY,
        )
        self.consumer = Consumer(self.tools, "w1")
        self.writer = LogWriter(queue, self.archive, settings, clock, metrics, "w1")
        self.owner = str(IDS.user_id())
        self.sealed = sealing.seal("token")

    async def open(self) -> None:
        await self.archive.add_user(self.owner, "a@example.com", "hash", "user")
        await self.archive.add_sender(
            SenderRow("s1", "main", "1001", self.sealed, rate=0.0, waba_id="w1")
        )
        await self.archive.add_sender(
            SenderRow("s2", "other", "1002", self.sealed, rate=0.0, waba_id="w1")
        )
        await self.queue.give_born(0, "b")
        await self.queue.prepare(0)
        await self.inbox.prepare()
        await self.senders.refresh()

    async def job(self, *outcomes: State, held: bool = False) -> str:
        """Return a job whose recipients came to these; `sent` have the id `wamid.<position>`."""
        job, count = IDS.job_id(0), len(outcomes)
        chunk = msgspec.msgpack.encode(Chunk([FIRST + i for i in range(count)]))
        await self.archive.add_job(
            NewJob(
                id=job, owner=self.owner, campaign_id=None, name=None, kind="template",
                template_name="t", template_language="en", sender_id="s1", sender_name="main",
                message=b"{}", vars=[], chunk_size=count, recipients=count,
                blob=pack_blob([chunk]), intake=b"{}", rate=0.0, weight=4, priority="normal",
                scheduled_ms=0, expires_ms=0, on_unknown="hold", reserved=count, step=count,
                born="b", created_ms=Clock().now_ms(),
            )
        )  # fmt: skip
        await self.queue.stage(job, 0, [chunk])
        await self.queue.submit(
            JobSpec(job, "s1", self.owner, count, count, count, count, b"{}", [])
        )
        [claim] = await self.queue.claim(0, "w1", 1, 500)
        await self.queue.begin("w1", [claim])
        intents = b"".join(Intent(i, 1).pack() for i in range(count))
        await self.queue.report("w1", claim, intents=intents)
        facts, details = b"", []
        status = "held_for_quality_assessment" if held else None
        for i, state in enumerate(outcomes):
            if state != State.INTENT:
                reason = Reason.TIMEOUT if state is State.UNKNOWN else 0
                facts += Fact(i, state, 1, reason).pack()
                wamid = f"wamid.{job[-6:]}{i}" if state is State.SENT else None
                details.append(Detail(i, FIRST + i, 1000 * AT_S, wamid, message_status=status))
        is_done = State.INTENT not in outcomes
        record = msgspec.msgpack.encode(details)
        await self.queue.report("w1", claim, facts=facts, record=record, done=is_done)
        return job

    async def said(self, *statuses: dict[str, Any], number: str = "1001") -> None:
        await self.inbox.append(body(*statuses, number=number))

    async def work(self) -> None:
        """Work off what waits, outcomes first and last, as two side tasks would in a second."""
        for act in (self.write, self.read, self.write, self.consumer.sweep):
            await act()

    async def read(self) -> None:
        stop = asyncio.Event()
        hooks = await self.inbox.read("w1", 100, 1, given=False)
        await self.consumer._work_off(hooks, stop)

    async def write(self) -> None:
        await self.writer._drain(0)

    async def row(self, job: str, position: int) -> dict[str, Any]:
        found = await self.pool.fetchrow(
            "SELECT l.* FROM campaign_logs l WHERE job_id = $1 AND position = $2", job, position
        )
        return dict(found) if found else {}

    async def figures(self, job: str) -> list[tuple[int, ...]]:
        """Return unknown, sent, delivered, read, undelivered by Redis, its snapshot, PostgreSQL."""
        status = (await self.queue.statuses([job]))[0]
        assert status is not None
        row = await self.archive.job(job, None)
        assert row is not None
        logs = await self.pool.fetchrow(
            "SELECT count(*) FILTER (WHERE outcome = 'unknown') AS unknown,"
            " count(*) FILTER (WHERE outcome = 'sent') AS sent,"
            " count(*) FILTER (WHERE receipt >= 3) AS delivered,"
            " count(*) FILTER (WHERE receipt = 4) AS read,"
            " count(*) FILTER (WHERE receipt = 2) AS undelivered"
            " FROM campaign_logs WHERE job_id = $1",
            job,
        )
        assert logs is not None
        tally, shown = status.tally, progress_of(status)
        receipts = (status.delivered, status.read, status.undelivered)
        return [
            (tally.unknown, tally.sent, *receipts),
            (shown.unknown, shown.sent, shown.delivered, shown.read, shown.undelivered),
            (row.unknown, row.sent, row.delivered, row.read, row.undelivered),
            tuple(logs),
        ]

    async def waiting(self) -> int:
        client: Any = self.queue.visitors
        return int(await client.xlen(keys.INBOX))

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"drumbeat_{name}", labels) or 0.0


def status(
    wamid: str,
    word: str,
    after_s: int = 1,
    *,
    of: tuple[str, int] | None = None,
    code: int | None = None,
    attempt: int = 1,
) -> dict[str, Any]:
    made: dict[str, Any] = {"id": wamid, "status": word, "timestamp": str(AT_S + after_s)}
    made["recipient_id"] = "15550000000"
    if of is not None:
        made["biz_opaque_callback_data"] = opaque_for(KEY, of[0])(of[1], attempt)
    if code is not None:
        details = {"details": "to +15550000000"}
        made["errors"] = [{"code": code, "title": "x", "error_data": details}]
    return made


def body(*statuses: dict[str, Any], number: str = "1001", field: str = "messages") -> bytes:
    value = {"messaging_product": "whatsapp", "metadata": {"phone_number_id": number}}
    value["statuses"] = list(statuses)  # type: ignore[assignment]
    entry = {"id": "w1", "changes": [{"field": field, "value": value}]}
    return json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()


@pytest.fixture
async def post(settings: Settings, queue: Queue) -> AsyncIterator[Post]:
    async with AsyncExitStack() as stack:
        pool = await open_postgres(settings)
        stack.push_async_callback(pool.close)
        made = Post(settings, queue, pool)
        stack.push_async_callback(made.inbox.close)
        await made.open()
        yield made
