"""`drumbeat trigger`: the sandbox posts what it is asked to, signed; Meta is never asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from api.cli.trigger import asked_of, refusal_of
from api.webhooks import is_signed
from shared.clock import Clock
from shared.embedded.children import free_port
from shared.errors import InvalidError
from shared.ids import Ids
from shared.receipts import DELIVERED, FAILED
from tests.integration.command import Run, refused
from worker.graph import GraphClient
from worker.sandbox.app import Sandbox
from worker.sandbox.behaviour import Behaviour, Config
from worker.sandbox.ledger import Ledger
from worker.sandbox.statuses import Hooks, Webhooks
from worker.webhooks import Told, read

Eventually = Callable[..., Awaitable[Any]]
KEY, APP_SECRET = b"opaque", "s"
JOB, OTHER = "job_01m86db0v300hd99fdtgj8yepfzx", "job_01m86db0v300hd99fdtgj8yepfzy"


class Far:
    """A sandbox of this process whose webhooks are told to a server that keeps them."""

    def __init__(self, folder: Path, token: str | None) -> None:
        self.bodies: list[bytes] = []
        self.hooks = Hooks(silent=1.0)
        clock, ids = Clock(), Ids(1)
        self.sandbox = Sandbox(
            Behaviour(Config(rate=0, latency_ms=0)),
            Ledger(folder / "ledger.jsonl"),
            clock,
            ids,
            token,
            Webhooks(self.hooks, APP_SECRET, clock, ids),
        )

    async def hear(self, request: web.Request) -> web.Response:
        body = await request.read()
        assert is_signed(body, request.headers["X-Hub-Signature-256"], [APP_SECRET])
        self.bodies.append(body)
        return web.Response()

    async def open(self, stack: AsyncExitStack) -> None:
        app = web.Application()
        app.router.add_post("/", self.hear)
        server = await stack.enter_async_context(TestServer(app))
        self.hooks.url = str(server.make_url("/"))
        await self.sandbox.listen("127.0.0.1", 0)
        stack.push_async_callback(self.sandbox.close)
        self.url = f"http://127.0.0.1:{self.sandbox.port}"
        self.graph = await stack.enter_async_context(GraphClient(self.url, timeout_s=5))

    async def take(self, job: str, *numbers: int) -> None:
        """Accept a message for each of these recipients of a job."""
        for position, number in enumerate(numbers):
            place = f"d1.{job}.{position}.1"
            opaque = f"{place}.{blake2b(place.encode(), key=KEY, digest_size=8).hexdigest()}"
            body = (
                f'{{"messaging_product":"whatsapp","to":"+{number}","type":"text",'
                f'"text":{{"body":"hi"}},"biz_opaque_callback_data":"{opaque}"}}'
            )
            await self.graph.send("v22.0", "1001", "t", body.encode())

    def told(self) -> Told:
        [body] = self.bodies
        self.bodies.clear()
        return read(body, KEY)


@pytest.fixture
async def far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Far]:
    made = Far(tmp_path, getattr(request, "param", None))
    async with AsyncExitStack() as stack:
        await made.open(stack)
        monkeypatch.setenv("GRAPH_BASE_URL", made.url)
        yield made


async def test_statuses_of_a_jobs_messages_are_posted(
    run: Run, far: Far, eventually: Eventually
) -> None:
    # The second number is refused, so nothing is known of a message to it.
    await far.take(JOB, 15550000001, 15550008026, 15550000003)
    await far.take(OTHER, 15550000009)
    assert await run("trigger", "delivered", "--job", JOB) == (
        "delivered is posted for 2 messages\n"
    )
    await eventually(lambda: far.bodies)
    told = far.told()
    assert [(s.job, s.position, s.receipt, s.number) for s in told.statuses] == [
        (JOB, 0, DELIVERED, "1001"), (JOB, 2, DELIVERED, "1001"),
    ]  # fmt: skip
    assert not told.odd
    words = ("--job", JOB, "--position", "2", "--code", "131049")
    await run("trigger", "failed", *words)
    await eventually(lambda: far.bodies)
    [status] = far.told().statuses
    assert (status.position, status.receipt, status.code) == (2, FAILED, 131049)


async def test_wishes_and_any_other_field_are_posted(
    run: Run, far: Far, eventually: Eventually
) -> None:
    await far.take(JOB, 15550000001, 15550000003)
    await run("trigger", "stop", "--job", JOB)
    await eventually(lambda: far.bodies)
    told = far.told()
    assert [(w.phone, w.is_stop, w.number) for w in told.wishes] == [
        (15550000001, True, "1001"), (15550000003, True, "1001"),
    ]  # fmt: skip
    assert not told.odd
    value = '{"event":"PAUSED","message_template_name":"order_update"}'
    words = ("--value", value, "--waba", "77")
    assert await run("trigger", "message_template_status_update", *words) == (
        "message_template_status_update is posted\n"
    )
    await eventually(lambda: far.bodies)
    assert b'"field":"message_template_status_update"' in far.bodies[0]
    assert b'"id":"77"' in far.bodies[0]


@pytest.mark.parametrize("far", ["opens"], indirect=True)
async def test_who_cannot_be_asked_says_what_to_do(
    run: Run, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("trigger", "read", "--job", JOB)
    assert "SANDBOX_ADMIN_TOKEN" in await refused(run, *words)
    monkeypatch.setenv("SANDBOX_ADMIN_TOKEN", "opens")
    assert "accepted no message of this job" in await refused(run, *words)
    far.hooks.url = ""
    assert "--webhook" in await refused(run, *words)
    monkeypatch.setenv("GRAPH_BASE_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConnectionError, match="no sandbox answers"):
        await run(*words)
    monkeypatch.delenv("GRAPH_BASE_URL")
    assert "Meta's own" in await refused(run, *words)
    assert far.bodies == []


@pytest.mark.parametrize(
    ("event", "job", "value"),
    [
        ("held", JOB, None),
        ("read", None, None),
        ("read", "job_1", None),
        ("account_update", None, "["),
        ("account_update", None, "[]"),
        ("account_update", JOB, "{}"),
    ],
)
def test_what_makes_no_sense_is_named(event: str, job: str | None, value: str | None) -> None:
    with pytest.raises(InvalidError):
        asked_of(event, job, None, 1, value, "0")


def test_a_stranger_is_no_sandbox() -> None:
    assert refusal_of(200, {"messages": 0}) == ""
    for status, body in ((200, None), (200, {}), (400, {"error": {"code": 100}}), (404, []),
                         (401, {"error": {"code": 190}})):  # fmt: skip
        assert "no sandbox" in refusal_of(status, body)
