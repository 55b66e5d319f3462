"""A fault proxy: Toxiproxy's toxics, and beyond them faults at a chosen request.

The names and attributes are Shopify/toxiproxy's, so that the real one can take its place: `latency`
(latency, jitter), `down`, `bandwidth` (rate, KB/s), `slow_close` (delay), `timeout` (timeout; 0 =
dropped until removed), `reset_peer` (timeout), `slicer` (average_size, size_variation, delay in
µs), `limit_data` (bytes); times in ms, each `upstream` (client to server) or `downstream`. Beyond
them: `plan`, a fault at the n-th request (RESP, HTTP and PostgreSQL framed); `half_open`, in which
every connection stays and nothing passes; `heal`, `cut_all`, `point_to` and the counters.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Coroutine
from random import Random
from typing import Final, Literal, NamedTuple

import msgspec

from shared.clock import Clock

Stream = Literal["upstream", "downstream"]
Fault = Literal["cut_before", "cut_after", "hang_after"]
Kind = Literal["", "resp", "http", "postgres"]
_READ: Final = 65_536
_SSL_REQUEST: Final = 80_877_103


class Toxic(NamedTuple):
    """One toxic; times in ms as Toxiproxy has them."""

    kind: str
    stream: Stream = "downstream"
    latency: int = 0
    jitter: int = 0
    rate: int = 0
    delay: int = 0
    timeout: int = 0
    average_size: int = 1
    size_variation: int = 0
    bytes: int = 0


class Counters(msgspec.Struct):
    """What has passed since the start.

    Attributes:
        connections: taken.
        refused: closed at once, because the server does not listen.
        cut: connections that a fault ended.
        begun: requests of which anything came.
        requests: requests that came whole.
        answers: whole answers that were passed on.
        faults: entries of the plan that fired.
        upstream, downstream: bytes passed on.
    """

    connections: int = 0
    refused: int = 0
    cut: int = 0
    begun: int = 0
    requests: int = 0
    answers: int = 0
    faults: int = 0
    upstream: int = 0
    downstream: int = 0


# -- framing: where the first whole message of a buffer ends, 0 when it is not whole yet ----------


def resp_end(data: bytes | bytearray, at: int = 0) -> int:
    r"""Return where the RESP value at `at` ends; 0: it is not whole.

    >>> resp_end(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n+next")
    20
    >>> resp_end(b"*2\r\n$3\r\nGE")
    0
    """
    # A stack of what is still to come instead of a recursion: scripts nest as they like.
    left = 1
    while left:
        stop = data.find(b"\r\n", at)
        if stop < 0:
            return 0
        kind, text = data[at : at + 1], data[at + 1 : stop]
        at, left = stop + 2, left - 1
        if kind in (b"$", b"=", b"!") and text != b"-1":
            at += int(text) + 2
            if at > len(data):
                return 0
        elif kind in (b"*", b"~", b">") and text != b"-1":
            left += int(text)
        elif kind in (b"%", b"|"):
            left += 2 * int(text) + (kind == b"|")
    return at


def http_end(data: bytes | bytearray) -> int:
    r"""Return where the first HTTP message ends, by its length or its chunks; 0: it is not whole.

    >>> http_end(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}rest")
    40
    """
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return 0
    fields = bytes(data[:head]).lower()
    at = head + 4
    if b"transfer-encoding: chunked" in fields:
        while True:
            stop = data.find(b"\r\n", at)
            if stop < 0:
                return 0
            size = int(data[at:stop], 16)
            at = stop + 2 + size + 2
            if at > len(data):
                return 0
            if not size:
                return at
    _, found, rest = fields.partition(b"content-length:")
    at += int(rest.split(b"\r\n")[0]) if found else 0
    return at if at <= len(data) else 0


def postgres_end(data: bytes | bytearray, *, is_typed: bool) -> int:
    """Return where the first message of PostgreSQL's protocol ends; the first has no type byte."""
    start = 1 if is_typed else 0
    if len(data) < start + 4:
        return 0
    end = start + int(struct.unpack_from(">I", data, start)[0])
    return end if end <= len(data) else 0


class Framer:
    """Counts the messages of one direction that are complete.

    Args:
        kind: the protocol; '' counts nothing.
        is_request: of the client's side.
    """

    def __init__(self, kind: Kind, *, is_request: bool) -> None:
        """Begin before the first byte."""
        self.rest = bytearray()  # of a message that is not whole yet
        self.passed = 0  # how much of that has been passed on
        self._kind = kind
        self._is_request = is_request
        self._is_typed = not is_request

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that `data` completes."""
        self.rest += data
        out = []
        while end := self._end():
            out.append(bytes(self.rest[:end]))
            del self.rest[:end]
        return out

    def _end(self) -> int:
        if not self.rest:
            return 0
        if self._kind == "resp":
            return resp_end(self.rest)
        if self._kind == "http":
            return http_end(self.rest)
        # Its answers end in more ways than one, and nobody asks twice at once: what comes is it.
        return self._postgres() if self._is_request else len(self.rest)

    def _postgres(self) -> int:
        """Return where a request ends: with Query, Sync or Flush, or with its only message."""
        at = 0
        while True:
            rest = self.rest[at:]
            end = postgres_end(rest, is_typed=self._is_typed)
            if not end:
                return 0
            kind = bytes(rest[:1])
            at += end
            if not self._is_typed:
                code = struct.unpack_from(">I", rest, 4)[0]
                self._is_typed = code != _SSL_REQUEST
                return at
            if kind in (b"Q", b"S", b"H", b"p", b"X"):
                return at


# -- one connection ----------------------------------------------------------------------------


class Link:
    """One client's connection with its own to the server."""

    def __init__(
        self,
        client: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
        kind: Kind,
    ) -> None:
        """Begin open."""
        self.client, self.server = client, server
        self.requests = Framer(kind, is_request=True)
        self.answers = Framer(kind, is_request=False)
        self.unanswered = 0
        self.fault: Fault | None = None
        self.fault_in = 0  # answers until the one it is about
        self.is_cut = False  # when what may still pass has passed
        self.is_dead = False  # nothing passes any more, and nobody is told

    def close(self) -> None:
        """Close both sides as a server would."""
        for writer in (self.client, self.server):
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()

    def cut(self) -> None:
        """Reset the client; what the server was sent still reaches it."""
        self._reset(self.client)
        with contextlib.suppress(OSError, RuntimeError):
            self.server.close()

    def reset(self) -> None:
        """Reset both sides: the peer gets RST, what is on its way is lost."""
        self._reset(self.client)
        self._reset(self.server)

    @staticmethod
    def _reset(*writers: asyncio.StreamWriter) -> None:
        for writer in writers:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError, RuntimeError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError, RuntimeError):
                writer.transport.abort()


class Proxy:
    """Stands between one pair of our parts and breaks what it is told to.

    Args:
        port: of the server on 127.0.0.1.
        kind: the protocol, for `plan` and the counters of requests.
        seed: of jitter and sizes.
    """

    def __init__(self, port: int, kind: Kind = "", seed: int = 1) -> None:
        """Listen nowhere yet."""
        self.target = port
        self.port = 0
        self.counters = Counters()
        self._kind = kind
        self._chance = Random(seed)  # noqa: S311 - of a test
        self._clock = Clock()
        self._toxics: dict[str, Toxic] = {}
        self._plan: dict[int, Fault] = {}
        self._is_half_open = False
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen on a free port of 127.0.0.1, the same one again after `down`."""

        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._begin(self._take(reader, writer))

        self._server = await asyncio.start_server(take, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and close every connection."""
        self._stop_listening()
        self.cut_all()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    # -- what breaks -----------------------------------------------------------------------

    async def add(self, kind: str, stream: Stream = "downstream", **attributes: int) -> None:
        """Add a toxic to every connection, also to those there are; one of each kind and stream."""
        toxic = Toxic(kind, stream, **attributes)
        self._toxics[f"{kind}_{stream}"] = toxic
        if kind == "down":
            self._stop_listening()
            self.cut_all()
        elif kind == "reset_peer" or (kind == "timeout" and toxic.timeout):
            for link in list(self._links):
                self._begin(self._later(link, toxic))

    def half_open(self) -> None:
        """Let nothing pass, close nothing; connections of now stay dead after `heal`."""
        self._is_half_open = True
        for link in self._links:
            link.is_dead = True

    def plan(self, faults: dict[int, Fault]) -> None:
        """Break at requests counted from now on, from 1."""
        self._plan = {self.counters.requests + n: fault for n, fault in faults.items()}

    async def heal(self) -> None:
        """Take every toxic and the plan away.

        A connection of which `timeout` has dropped bytes is closed, as Toxiproxy does.
        """
        is_down = any(toxic.kind == "down" for toxic in self._toxics.values())
        is_dropping = any(toxic.kind == "timeout" for toxic in self._toxics.values())
        self._toxics.clear()
        self._plan.clear()
        self._is_half_open = False
        if is_dropping:
            self.cut_all()
        if is_down:
            await self.open()

    def cut_all(self) -> None:
        """Reset every connection there is."""
        for link in list(self._links):
            self.counters.cut += 1
            link.reset()

    def point_to(self, port: int) -> None:
        """Send new connections to another server; those there are stay with the old one."""
        self.target = port

    # -- connections -----------------------------------------------------------------------

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _later(self, link: Link, toxic: Toxic) -> None:
        await self._clock.sleep(toxic.timeout / 1000)
        if toxic in self._toxics.values():
            self.counters.cut += 1
            (link.reset if toxic.kind == "reset_peer" else link.close)()

    async def _take(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.counters.connections += 1
        try:
            up, server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            self.counters.refused += 1
            client.transport.abort()
            return
        link = Link(client, server, self._kind)
        link.is_dead = self._is_half_open
        self._links.add(link)
        for toxic in list(self._toxics.values()):
            if toxic.kind == "reset_peer" or (toxic.kind == "timeout" and toxic.timeout):
                self._begin(self._later(link, toxic))
        ways = [
            asyncio.ensure_future(self._pump(link, reader, server, "upstream")),
            asyncio.ensure_future(self._pump(link, up, client, "downstream")),
        ]
        try:
            await asyncio.wait(ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._links.discard(link)
            link.close()

    async def _pump(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: Stream
    ) -> None:
        passed = 0
        with contextlib.suppress(OSError, RuntimeError):
            while data := await reader.read(_READ):
                answers = 0
                if self._kind and stream == "upstream":
                    data = self._see_request(link, data)
                elif self._kind:
                    data, answers = self._see_answer(link, data)
                if link.is_dead or f"timeout_{stream}" in self._toxics:
                    continue
                is_open = await self._pass(data, writer, stream, passed)
                passed += len(data)
                self.counters.answers += answers * is_open
                if link.is_cut or not is_open:
                    self.counters.cut += 1
                    link.cut()
                    return
            if link.is_dead:
                return
            if slow := self._toxics.get(f"slow_close_{stream}"):
                await self._clock.sleep(slow.delay / 1000)
            # The end of one way is the end of both: none of our protocols uses half a connection.
            link.close()

    def _see_request(self, link: Link, data: bytes) -> bytes:
        """Count requests and look into the plan; return what may pass."""
        framer, counters = link.requests, self.counters
        was_between = not framer.rest
        whole, out = framer.feed(data), bytearray()
        counters.begun += len(whole) + bool(framer.rest) - (not was_between)
        for message in whole:
            counters.requests += 1
            fault = self._plan.pop(counters.requests, None)
            counters.faults += fault is not None
            if fault == "cut_before":
                link.is_cut = True
                return bytes(out)
            out += message[framer.passed :]
            framer.passed = 0
            link.unanswered += 1
            if fault is not None:
                link.fault, link.fault_in = fault, link.unanswered
        if not self._plan:  # else a request passes only whole: it may be one of the plan's
            out += framer.rest[framer.passed :]
            framer.passed = len(framer.rest)
        return bytes(out)

    def _see_answer(self, link: Link, data: bytes) -> tuple[bytes, int]:
        """Return what may pass of answers, and how many are whole with that."""
        framer, out, whole = link.answers, bytearray(), 0
        for message in framer.feed(data):
            link.unanswered = max(0, link.unanswered - 1)
            link.fault_in -= 1
            if link.fault is not None and link.fault_in == 0:
                # Done, and nobody knows.
                link.is_cut = link.fault == "cut_after"
                link.is_dead = not link.is_cut
                return bytes(out), whole
            whole += 1
            out += message[framer.passed :]
            framer.passed = 0
        if link.fault is None:
            out += framer.rest[framer.passed :]
            framer.passed = len(framer.rest)
        return bytes(out), whole

    # -- toxics on bytes -------------------------------------------------------------------

    async def _pass(
        self, data: bytes, writer: asyncio.StreamWriter, stream: Stream, passed: int
    ) -> bool:
        """Write `data` as the toxics of its way have it; False: the connection ends here."""
        on = {t.kind: t for t in self._toxics.values() if t.stream == stream}
        if toxic := on.get("latency"):
            jitter = self._chance.uniform(-toxic.jitter, toxic.jitter)
            await self._clock.sleep(max(0.0, toxic.latency + jitter) / 1000)
        limit = on.get("limit_data")
        if limit is not None:
            data = data[: max(0, limit.bytes - passed)]
        slicer, bandwidth = on.get("slicer"), on.get("bandwidth")
        for piece in self._pieces(data, slicer, bandwidth):
            if writer.is_closing():
                return False
            writer.write(piece)
            await writer.drain()
            self._count(stream, len(piece))
            if slicer is not None:
                await self._clock.sleep(slicer.delay / 1_000_000)
            if bandwidth is not None:
                await self._clock.sleep(len(piece) / (bandwidth.rate * 1000))
        return limit is None or passed + len(data) < limit.bytes

    def _pieces(self, data: bytes, slicer: Toxic | None, bandwidth: Toxic | None) -> list[bytes]:
        out, at = [], 0
        while at < len(data):
            size = len(data)
            if slicer is not None:
                vary = self._chance.randint(-slicer.size_variation, slicer.size_variation)
                size = max(1, slicer.average_size + vary)
            elif bandwidth is not None:
                size = max(1, bandwidth.rate * 100)  # what 100 ms carry: an even rate
            out.append(data[at : at + size])
            at += size
        return out

    def _count(self, stream: Stream, size: int) -> None:
        setattr(self.counters, stream, getattr(self.counters, stream) + size)
