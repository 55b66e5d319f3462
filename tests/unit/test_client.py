"""The API's other end against a server of a few lines: refusals, resume, several addresses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from api.client import Client, LostError, Parser, refusal
from shared.clock import Clock
from shared.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    NotFoundError,
    TooManyError,
    UnavailableError,
)

JOB = "job_01m86db0v300hd99fdtgj8yepfzx"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Hasty(Clock):
    """Waits are noted, not waited."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    async def sleep(self, delay_s: float) -> None:
        self.waits.append(delay_s)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Handler], Awaitable[str]]]:
    servers: list[TestServer] = []

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", handler)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return str(server.make_url("")).rstrip("/")

    yield start
    for server in servers:
        await server.close()


def event(number: int, kind: str = "progress") -> bytes:
    return f"id: {number}-0\ndata: {json.dumps({'type': kind, 'n': number})}\n\n".encode()


async def stream(request: web.Request, *frames: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for frame in frames:
        await response.write(frame)
    return response


def test_events_may_be_cut_anywhere() -> None:
    whole = (
        b"retry: 2000\n: ok\n\nid: 1-0\ndata: {}\n\n: hb\n\nevent: bye\nretry: 700\ndata: {}\n\n"
    )
    parser = Parser()
    found = [e for i in range(len(whole)) for e in parser.feed(whole[i : i + 1])]
    assert found == Parser().feed(whole)
    assert [(e.id, e.name, e.data, e.retry_ms) for e in found] == [
        ("", "", "", 2000),
        ("1-0", "", "{}", 0),
        ("1-0", "bye", "{}", 700),
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, DeniedError),
        (403, DeniedError),
        (404, NotFoundError),
        (409, ConflictError),
        (422, InvalidError),
        (429, TooManyError),
        (503, UnavailableError),
    ],
)
def test_a_refusal_is_raised_as_the_server_raised_it(status: int, kind: type[Exception]) -> None:
    body = {"code": "word", "detail": "why", "state": "paused", "errors": []}
    assert type(refusal(status, json.dumps(body).encode(), "7")) is kind
    assert type(refusal(status, b"<html>", None)) is kind


async def test_a_follower_resumes_with_the_last_id_and_ends_at_the_end(
    serve: Callable[[Handler], Awaitable[str]],
) -> None:
    given: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        given.append(request.headers.get("Last-Event-ID"))
        if len(given) == 1:
            return await stream(request, b"retry: 300\n: ok\n\n", event(1), event(2))
        if len(given) == 2:
            return web.Response(status=503, headers={"Retry-After": "2"})
        return await stream(request, event(3), event(4, "end"))

    clock = Hasty()
    async with Client(await serve(answer), clock=clock) as client:
        seen = [pair async for pair in client.watch(JOB)]
    assert [event_id for event_id, _ in seen] == ["1-0", "2-0", "3-0", "4-0"]
    assert given == [None, "2-0", "2-0"]
    assert 0.3 <= clock.waits[0] <= 0.375
    assert clock.waits[1] >= 2


async def test_204_ends_a_follower_without_an_event(
    serve: Callable[[Handler], Awaitable[str]],
) -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Last-Event-ID"] == "9-0"
        return web.Response(status=204)

    async with Client(await serve(answer)) as client:
        assert [pair async for pair in client.watch(JOB, "9-0")] == []


async def test_a_revoked_follower_does_not_return(
    serve: Callable[[Handler], Awaitable[str]],
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await stream(request, event(1), b"event: revoked\ndata: {}\n\n")

    async with Client(await serve(answer)) as client:
        with pytest.raises(DeniedError):
            _ = [pair async for pair in client.watch(JOB)]


async def test_a_dead_address_is_passed_over_also_by_a_submission(
    serve: Callable[[Handler], Awaitable[str]],
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/api/bulk/send":
            return web.json_response(
                {"jobId": JOB, "key": request.headers["Idempotency-Key"]}, status=202
            )
        return await stream(request, event(5, "end"))

    alive = await serve(answer)
    async with Client(["http://127.0.0.1:1", alive], "drb_x", clock=Hasty()) as client:
        assert (await client.submit({}, "k1"))["key"] == "k1"
        assert [event_id async for event_id, _ in client.watch(JOB)] == ["5-0"]


async def test_nobody_at_home_is_said_after_patience() -> None:
    async with Client("http://127.0.0.1:1", clock=Hasty()) as client:
        with pytest.raises(LostError):
            await client.job(JOB)
        with pytest.raises(LostError):
            _ = [pair async for pair in client.watch(JOB, patience_s=0.05)]
