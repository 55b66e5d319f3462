"""The streams over real HTTP and a real Valkey: where a reader goes on, and how a stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from api import progress, stream
from api.auth import PRINCIPAL, Principal
from api.client import Event, Parser
from api.hub import Hub
from api.progress import order_or_zero
from api.resources import RESOURCES, Resources
from api.router import REQUEST_ID, install
from shared import settings as settings_module
from shared.archive import JobRow
from shared.clock import Clock
from shared.embedded.valkey import Valkey
from shared.errors import DeniedError, DrumbeatError, QueueError, RequestError
from shared.ids import Ids
from shared.metrics import ApiMetrics
from shared.models import Chunk, JobSpec, JobStatus
from shared.queue import Queue
from tests.faults.mutants import snapshot_first

Http = TestClient[web.Request, web.Application]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Eventually = Callable[..., Awaitable[Any]]
ROW = JobRow(
    number=1, id="", owner="u1", campaign_id=None, name=None, state="queued", version=1, by="",
    reason="", kind="text", template_name=None, template_language=None, sender_id="s1",
    sender_name="main", message=b"{}", vars=[], chunk_size=50, recipients=2, intake=b"{}", rate=0.0,
    weight=4, priority="normal", scheduled_ms=0, expires_ms=0, on_unknown="hold", reserved=2,
    step=2, born="b1", request_hash=None, response=None, created_ms=1, started_ms=0, finished_ms=0,
    parent=None, sandbox=False, sent=0, failed=0, skipped=0, unknown=0, cancelled=0, delivered=0,
    read=0, undelivered=0, end_event=None,
)  # fmt: skip


class Rows(dict[str, JobRow]):
    """What the archive would answer."""

    async def job(self, job_id: str, owner: str | None) -> JobRow | None:
        row = self.get(job_id)
        return row if row is not None and owner in {None, row.owner} else None

    async def reason_counts(self, _job_id: str) -> dict[int, int]:
        return {1: 2}


@pytest.fixture
async def queue(valkey: Valkey, request: pytest.FixtureRequest) -> AsyncIterator[Queue]:
    environ = {
        "REDIS_URL": valkey.url,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1/none",
        "BULK_SECRET_KEY": "0123456789abcdef0123456789abcdef",
        "SSE_INTERVAL_MS": "50",
        "SSE_PER_USER": "2",
        "SSE_HEARTBEAT_S": getattr(request, "param", "1"),
        "SSE_SEND_TIMEOUT_S": "1",
    }
    opened = await Queue.open(settings_module.load(environ, None))
    await opened.visitors.flushall()
    await opened.give_born(0, "b1")
    await opened.prepare(0)
    yield opened
    await opened.close()


class Credential(dict[str, DrumbeatError]):
    """What is wrong with the credential, and how often it was looked at."""

    asked = 0


@pytest.fixture(autouse=True)
def credential(monkeypatch: pytest.MonkeyPatch) -> Credential:
    """Put an error in, and the next heartbeat meets it."""
    errors = Credential()

    async def look(request: web.Request) -> Principal:
        errors.asked += 1
        for error in errors.values():
            raise error
        return request[PRINCIPAL]

    monkeypatch.setattr(stream.CREDENTIALS, "principal_of", look)
    return errors


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
async def hub(queue: Queue) -> AsyncIterator[Hub]:
    made = Hub(queue, queue.settings, Clock(), ApiMetrics(CollectorRegistry()))
    running = asyncio.create_task(made.run())
    yield made
    await made.close()
    await asyncio.wait_for(running, 5)


class Server(TestServer):
    """As in production: a reader who leaves does not cancel his handler."""

    async def _make_runner(self, **kwargs: Any) -> web.BaseRunner[Any]:
        return await super()._make_runner(**{**kwargs, "handler_cancellation": False})


@pytest.fixture
async def http(queue: Queue, hub: Hub, rows: Rows) -> AsyncIterator[Http]:
    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[PRINCIPAL] = Principal("u1", "", "user", ("read",))
        request[REQUEST_ID] = "req_1"
        try:
            return await handler(request)
        except DrumbeatError as error:
            word = error.word if isinstance(error, RequestError) else error.code
            return web.Response(status=418, text=word)

    app = web.Application(middlewares=[admit])
    made = SimpleNamespace(
        settings=queue.settings,
        clock=Clock(),
        ids=Ids(),
        queue=queue,
        archive=rows,
        hub=hub,
        metrics=ApiMetrics(CollectorRegistry()),
    )
    app[RESOURCES] = cast("Resources", made)
    install(app, stream.ROUTES)
    async with TestClient(Server(app)) as client:
        yield client


async def submit(queue: Queue, rows: Rows) -> str:
    # Nothing is released to a paused sender, so that a cancel ends the job at once.
    await queue.sender(0, "s1", version=1, rate=0, burst=0, paused=True, why="")
    job = Ids().job_id(0)
    await queue.stage(job, 0, [msgspec.msgpack.encode(Chunk([15550000000, 15550000001]))])
    spec = JobSpec(job, "s1", "u1", 2, 50, 2, 2, b"{}", [], created_ms=1)
    assert (await queue.submit(spec)).kind == "made"
    rows[job] = msgspec.structs.replace(ROW, id=job)
    return job


class Reader:
    """One open stream."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self._parser = Parser()
        self._events: list[Event] = []

    async def next(self) -> tuple[Event, dict[str, Any]]:
        while not self._events:
            piece = await asyncio.wait_for(self.answer.content.readany(), 5)
            if not piece:
                raise EOFError
            self._events += [e for e in self._parser.feed(piece) if e.data]
        event = self._events.pop(0)
        return event, msgspec.json.decode(event.data)


async def follow(http: Http, path: str, last: str | None = None) -> Reader:
    headers = {"Last-Event-ID": last} if last is not None else {}
    answer = await http.get(path, headers=headers)
    assert answer.status == 200
    return Reader(answer)


async def test_a_stream_begins_whole_follows_and_closes_after_the_end(
    http: Http, queue: Queue, rows: Rows, hub: Hub, eventually: Eventually
) -> None:
    job = await submit(queue, rows)
    reader = await follow(http, f"/realtime/bulk/{job}")
    assert reader.answer.headers["Content-Type"] == "text/event-stream"
    assert reader.answer.headers["Cache-Control"] == "no-store, no-transform"
    assert reader.answer.headers["X-Accel-Buffering"] == "no"
    first, data = await reader.next()
    assert (data["type"], data["state"], data["progress"]["total"]) == ("snapshot", "queued", 2)
    await queue.control(job, "pause", by="u1", reason="x\n\ndata: {}")
    second, data = await reader.next()
    assert (data["type"], data["wait"]["detail"]) == ("progress", "x\n\ndata: {}")
    assert second.id > first.id
    await queue.control(job, "cancel", by="u1")
    end, data = await reader.next()
    assert (data["type"], data["progress"]["done"]) == ("end", 2)
    with pytest.raises(EOFError):
        await reader.next()
    await eventually(lambda: hub.connections == 0)
    gone = await http.get(f"/realtime/bulk/{job}", headers={"Last-Event-ID": end.id})
    assert gone.status == 204
    again = await follow(http, f"/realtime/bulk/{job}", second.id)
    assert (await again.next())[0].id == end.id


@pytest.fixture
def paused_between(
    queue: Queue, hub: Hub, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """Let every job be paused, and the hub have read of it, after a stream's first look."""
    snapshots = hub.snapshots

    def has_read(event: str) -> bool:
        return order_or_zero(hub._after[0]) >= order_or_zero(event)

    async def then_pause(job_ids: list[str]) -> list[JobStatus | None]:
        found = await snapshots(job_ids)
        for job in job_ids:
            event = (await queue.control(job, "pause", by="u1")).event
            await eventually(partial(has_read, event))
        return found

    monkeypatch.setattr(hub, "snapshots", then_pause)


async def is_told(http: Http, queue: Queue, rows: Rows, within_s: float) -> bool:
    reader = await follow(http, f"/realtime/bulk/{await submit(queue, rows)}")
    assert (await reader.next())[1]["state"] == "queued"
    try:
        return (await asyncio.wait_for(reader.next(), within_s))[1]["state"] == "paused"
    except TimeoutError:
        return False


# What was missed is found by a heartbeat: here it comes too late.
@pytest.mark.parametrize("queue", ["60"], indirect=True)
@pytest.mark.usefixtures("paused_between")
async def test_what_changes_after_the_first_look_is_told_before_a_heartbeat(
    http: Http, queue: Queue, rows: Rows
) -> None:
    assert await is_told(http, queue, rows, 5)


@pytest.mark.parametrize("queue", ["60"], indirect=True)
@pytest.mark.usefixtures("paused_between")
async def test_a_stream_that_looks_before_it_watches_is_caught(
    http: Http, queue: Queue, rows: Rows
) -> None:
    with snapshot_first():
        assert not await is_told(http, queue, rows, 1)


async def test_a_reader_of_the_newest_waits_and_one_from_nowhere_is_reset(
    http: Http, queue: Queue, rows: Rows, hub: Hub, eventually: Eventually
) -> None:
    job = await submit(queue, rows)
    first, _ = await (await follow(http, f"/realtime/bulk/{job}")).next()
    waits = await follow(http, f"/realtime/bulk/{job}?lastEventId={first.id}")
    await eventually(lambda: hub.connections == 2)
    await queue.control(job, "pause", by="u1")
    _, data = await waits.next()
    assert data["state"] == "paused"


@pytest.mark.parametrize("given", ["garbage", "99999999999999-0", "9" * 4096])
async def test_an_id_nobody_gave_out_is_answered_with_a_reset(
    http: Http, queue: Queue, rows: Rows, given: str
) -> None:
    job = await submit(queue, rows)
    _, data = await (await follow(http, f"/realtime/bulk/{job}", given)).next()
    assert (data["type"], data["reset"]) == ("snapshot", True)


async def test_the_end_is_told_when_only_postgres_has_the_job(http: Http, rows: Rows) -> None:
    job = Ids().job_id(0)
    rows[job] = msgspec.structs.replace(
        ROW, id=job, state="cancelled", cancelled=2, end_event="7-0", version=3
    )
    reader = await follow(http, f"/realtime/bulk/{job}", "6-0")
    event, data = await reader.next()
    assert (event.id, data["type"], data["state"]) == ("7-0", "end", "cancelled")
    assert data["progress"]["by_reason"] == {"suppressed": 2}
    gone = await http.get(f"/realtime/bulk/{job}", headers={"Last-Event-ID": "7-0"})
    assert gone.status == 204


async def half_written(queue: Queue, rows: Rows) -> tuple[str, str]:
    """Return a job that is over, one of its two outcomes not in PostgreSQL yet, and its end."""
    job = await submit(queue, rows)
    await queue.control(job, "cancel", by="u1")
    [status] = await queue.statuses([job])
    assert status is not None
    rows[job] = msgspec.structs.replace(
        rows[job], state="cancelled", cancelled=1, end_event=status.event, version=status.version,
        finished_ms=Clock().now_ms(),
    )  # fmt: skip
    return job, status.event


async def test_the_end_is_told_by_redis_while_postgres_lacks_outcomes(
    http: Http, queue: Queue, rows: Rows
) -> None:
    """A dead log writer's last rows are taken over after the state that ended the job."""
    job, end = await half_written(queue, rows)
    event, data = await (await follow(http, f"/realtime/bulk/{job}")).next()
    assert (event.id, data["type"]) == (end, "end")
    assert data["progress"]["cancelled"] == 2


async def test_many_jobs_share_a_stream_that_ends_with_the_last(
    http: Http, queue: Queue, rows: Rows
) -> None:
    jobs = sorted([await submit(queue, rows), await submit(queue, rows)])
    reader = await follow(http, f"/realtime/bulk?jobs={jobs[1]},{jobs[0]}", "1-0")
    seen = [await reader.next() for _ in jobs]
    assert sorted(data["jobId"] for _, data in seen) == jobs
    assert seen[0][0].id < seen[1][0].id
    for job in reversed(jobs):
        await queue.control(job, "cancel", by="u1")
    ends = [await reader.next() for _ in jobs]
    assert {data["type"] for _, data in ends} == {"end"}
    with pytest.raises(EOFError):
        await reader.next()
    largest = max(event.id for event, _ in ends)
    path = f"/realtime/bulk?jobs={','.join(jobs)}"
    again = await follow(http, path)
    assert [(await again.next())[0].id for _ in jobs][-1] == largest
    assert (await http.get(path, headers={"Last-Event-ID": largest})).status == 204


async def test_what_may_not_be_watched_is_refused_before_the_first_byte(
    http: Http, queue: Queue, rows: Rows, hub: Hub
) -> None:
    job = await submit(queue, rows)
    foreign = await submit(queue, rows)
    rows[foreign] = msgspec.structs.replace(rows[foreign], owner="u2")
    for path in (f"/realtime/bulk/{foreign}", "/realtime/bulk/x", f"/realtime/bulk?jobs={foreign}"):
        assert await (await http.get(path)).text() == "not_found"
    path = f"/realtime/bulk/{job}"
    assert (await http.head(path)).status == 405
    refused = await http.get(path, headers={"Accept": "application/json"})
    assert await refused.text() == "not_acceptable"
    assert await (await http.get("/realtime/bulk")).text() == "validation_failed"
    assert hub.connections == 0
    kept = [await follow(http, path), await follow(http, path)]
    assert await (await http.get(path)).text() == "too_many_streams"
    assert len(kept) == hub.connections


async def test_a_reader_who_leaves_gives_his_seat_back_before_a_heartbeat(
    http: Http, queue: Queue, rows: Rows, hub: Hub, eventually: Eventually
) -> None:
    """Reloading a page twenty times must not lock its user out for a quarter of a minute."""
    made = http.app[RESOURCES]
    made.settings = msgspec.structs.replace(made.settings, sse_heartbeat_s=60)
    path = f"/realtime/bulk/{await submit(queue, rows)}"
    readers = [await follow(http, path), await follow(http, path)]
    readers[0].answer.close()
    await eventually(lambda: hub.connections == 1, within_s=5)
    readers.append(await follow(http, path))
    assert hub.connections == 2


async def test_a_stop_says_good_bye_and_when_to_return(
    http: Http, queue: Queue, rows: Rows, hub: Hub
) -> None:
    job = await submit(queue, rows)
    reader = await follow(http, f"/realtime/bulk/{job}")
    await reader.next()
    closing = asyncio.create_task(hub.close())
    event, _ = await reader.next()
    assert event.name == "bye"
    assert 500 <= event.retry_ms <= 3000
    with pytest.raises(EOFError):
        await reader.next()
    await asyncio.wait_for(closing, 1)


async def test_a_revoked_credential_ends_the_stream_and_a_lost_store_does_not(
    http: Http, queue: Queue, rows: Rows, credential: Credential, eventually: Eventually
) -> None:
    job = await submit(queue, rows)
    reader = await follow(http, f"/realtime/bulk/{job}")
    await reader.next()
    credential["store"] = QueueError("lost", refused=True)
    asked = credential.asked
    await eventually(lambda: credential.asked > asked)
    credential.clear()
    await queue.control(job, "pause", by="u1")
    assert (await reader.next())[1]["state"] == "paused"
    credential["gone"] = DeniedError("unauthenticated", "")
    event, _ = await reader.next()
    assert event.name == "revoked"
    with pytest.raises(EOFError):
        await reader.next()


async def test_a_stream_opened_during_an_outage_is_told_when_it_is_over(
    http: Http,
    queue: Queue,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:
    job = await submit(queue, rows)
    asked: list[list[str]] = []

    async def lost(ids: list[str]) -> None:
        asked.append(ids)
        raise QueueError("lost", refused=True)

    with monkeypatch.context() as patch:
        patch.setattr(queue, "statuses", lost)
        reader = await follow(http, f"/realtime/bulk/{job}")
        await eventually(lambda: len(asked) > 1)  # when it was opened, and again
    event, data = await reader.next()
    assert (data["type"], data["state"]) == ("snapshot", "queued")
    assert event.id


async def test_a_job_on_its_way_to_redis_is_shown_and_then_followed(
    http: Http, queue: Queue, rows: Rows
) -> None:
    job = await submit(queue, rows)
    await queue.visitors.rename(f"{{s0}}:job:{job}", "{s0}:aside")
    rows[job] = msgspec.structs.replace(rows[job], state="accepted")
    reader = await follow(http, f"/realtime/bulk/{job}")
    event, data = await reader.next()
    assert (event.id, data["state"], data["wait"]["reason"]) == ("", "queued", "storage")
    await queue.visitors.rename("{s0}:aside", f"{{s0}}:job:{job}")
    await queue.control(job, "pause", by="u1")
    event, data = await reader.next()
    assert data["state"] == "paused"
    assert event.id


async def test_a_client_that_does_not_read_is_cut_off(
    http: Http, queue: Queue, rows: Rows, hub: Hub, eventually: Eventually
) -> None:
    job = await submit(queue, rows)
    reader = await follow(http, f"/realtime/bulk/{job}")
    await reader.next()
    status = (await queue.statuses([job]))[0]
    assert status is not None
    frame = hub.frame(status, "progress", is_reset=True)
    (subscription,) = hub._open
    subscription.offer(frame._replace(data=b"data: " + b"x" * (32 << 20) + b"\n\n"))
    await eventually(lambda: hub.connections == 0)
    assert hub._metrics.sse_disconnects_total.labels("slow")._value.get() == 1


async def test_with_receipts_the_stream_goes_on_after_the_end_for_a_day(
    http: Http, rows: Rows
) -> None:
    job, now_ms = Ids().job_id(0), Clock().now_ms()
    ended = msgspec.structs.replace(
        ROW, id=job, state="completed", sent=1, unknown=1, end_event="7-0", version=3,
        finished_ms=now_ms,
    )  # fmt: skip
    rows[job] = ended
    path = f"/realtime/bulk/{job}?receipts=1"
    reader = await follow(http, path, "6-0")
    end, data = await reader.next()
    assert (end.id, data["type"]) == ("7-0", "end")
    rows[job] = msgspec.structs.replace(ended, receipts_version=1, delivered=1)
    first, data = await reader.next()
    assert (data["type"], data["progress"]["delivered"], data["state"]) == (
        "receipts", 1, "completed"
    )  # fmt: skip
    rows[job] = msgspec.structs.replace(rows[job], sent=2, unknown=0)
    second, data = await reader.next()
    assert (data["progress"]["sent"], data["progress"]["unknown"]) == (2, 0)
    places = [progress.order_or_zero(event.id) for event in (end, first, second)]
    assert places == sorted(set(places))
    plain = await http.get(f"/realtime/bulk/{job}", headers={"Last-Event-ID": "7-0"})
    assert plain.status == 204
    # Who comes back gets the newest sums at once, above what he has.
    again, data = await (await follow(http, path, second.id)).next()
    assert (data["type"], data["progress"]["sent"]) == ("receipts", 2)
    assert progress.order_or_zero(again.id) > places[-1]
    rows[job] = msgspec.structs.replace(rows[job], finished_ms=now_ms - stream.RECEIPTS_MS - 1)
    with pytest.raises(EOFError):
        await reader.next()
    late = await http.get(path, headers={"Last-Event-ID": second.id})
    assert late.status == 204


async def test_receipts_wait_until_all_that_has_ended_is_written(
    http: Http, queue: Queue, rows: Rows
) -> None:
    job, end = await half_written(queue, rows)
    rows[job] = msgspec.structs.replace(rows[job], receipts_version=2, delivered=1)
    reader = await follow(http, f"/realtime/bulk/{job}?receipts=1", end)
    await asyncio.sleep(0)
    rows[job] = msgspec.structs.replace(rows[job], cancelled=2)
    _, data = await reader.next()
    assert (data["type"], data["progress"]["cancelled"]) == ("receipts", 2)
