"""The fault proxy itself: each toxic does what its name says, in its direction, until healed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared.clock import Clock
from shared.embedded.postgres import Postgres
from shared.embedded.valkey import Valkey
from tests.faults.real.proxy import Framer, Kind, Proxy, http_end, resp_end

Eventually = Callable[..., Awaitable[Any]]
LOST = (OSError, asyncio.IncompleteReadError)


class Echo:
    """A server that says what it hears, and remembers it."""

    def __init__(self) -> None:
        self.heard = b""
        self.closed = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio's complains of one that is cancelled with the loop.
        self.tasks.add(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                self.heard += data
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self.closed += 1
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, int]]:
    made = Echo()
    server = await asyncio.start_server(made.take, "127.0.0.1", 0)
    yield made, server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
async def proxy(echo: tuple[Echo, int]) -> AsyncIterator[Proxy]:
    made = Proxy(echo[1])
    await made.open()
    yield made
    await made.close()


class Caller:
    """One connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, data: bytes, within_s: float = 5) -> bytes:
        self.writer.write(data)
        return await asyncio.wait_for(self.reader.readexactly(len(data)), within_s)


Call = Callable[[Proxy], Awaitable[Caller]]


@pytest.fixture
async def call() -> AsyncIterator[Call]:
    """Open connections through a proxy; all are closed with the test."""
    made: list[Caller] = []

    async def open_one(proxy: Proxy) -> Caller:
        made.append(Caller(*await asyncio.open_connection("127.0.0.1", proxy.port)))
        return made[-1]

    yield open_one
    for caller in made:
        caller.writer.transport.abort()
        with contextlib.suppress(*LOST):
            await caller.writer.wait_closed()


async def test_what_comes_goes_and_is_counted(call: Call, proxy: Proxy) -> None:
    caller = await call(proxy)
    assert await caller.say(b"x" * 200_000) == b"x" * 200_000
    counters = proxy.counters
    assert (counters.connections, counters.refused) == (1, 0)
    assert (counters.upstream, counters.downstream) == (200_000, 200_000)


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
async def test_latency_is_added_to_one_way_and_goes_with_heal(
    call: Call, proxy: Proxy, echo: tuple[Echo, int], stream: Any, eventually: Eventually
) -> None:
    clock = Clock()
    caller = await call(proxy)
    await proxy.add("latency", stream, latency=300, jitter=100)
    began_s = clock.monotonic()
    caller.writer.write(b"a")
    await eventually(lambda: echo[0].heard == b"a")
    assert (clock.monotonic() - began_s >= 0.2) == (stream == "upstream")
    await caller.reader.readexactly(1)
    assert clock.monotonic() - began_s >= 0.2
    await proxy.heal()
    began_s = clock.monotonic()
    await caller.say(b"b")
    assert clock.monotonic() - began_s < 0.2


async def test_down_refuses_cuts_and_comes_back_on_the_same_port(call: Call, proxy: Proxy) -> None:
    caller, port = await call(proxy), proxy.port
    await caller.say(b"a")
    await proxy.add("down")
    with pytest.raises(LOST):
        await caller.say(b"b")
    with pytest.raises(ConnectionRefusedError):
        await call(proxy)
    await proxy.heal()
    assert proxy.port == port
    assert await (await call(proxy)).say(b"c") == b"c"


async def test_bandwidth_is_a_rate(call: Call, proxy: Proxy) -> None:
    clock = Clock()
    caller = await call(proxy)
    await proxy.add("bandwidth", "upstream", rate=20)
    began_s = clock.monotonic()
    await caller.say(b"x" * 10_000)
    assert 0.4 <= clock.monotonic() - began_s < 2


async def test_slicer_cuts_into_bytes_and_loses_none(call: Call, proxy: Proxy) -> None:
    caller = await call(proxy)
    await proxy.add("slicer", "upstream", average_size=1)
    await proxy.add("slicer", "downstream", average_size=5, size_variation=3, delay=10)
    text = bytes(range(256)) * 4
    assert await caller.say(text) == text


async def test_limit_data_ends_the_connection_after_so_many_bytes(
    call: Call, proxy: Proxy, echo: tuple[Echo, int]
) -> None:
    await proxy.add("limit_data", "upstream", bytes=5)
    caller = await call(proxy)
    with pytest.raises(LOST):
        await caller.say(b"1234567")
    assert echo[0].heard in (b"12345", b"")
    await proxy.heal()
    assert await (await call(proxy)).say(b"1234567") == b"1234567"


async def test_reset_peer_resets_after_its_time(call: Call, proxy: Proxy) -> None:
    caller = await call(proxy)
    await proxy.add("reset_peer", timeout=100)
    assert await caller.say(b"a") == b"a"
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(caller.reader.read(1), 3)


async def test_timeout_drops_and_closes(call: Call, proxy: Proxy, echo: tuple[Echo, int]) -> None:
    caller = await call(proxy)
    await proxy.add("timeout", "upstream", timeout=200)
    caller.writer.write(b"a")
    assert await asyncio.wait_for(caller.reader.read(1), 3) == b""
    assert echo[0].heard == b""
    await proxy.heal()
    caller = await call(proxy)
    await proxy.add("timeout", "upstream")
    with pytest.raises(TimeoutError):
        await caller.say(b"a", 0.3)
    await proxy.heal()
    with pytest.raises(LOST):
        await caller.say(b"a")


async def test_slow_close_tells_the_end_late(
    call: Call, proxy: Proxy, echo: tuple[Echo, int]
) -> None:
    caller = await call(proxy)
    await caller.say(b"a")
    await proxy.add("slow_close", "upstream", delay=300)
    caller.writer.close()
    clock = Clock()
    began_s = clock.monotonic()
    while not echo[0].closed:
        assert clock.monotonic() - began_s < 3
        await clock.sleep(0.02)
    assert clock.monotonic() - began_s >= 0.25


async def test_half_open_says_nothing_and_stays_dead_for_those_it_met(
    call: Call, proxy: Proxy, echo: tuple[Echo, int]
) -> None:
    caller = await call(proxy)
    await caller.say(b"a")
    proxy.half_open()
    later = await call(proxy)
    for each in (caller, later):
        with pytest.raises(TimeoutError):
            await each.say(b"b", 0.2)
    await proxy.heal()
    for each in (caller, later):
        with pytest.raises(TimeoutError):
            await each.say(b"c", 0.2)
    assert echo[0].heard == b"a"
    assert await (await call(proxy)).say(b"d") == b"d"


async def test_cut_all_and_another_server(call: Call, proxy: Proxy) -> None:
    other = Echo()
    server = await asyncio.start_server(other.take, "127.0.0.1", 0)
    caller = await call(proxy)
    proxy.point_to(server.sockets[0].getsockname()[1])
    assert await caller.say(b"old") == b"old"
    assert other.heard == b""
    proxy.cut_all()
    with pytest.raises(LOST):
        await caller.say(b"x")
    assert await (await call(proxy)).say(b"new") == b"new"
    assert other.heard == b"new"
    server.close()


async def test_a_server_that_is_away_is_told_as_a_lost_connection(call: Call, proxy: Proxy) -> None:
    proxy.point_to(1)
    caller = await call(proxy)
    with pytest.raises(LOST):
        await caller.say(b"a")
    assert proxy.counters.refused == 1


# -- plans, on real servers --------------------------------------------------------------------


def resp_client(port: int, url: str, timeout_s: float = 1.0) -> redis.asyncio.Redis:
    password = url.split("@", maxsplit=1)[0].rpartition(":")[2]
    return redis.asyncio.Redis(
        port=port, password=password, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
    )


@pytest.mark.parametrize(
    ("fault", "is_done"), [("cut_before", False), ("cut_after", True), ("hang_after", True)]
)
async def test_the_nth_command_is_cut(valkey: Valkey, fault: Any, is_done: bool) -> None:  # noqa: FBT001 - a parameter of pytest's
    proxy = Proxy(valkey.port, "resp")
    await proxy.open()
    client = resp_client(proxy.port, valkey.url)
    await client.delete("n")
    proxy.plan({3: fault})
    for wanted in (1, 2):
        assert await client.incr("n") == wanted
    with pytest.raises(RedisError):
        await client.incr("n")
    assert int(await client.get("n") or 0) == (3 if is_done else 2)
    assert proxy.counters.faults == 1
    assert proxy.counters.begun == proxy.counters.requests
    await client.aclose()
    await proxy.close()


async def test_a_pipeline_is_cut_at_the_command_and_no_earlier(valkey: Valkey) -> None:
    proxy = Proxy(valkey.port, "resp")
    await proxy.open()
    client = resp_client(proxy.port, valkey.url)
    await client.delete("p")
    proxy.plan({5: "cut_before"})
    pipe = client.pipeline(transaction=False)
    for _ in range(10):
        pipe.incr("p")
    with pytest.raises(RedisError):
        await pipe.execute()
    clock = Clock()
    end_s = clock.monotonic() + 3
    while int(await client.get("p") or 0) < 4:
        assert clock.monotonic() < end_s
        await clock.sleep(0.02)
    assert await client.get("p") == b"4"
    await client.aclose()
    await proxy.close()


async def test_a_statement_is_committed_and_its_answer_lost(postgres: Postgres) -> None:
    proxy = Proxy(postgres.port, "postgres")
    await proxy.open()
    url = postgres.url.replace(f":{postgres.port}/", f":{proxy.port}/")
    straight = await asyncpg.connect(postgres.url)
    through = await asyncpg.connect(url)
    await straight.execute("DROP TABLE IF EXISTS cut; CREATE TABLE cut (n int)")
    proxy.plan({2: "cut_after"})
    await through.execute("INSERT INTO cut VALUES (1)")
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await through.execute("INSERT INTO cut VALUES (2)")
    assert await straight.fetchval("SELECT count(*) FROM cut") == 2
    through = await asyncpg.connect(url)
    proxy.plan({1: "cut_before"})
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await through.execute("INSERT INTO cut VALUES (3)")
    assert await straight.fetchval("SELECT count(*) FROM cut") == 2
    await straight.execute("DROP TABLE cut")
    await straight.close()
    await proxy.close()


async def test_an_http_answer_is_lost_after_the_request_was_taken(call: Call) -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                asked.append(await reader.readuntil(b"\r\n\r\n{}"))
            except (asyncio.IncompleteReadError, OSError):
                return writer.close()
            writer.write(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1], "http")
    await proxy.open()
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
    caller = await call(proxy)
    proxy.plan({2: "cut_after"})
    caller.writer.write(request)
    assert (await caller.reader.readuntil(b"0\r\n\r\n")).endswith(b"ok\r\n0\r\n\r\n")
    caller.writer.write(request)
    with pytest.raises(LOST):
        assert not await caller.reader.readexactly(1)
    assert len(asked) == 2
    counters = proxy.counters
    assert (counters.begun, counters.requests, counters.answers) == (2, 2, 1)
    server.close()
    await proxy.close()


# -- framing -----------------------------------------------------------------------------------

RESP = (
    b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$4\r\n\r\n\r\n\r\n",
    b"*2\r\n:1\r\n*-1\r\n",
    b"$-1\r\n",
    b"%1\r\n+k\r\n*2\r\n_\r\n#t\r\n",
    b"-ERR no\r\n",
)
HTTP = (
    b"POST /a HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
)


@pytest.mark.parametrize(("kind", "messages"), [("resp", RESP), ("http", HTTP)])
def test_messages_are_told_apart_however_they_are_cut(
    kind: Kind, messages: tuple[bytes, ...]
) -> None:
    whole = b"".join(messages)
    for size in (1, 2, 7, len(whole)):
        framer, found = Framer(kind, is_request=True), []
        for at in range(0, len(whole), size):
            found += framer.feed(whole[at : at + size])
        assert tuple(found) == messages
        assert not framer.rest


def test_what_is_not_whole_has_no_end() -> None:
    for message in RESP:
        assert resp_end(message) == len(message)
        assert not any(resp_end(message[:n]) for n in range(len(message)))
    for message in HTTP:
        assert http_end(message) == len(message)
        assert not any(http_end(message[:n]) for n in range(len(message)))
