"""Bytes on a socket: what is not HTTP, who is slow, who comes too often. No byte is echoed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from shared.settings import Settings
from tests.conftest import replaced
from tests.integration.desk import PASSWORD, Api, opened, problem

Eventually = Callable[..., Awaitable[Any]]
HOST = b"Host: 127.0.0.1\r\n"
SECRET = b"SECRETBYTES"


async def told(api: Api, raw: bytes, within_s: float = 5) -> bytes:
    """Send bytes; return everything that comes until the server closes."""
    server = api.client.server
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(raw)
        async with asyncio.timeout(within_s):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def post(*headers: bytes, body: bytes = b"") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST /api/bulk/send HTTP/1.1\r\n" + HOST + lines + b"\r\n" + body


RAW: list[tuple[str, bytes, set[bytes]]] = [
    ("cl and te", post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
     {b"400"}),
    ("two cl", post(b"Content-Length: 1", b"Content-Length: 2", body=SECRET), {b"400"}),
    ("two equal cl", post(b"Content-Length: 1", b"Content-Length: 1", body=b"a"), {b"400"}),
    ("negative cl", post(b"Content-Length: -1"), {b"400"}),
    ("signed cl", post(b"Content-Length: +1", body=b"a"), {b"400"}),
    ("obs-fold", post(b"X-A: " + SECRET, b" folded"), {b"400"}),
    ("nul in a header", post(b"X-A: a\x00b"), {b"400"}),
    ("blank before the colon", post(b"X-A : b"), {b"400"}),
    ("bare cr", b"GET /livez HTTP/1.1\r" + HOST + b"\r\n", {b"400"}),
    ("200 headers", b"GET /livez HTTP/1.1\r\n" + HOST
     + b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"Connection: close\r\n\r\n", {b"400"}),
    ("16 KB header", post(b"X-A: " + b"a" * 16_384), {b"400"}),
    ("9 KB target", b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {b"400"}),
    ("no host", b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n", {b"400"}),
    ("no host in 1.0", b"GET /livez HTTP/1.0\r\n\r\n", {b"400"}),
    ("two hosts", b"GET /livez HTTP/1.1\r\n" + HOST + b"Host: b\r\nConnection: close\r\n\r\n",
     {b"400"}),
    ("bad host", b"GET /api/bulk/jobs HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n",
     {b"421"}),
    ("0.9", b"GET /livez\r\n\r\n", {b"400"}),
    ("2.0", b"GET /livez HTTP/2.0\r\n" + HOST + b"\r\n", {b"400"}),
    ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SECRET + b"\r\n\r\n", {b"400"}),
    ("method FOO", b"FOO /api/bulk/jobs HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
     {b"400", b"405"}),
    ("method of 100", b"F" * 100 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", {b"400", b"405"}),
    ("te gzip", post(b"Transfer-Encoding: gzip"), {b"400"}),
    ("te twice", post(b"Transfer-Encoding: chunked, chunked"), {b"400"}),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "statuses"), [case[1:] for case in RAW], ids=[c[0] for c in RAW])
async def test_what_is_not_http_is_told_so_and_the_connection_closes(
    api: Api, raw: bytes, statuses: set[bytes]
) -> None:
    answer = await told(api, raw)
    assert answer.split(b" ", 2)[1] in statuses, answer
    assert b"application/problem+json" in answer
    assert b"\r\nX-Request-Id: req_" in answer
    assert b'"type":"' + api.made.settings.public_url.encode() + b"/errors/" in answer
    assert SECRET not in answer
    assert b"\r\nServer:" not in answer
    assert answer.count(b"HTTP/") == 1


async def test_bad_chunks_are_refused_and_their_bytes_not_read_as_a_request(api: Api) -> None:
    bearer = b"Authorization: Bearer " + api.tokens["ann"].encode()
    kind = b"Content-Type: application/json"
    for body in (
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}GET /livez HTTP/1.1\r\n" + HOST + b"\r\n",
        b"ffffffffffffffffff\r\n{}",
    ):
        raw = post(bearer, kind, b"Transfer-Encoding: chunked", body=body)
        answer = await told(api, raw)
        assert answer.split(b" ", 2)[1] == b"400", answer
        assert answer.count(b"HTTP/1.") == 1, answer


async def test_a_thousand_pipelined_are_answered_in_order(api: Api) -> None:
    one = b"GET /livez HTTP/1.1\r\n" + HOST
    raw = (one + b"\r\n") * 999 + one + b"Connection: close\r\n\r\n"
    answer = await told(api, raw, within_s=30)
    assert answer.count(b"HTTP/1.1 200 OK") == 1000


def bearer(api: Api, who: str = "ann") -> str:
    return f"Bearer {api.tokens[who]}"


async def test_credentials_that_are_none(api: Api) -> None:
    path, cookie = "/api/bulk/jobs", "drumbeat"
    login = {"email": "ann@example.com", "password": PASSWORD}
    response = await api.client.post("/api/session", json=login)
    good = response.headers["Set-Cookie"].split(";")[0]
    api.client.session.cookie_jar.clear()
    for headers in (
        {"Cookie": f"{cookie}={'a' * 7000}"},
        {"Cookie": f"{good}; {good}"},
        {"Cookie": f"{cookie}=\udcff\udcfe"},
        {"Cookie": f"__Host-{good}"},
        {"Cookie": good, "Authorization": "Bearer"},
        {"Cookie": good, "Authorization": "Bearer " + "a" * 7000},
    ):
        response = await api.client.get(path, headers=headers)
        await problem(response, 401, "unauthenticated")
    # A bearer decides, and no cookie is read.
    headers = {"Cookie": f"{cookie}=garbage", "Authorization": bearer(api)}
    assert (await api.client.get(path, headers=headers)).status == 200
    line = b"Authorization: " + bearer(api).encode() + b"\r\n"
    raw = b"GET /api/bulk/jobs HTTP/1.1\r\n" + HOST + line * 2 + b"\r\n"
    answer = await told(api, raw)
    assert b" 400 " in answer[:20]
    assert b'"bad_request"' in answer


async def test_parameters_nobody_offers(api: Api) -> None:
    many = "&".join(f"a{n}" for n in range(1000))
    for query in (many, "__proto__=1", "limit[]=1", "limit[0]=1", "constructor.prototype=1"):
        response = await api.ask("ann", "GET", f"/api/bulk/jobs?{query}")
        await problem(response, 422, "unknown_parameter")
    job = (await (await api.send()).json())["jobId"]
    response = await api.ask("ann", "GET", f"/realtime/bulk/{job}?{many}")
    assert response.status == 200
    response.close()


async def test_no_body_is_read_before_the_credential(api: Api) -> None:
    raw = post(b"Content-Length: 10000000000", b"Expect: 100-continue")
    answer = await told(api, raw)
    assert answer.split(b" ", 2)[1] == b"401"
    assert b"100 Continue" not in answer


@pytest.mark.parametrize(
    ("line", "expected", "status"),
    [
        (b"PUT /api/bulk/jobs", b"100-continue", b"405"),
        (b"PUT /api/bulk/jobs", b"0", b"405"),
        (b"POST /nothing/here", b"100-continue", b"404"),
        (b"POST /nothing/here", b"200-ok", b"404"),
        (b"GET /livez", b"200-ok", b"417"),
    ],
    ids=range(5),
)
async def test_what_a_request_expects_changes_no_refusal(
    api: Api, line: bytes, expected: bytes, status: bytes
) -> None:
    raw = line + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n"
    answer = await told(api, raw + b"Content-Length: 9\r\nExpect: " + expected + b"\r\n\r\n")
    assert answer.split(b" ", 2)[1] == status, answer
    assert b"100 Continue" not in answer
    assert b"application/problem+json" in answer
    assert b"X-Request-Id" in answer


async def test_slow_clients_are_let_go_and_hold_nobody_up(settings: Settings) -> None:
    quick = replaced(settings, header_timeout_s=0.5, body_timeout_s=0.5, connections_per_ip=510)
    async with AsyncExitStack() as stack:
        api = await opened(quick, stack)
        server = api.client.server
        # No more at once than a listening socket keeps for who has not been let in.
        loop, door = asyncio.get_running_loop(), asyncio.Semaphore(50)

        async def slow(number: int) -> float:
            """Be silent, or send headers byte by byte; return how long one was let."""
            async with door:
                reader, writer = await asyncio.open_connection(server.host, server.port)
            began = loop.time()
            raw = b"" if number % 2 else b"GET /livez HTTP/1.1\r\nHost: "
            writer.write(raw)
            ended = asyncio.ensure_future(reader.read())
            while not ended.done() and loop.time() - began < 20:
                if raw:
                    writer.write(b"a")
                await asyncio.wait({ended}, timeout=0.1)
            ended.cancel()
            writer.close()
            return loop.time() - began

        crowd = [asyncio.create_task(slow(number)) for number in range(500)]
        for _ in range(20):
            assert (await api.ask("ann", "GET", "/api/bulk/jobs")).status == 200
        assert max(await asyncio.gather(*crowd)) < 15
        # A body that drips gets its time, and no more.
        head = post(
            b"Authorization: " + bearer(api).encode(),
            b"Content-Type: application/json",
            b"Content-Length: 1000",
            body=b"{",
        )
        answer = await told(api, head)
        assert answer.split(b" ", 2)[1] == b"400", answer
        # A connection that has asked once may stay silent for longer than headers may take.
        response = await api.client.get("/livez")
        await response.read()
        assert response.status == 200


async def test_an_address_has_so_many_connections_and_no_more(
    settings: Settings, eventually: Eventually
) -> None:
    async with AsyncExitStack() as stack:
        api = await opened(replaced(settings, connections_per_ip=5), stack)
        server = api.client.server
        held = [await asyncio.open_connection(server.host, server.port) for _ in range(5)]
        one = b"GET /livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
        held[0][1].write(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
        assert b" 200 " in await held[0][0].readline()
        assert await told(api, one) == b""
        held[1][1].close()

        async def is_let_in() -> bool:
            return b" 200 " in (await told(api, one))[:20]

        await eventually(is_let_in)
        for _, writer in held:
            writer.close()


async def test_one_more_request_a_minute_than_are_allowed_waits(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        api = await opened(replaced(settings, api_requests_per_minute=3), stack)
        for _ in range(3):
            assert (await api.ask("ann", "GET", "/api/bulk/jobs")).status == 200
        response = await api.ask("ann", "GET", "/api/bulk/jobs")
        body = await problem(response, 429, "rate_limited")
        assert body["violated-policies"] == ["requests"]
        assert 50 <= int(response.headers["Retry-After"]) <= 60
        assert (await api.ask("ben", "GET", "/api/bulk/jobs")).status == 200
        # What needs no credential is not counted.
        for _ in range(5):
            assert (await api.client.get("/livez")).status == 200
