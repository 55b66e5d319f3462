"""Clients that take their time, and clients that come and go: nobody else notices."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import AsyncExitStack

import aiohttp
import pytest

from shared.embedded.children import Child
from shared.settings import Settings
from tests.conftest import replaced
from tests.e2e.stack import KEY, Eventually, Stack
from tests.integration.desk import Api, opened

HOST = b"Host: 127.0.0.1\r\n"
AUTH = b"Authorization: Bearer " + KEY.encode() + b"\r\n"
SLOW, P99_S, REQUESTS = 500, 0.2, 500
# What a socket that is never read from takes in is the kernel's; beyond that somebody has to wait.
PIPELINED = 60


async def slow(origin: str, number: int) -> None:
    """Be slow for ever, in one of three ways: with headers, with a body, with reading."""
    host, port = origin.removeprefix("http://").split(":")
    raw = (
        b"GET /api/bulk/jobs HTTP/1.1\r\n" + HOST + b"X-Slow: ",
        b"POST /api/bulk/send HTTP/1.1\r\n" + HOST + AUTH
        + b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{",
        (b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n") * PIPELINED,
    )[number % 3]  # fmt: skip
    while True:
        plug = socket.socket()
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plug.setblocking(False)  # noqa: FBT003 - the socket's own
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(plug, (host, int(port)))
            await loop.sock_sendall(plug, raw)
            while number % 3 < 2:
                await asyncio.sleep(1)
                await loop.sock_sendall(plug, b" ")
            await asyncio.Event().wait()
        except ConnectionError:
            # Let go: come again, as such clients do.
            await asyncio.sleep(0.5)
        finally:
            plug.close()


async def p99_of(origin: str) -> float:
    """Ask as a normal client; return what 99 of 100 answers stay below, in seconds."""
    took = []
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
        for turn in range(REQUESTS):
            began = time.monotonic()
            path = "/api/bulk/jobs" if turn % 2 else "/api/session"
            async with http.get(origin + path) as answer:
                await answer.read()
                assert answer.status == 200
            took.append(time.monotonic() - began)
    return sorted(took)[REQUESTS * 99 // 100]


@pytest.mark.slow
async def test_five_hundred_slow_sockets_slow_nobody_else(
    stack: Stack, eventually: Eventually
) -> None:
    await stack.add_key()
    child, origin = await stack.add_api(
        eventually, CONNECTIONS_PER_IP="520", HEADER_TIMEOUT_S="5", BODY_TIMEOUT_S="5"
    )
    alone_s = await p99_of(origin)
    crowd = [asyncio.create_task(slow(origin, number)) for number in range(SLOW)]
    await eventually(lambda: sockets_of(child) > SLOW * 0.9, within_s=20)
    beside_s = await p99_of(origin)
    print(f"\np99 {alone_s * 1000:.1f} ms alone, {beside_s * 1000:.1f} ms beside {SLOW}")  # noqa: T201
    for task in crowd:
        assert not task.done(), task.exception()
        task.cancel()
    await asyncio.wait(crowd)
    assert beside_s <= P99_S
    assert '"level": "error"' not in child.log.read_text()


def sockets_of(child: Child) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{child.pid}/fd"))  # noqa: PTH208 - a count


@pytest.mark.slow
async def test_row_51_a_thousand_who_come_and_go_leave_nothing(
    settings: Settings, eventually: Eventually
) -> None:
    async with AsyncExitStack() as stack:
        api = await opened(replaced(settings, bulk_submits_per_hour_ip=0), stack)
        await come_and_go(api, eventually)


async def come_and_go(api: Api, eventually: Eventually) -> None:
    running = asyncio.create_task(api.made.hub.run())
    job = (await (await api.send()).json())["jobId"]
    path = f"/realtime/bulk/{job}"

    def held() -> int:
        return len(asyncio.all_tasks()) + len(os.listdir("/dev/fd"))  # noqa: PTH208 - a count

    async def comes(method: str) -> int:
        response = await api.ask("ann", method, path)
        response.close()
        return response.status

    assert await comes("GET") == 200
    await eventually(lambda: api.made.hub.connections == 0)
    before = held()
    for _ in range(67):
        # Fewer at once than a user has seats.
        assert {await comes("GET") for _ in range(15)} == {200}
        await eventually(lambda: api.made.hub.connections == 0)
    assert {await comes("HEAD") for _ in range(1000)} == {405}
    await eventually(lambda: held() <= before + 3, within_s=10)
    await api.made.hub.close()
    await running
