"""Both clients behind the Graph door do the same, byte for byte of what the far side may do."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import ipaddress
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.models import Answer
from worker.answer import BODY_MAX
from worker.graph import GraphClient
from worker.graph_thin import ThinGraphClient

Client = GraphClient | ThinGraphClient
CLIENTS = [pytest.param(GraphClient, id="aiohttp"), pytest.param(ThinGraphClient, id="thin")]
BODY = b'{"messaging_product":"whatsapp","to":"+393331234567","type":"text","text":{"body":"hi"}}'
GOOD = b'{"messages":[{"id":"wamid.1"}]}'
REFUSED = b'{"error":{"code":130429,"message":"slow","error_data":{"details":"slower"}}}'
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER 0: closing sends RST


def answer(body: bytes = GOOD, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Call:
    """One connection as the far side sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> bytes:
        """Return the next request whole; b'' at the end of the connection."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return head + await self.reader.readexactly(length)

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.writer.transport.abort()


Script = Callable[[Call], Awaitable[None]]


class Far:
    """A server that does what a test says, connection by connection."""

    def __init__(self) -> None:
        self.script: Script = _answer_all
        self.calls = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.calls += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.script(Call(reader, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()


async def _answer_all(call: Call) -> None:
    while await call.request():
        await call.say(answer())


@pytest.fixture
async def far() -> AsyncIterator[Far]:
    made = Far()
    await made.open()
    yield made
    await made.close()


@pytest.fixture(params=CLIENTS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


async def send(client: Client, token: str = "t") -> Answer:  # noqa: S107 - a test's
    return await client.send("v22.0", "77", token, BODY)


async def once(far: Far, kind: Any, script: Script, **figures: Any) -> Answer:
    """Return what one request to a script comes to."""
    far.script = script
    async with kind(far.url, **{"timeout_s": 0.4, **figures}) as client:
        return await send(client)


def says(*parts: bytes, then: str = "stay", pause_s: float = 0.0) -> Script:
    """Return a script that reads one request, says `parts`, and then stays, closes or resets."""

    async def script(call: Call) -> None:
        await call.request()
        for part in parts:
            await call.say(part)
            await asyncio.sleep(pause_s)
        if then == "stay":
            await call.reader.read()
        elif then == "reset":
            call.reset()

    return script


async def test_what_is_asked_is_one_whole_post(far: Far, kind: Any) -> None:
    seen = []

    async def script(call: Call) -> None:
        seen.append(await call.request())
        await call.say(answer())

    left = []
    far.script = script
    async with kind(far.url) as client:
        got = await client.send("v22.0", "77", "secret", BODY, lambda: left.append(1))
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert (got.kind, got.wamid, left, body) == ("accepted", "wamid.1", [1], BODY)
    assert lines[0] == b"POST /v22.0/77/messages HTTP/1.1"
    assert {line.split(b":")[0].lower() for line in lines[1:]} == {
        b"host", b"authorization", b"content-type", b"content-length",
    }  # fmt: skip
    assert b"Authorization: Bearer secret" in lines


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([answer()], id="whole"),
        pytest.param([b"HTTP/1.1 100 Continue\r\n\r\n", answer()], id="100-continue"),
        pytest.param([b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer()], id="103"),
        pytest.param(
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\n" + GOOD[:5],
             b"\r\n%x\r\n" % (len(GOOD) - 5) + GOOD[5:] + b"\r\n0\r\n\r\n"],
            id="chunked",
        ),
        pytest.param(
            [answer(gzip.compress(GOOD), b"Content-Encoding: gzip")], id="gzip though not asked"
        ),
        pytest.param([answer(GOOD, b"X-More: " + b"y" * 3000)], id="more headers"),
        pytest.param([bytes([byte]) for byte in answer()], id="byte by byte"),
    ],
)  # fmt: skip
async def test_an_acceptance_in_any_dress(far: Far, kind: Any, parts: list[bytes]) -> None:
    got = await once(far, kind, says(*parts), timeout_s=2)
    assert (got.kind, got.wamid) == ("accepted", "wamid.1")


async def test_an_answer_without_a_length_ends_with_its_connection(far: Far, kind: Any) -> None:
    got = await once(far, kind, says(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD, then="close"))
    assert got.kind == "accepted"


async def test_an_answer_before_the_request_was_read(far: Far, kind: Any) -> None:
    async def script(call: Call) -> None:
        await call.reader.readexactly(10)
        await call.say(answer(REFUSED, b"Connection: close", status=b"400 Bad Request"))

    got = await once(far, kind, script)
    assert (got.kind, got.code) == ("throttled", 130429)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        pytest.param(says(then="stay"), "timeout", id="silence"),
        pytest.param(says(answer()[:-1]), "timeout", id="one byte short"),
        pytest.param(
            says(*[bytes([b]) for b in answer()], pause_s=0.05), "timeout", id="one byte in 50 ms"
        ),
        pytest.param(says(then="close"), "reset", id="closed"),
        pytest.param(says(then="reset"), "reset", id="reset"),
        pytest.param(says(b"SSH-2.0-x\r\n"), "bad_reply", id="another protocol"),
        pytest.param(says(answer(b"<html>")), "bad_reply", id="html"),
        pytest.param(says(answer(b"")), "bad_reply", id="empty"),
        pytest.param(says(answer(b"x", status=b"502 Bad Gateway")), "bad_reply", id="502"),
        pytest.param(says(answer(gzip.compress(GOOD), b"Content-Encoding: br")), "bad_reply",
                     id="unknown encoding"),
        pytest.param(says(answer(b" " * BODY_MAX + GOOD)), "bad_reply", id="oversize"),
    ],
)  # fmt: skip
async def test_what_nobody_can_rely_on_is_unknown(
    far: Far, kind: Any, script: Script, why: str
) -> None:
    got = await once(far, kind, script)
    assert (got.kind, got.why) == ("unknown", why)


@pytest.mark.parametrize("flood", ["headers", "body"])
async def test_a_flood_is_cut(far: Far, kind: Any, flood: str) -> None:
    async def script(call: Call) -> None:
        await call.request()
        await call.say(b"HTTP/1.1 200 OK\r\n")
        if flood == "body":
            await call.say(b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            piece = b"x" * 1000
            await call.say(
                b"3e8\r\n" + piece + b"\r\n" if flood == "body" else b"X: " + piece + b"\r\n"
            )

    got = await once(far, kind, script, timeout_s=5)
    assert (got.kind, got.why) == ("unknown", "bad_reply")


async def test_a_reset_at_every_byte_of_the_request_is_never_not_sent(far: Far, kind: Any) -> None:
    sizes = []

    async def whole(call: Call) -> None:
        sizes.append(len(await call.request()))
        await call.say(answer())

    await once(far, kind, whole)
    for count in range(1, sizes[0] + 1):

        async def script(call: Call, count: int = count) -> None:
            await call.reader.readexactly(count)
            call.reset()

        got = await once(far, kind, script)
        assert (got.kind, got.why) == ("unknown", "reset"), count


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_an_answer_cut_at_every_byte_is_unknown(far: Far, kind: Any, then: str) -> None:
    text = answer()
    for count in range(len(text)):
        got = await once(far, kind, says(text[:count], then=then))
        assert got.kind == "unknown", count
    assert (await once(far, kind, says(text, then=then))).kind in ("accepted", "unknown")


async def test_a_connection_is_kept_while_its_answers_are_whole(far: Far, kind: Any) -> None:
    async with kind(far.url) as client:
        kinds = [(await send(client)).kind for _ in range(5)]
    assert (kinds, far.calls) == (["accepted"] * 5, 1)


async def test_a_connection_that_the_far_side_closed_is_not_asked(
    far: Far, kind: Any, eventually: Callable[..., Awaitable[Any]]
) -> None:
    ended = []

    async def script(call: Call) -> None:
        await call.request()
        await call.say(answer())
        call.writer.close()
        ended.append(1)

    far.script = script
    async with kind(far.url) as client:
        for turn in range(1, 4):
            assert (await send(client)).kind == "accepted"
            await eventually(lambda turn=turn: len(ended) == turn)
            await asyncio.sleep(0.02)  # for the end to travel: nothing here can watch it
    assert far.calls == 3


async def test_connection_close_is_heeded(far: Far, kind: Any) -> None:
    far.script = says(answer(GOOD, b"Connection: close"))
    async with kind(far.url) as client:
        kinds = [(await send(client)).kind for _ in range(3)]
    assert (kinds, far.calls) == (["accepted"] * 3, 3)


async def test_an_answer_to_nothing_reaches_nobody(far: Far, kind: Any) -> None:
    async def script(call: Call) -> None:
        await call.request()
        await call.say(answer() + answer(b'{"messages":[{"id":"wamid.stray"}]}'))
        await call.request()
        await call.say(answer())

    far.script = script
    async with kind(far.url) as client:
        first = await send(client)
        await asyncio.sleep(0.02)
        second = await send(client)
    assert (first.wamid, second.wamid, far.calls) == ("wamid.1", "wamid.1", 2)


async def test_whoever_gives_up_leaves_no_answer_to_the_next(far: Far, kind: Any) -> None:
    asked = asyncio.Event()

    async def script(call: Call) -> None:
        await call.request()
        asked.set()
        await asyncio.sleep(0.1)
        await call.say(answer(b'{"messages":[{"id":"wamid.late"}]}'))
        await call.reader.read()

    far.script = script
    async with kind(far.url, limit=1) as client:
        task = asyncio.create_task(send(client))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        far.script = _answer_all
        assert (await send(client)).wamid == "wamid.1"


async def test_idle_connections_are_closed(
    far: Far, kind: Any, eventually: Callable[..., Awaitable[Any]]
) -> None:
    ended = []

    async def script(call: Call) -> None:
        await _answer_all(call)
        ended.append(1)

    far.script = script
    async with kind(far.url, keepalive_s=0.2) as client:
        await send(client)
        await eventually(lambda: ended, within_s=5)


async def test_no_more_connections_than_allowed_and_a_bounded_wait(
    far: Far, kind: Any, eventually: Callable[..., Awaitable[Any]]
) -> None:
    gate = asyncio.Event()
    asked = []

    async def script(call: Call) -> None:
        while await call.request():
            asked.append(1)
            await gate.wait()
            await call.say(answer())

    far.script = script
    async with kind(far.url, limit=2, connect_timeout_s=0.2, timeout_s=5) as client:
        tasks = [asyncio.create_task(send(client)) for _ in range(2)]
        await eventually(lambda: len(asked) == len(tasks))
        late = await send(client)
        assert (late.kind, late.why) == ("not_sent", "pool")
        waiting = [asyncio.create_task(send(client)) for _ in range(10)]
        await asyncio.sleep(0)  # each has begun, and found no connection free
        gate.set()
        kinds = {(await task).kind for task in [*tasks, *waiting]}
    assert (kinds, far.calls) == ({"accepted"}, 2)


async def test_a_refused_connection_never_left(far: Far, kind: Any) -> None:
    await far.close()
    left: list[int] = []
    async with kind(far.url) as client:
        got = await client.send("v22.0", "77", "t", BODY, lambda: left.append(1))
    assert (got.kind, got.why, left) == ("not_sent", "refused", [])


async def test_a_name_that_nobody_knows_never_left(kind: Any) -> None:
    async with kind("http://name.invalid") as client:
        got = await send(client)
    assert (got.kind, got.why) == ("not_sent", "dns")


async def test_a_place_is_free_again_after_every_end(far: Far, kind: Any) -> None:
    good = says(answer(GOOD, b"Connection: close"))
    scripts = [says(then="reset"), says(then="close"), says(b"x"), says(answer()[:9]), good]
    async with kind(far.url, limit=1, timeout_s=0.1, connect_timeout_s=0.5) as client:
        for script in scripts * 3:
            far.script = script
            got = await send(client)
            assert got.kind == ("accepted" if script is good else "unknown")


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


async def test_tls_is_checked_before_anything_leaves(tmp_path: Path, kind: Any) -> None:
    path = _certificate(tmp_path)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(path)
    far = Far()
    await far.open(server)
    trusting = ssl.create_default_context(cafile=str(path))
    left: list[int] = []
    async with kind(far.url, tls=trusting) as client:
        assert [(await send(client)).kind for _ in range(3)] == ["accepted"] * 3
    assert far.calls == 1
    async with kind(far.url) as client:
        got = await client.send("v22.0", "77", "t", BODY, lambda: left.append(1))
    assert (got.kind, got.why, left) == ("not_sent", "tls", [])
    await far.close()


async def test_a_token_cannot_end_its_header(far: Far, kind: Any) -> None:
    async with kind(far.url) as client:
        with pytest.raises(ValueError, match=r"header|characters"):
            await send(client, "a\r\nX: y")
