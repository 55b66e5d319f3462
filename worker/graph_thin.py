"""The Graph door without a general HTTP client: HTTP/1.1 on asyncio's own protocols.

It does one thing, a POST of a few hundred bytes whose answer is read whole, and it knows what a
general client cannot say: whether the first byte of a request was handed to the socket.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import takewhile
from types import TracebackType
from typing import Final, NamedTuple, Self, cast
from urllib.parse import urlsplit

import httptools
from aiohappyeyeballs import AddrInfoType, start_connection
from multidict import CIMultiDict

from shared.models import Answer
from worker.answer import BODY_MAX, not_sent, plain_of, read, unknown

_HEAD_MAX: Final = 65_536  # bytes read, and the headers are not over yet
_WIRE_MAX: Final = 8 * BODY_MAX  # bytes in all: a body in chunks of one byte takes six times itself
_TARGETS_MAX: Final = 1_024
_DNS_S: Final = 30
_SWEEP_S: Final = 0.05  # deadlines and idle times are looked at so often
_HAPPY_EYEBALLS_S: Final = 0.25
_INFORMATIONAL: Final = range(100, 200)
_SWITCHING: Final = 101
_OK: Final = 200
_NO_HEADERS: Final[CIMultiDict[str]] = CIMultiDict()


class _Address(NamedTuple):
    host: str
    port: int
    tls: ssl.SSLContext | None


class _Reply(NamedTuple):
    """One answer.

    Attributes:
        status: of HTTP.
        body: as sent, without its chunks.
        raw: all that came, headers first: nobody asks an acceptance for its headers.
    """

    status: int
    body: bytes
    raw: bytes


class _Headers:
    """Reads the headers of the last answer in what came."""

    def __init__(self, raw: bytes) -> None:
        self.found: CIMultiDict[str] = CIMultiDict()
        # What follows the last whole answer was found wrong, or cut, by who read it first.
        with suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
            httptools.HttpResponseParser(self).feed_data(raw)

    def on_message_begin(self) -> None:
        self.found.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.found.add(name.decode("latin-1"), value.decode("latin-1"))


class _Line(asyncio.Protocol):
    """One connection: at most one request at a time; its answer, or why there is none.

    Attributes:
        done: of the request under way; its result is a `_Reply`, or a word of `unknown`.
        idle_since_s: loop time of the last answer.
        is_counted: it holds one of the pool's places.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[_Line], None]) -> None:
        self.done: asyncio.Future[_Reply | str] | None = None
        self.idle_since_s = 0.0
        self.is_counted = True
        self.loop = loop
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._read: list[bytes] = []
        self._size = 0
        self._body = b""
        self._is_headed = False
        self._is_over = False

    @property
    def is_usable(self) -> bool:
        """Whether another request may be written."""
        return not (self._is_over or self._transport is None or self._transport.is_closing())

    def ask(self, request: bytes) -> asyncio.Future[_Reply | str]:
        """Write a request; from here on nobody can say that it did not leave."""
        if self._transport is None:
            raise RuntimeError("a connection is asked before it is made")
        self._read, self._size, self._body = [], 0, b""
        self._is_headed = False
        done = self.done = self.loop.create_future()
        self._transport.write(request)
        return done

    def end(self, why: str) -> None:
        """Close the connection; a request under way ends without a whole answer."""
        self._is_over = True
        if self.done is not None and not self.done.done():
            self.done.set_result(why)
        if self._transport is not None:
            self._transport.abort()

    # -- what asyncio calls ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.done is None or self.done.done():
            self.end("reset")  # nobody asked: what comes next on this connection is not an answer
            return
        self._read.append(data)
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserUpgrade, httptools.HttpParserError):
            self.end("bad_reply")
            return
        if self._size > (_WIRE_MAX if self._is_headed else _HEAD_MAX):
            self.end("bad_reply")

    def eof_received(self) -> bool:
        if self.done is not None and not self.done.done():
            self.done.set_result(self._reply() if self._ends_with_connection() else "reset")
        self._is_over = True
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        self._is_over = True
        if self.done is not None and not self.done.done():
            self.done.set_result("reset")
        self._on_lost(self)

    # -- what the parser calls ------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.done is None or self.done.done():
            self._is_over = True  # a second answer to one request: nothing here can be trusted

    def on_headers_complete(self) -> None:
        self._is_headed = True

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body
        if len(self._body) > BODY_MAX:
            # What is longer than any answer of Graph's is not read to its end.
            self._finish(keep=False)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status in _INFORMATIONAL and status != _SWITCHING:
            self._is_headed = False
            return
        self._finish(keep=self._parser.should_keep_alive())

    # -- inside ---------------------------------------------------------------------------

    def _reply(self) -> _Reply:
        return _Reply(self._parser.get_status_code(), self._body, b"".join(self._read))

    def _finish(self, *, keep: bool) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(self._reply())
        if not keep:
            self._is_over = True

    def _ends_with_connection(self) -> bool:
        """Whether the answer had no length, so that the far side's closing ends it."""
        if not self._is_headed:
            return False
        headers = _Headers(b"".join(self._read)).found
        return "Content-Length" not in headers and "Transfer-Encoding" not in headers


class _Pool:
    """Connections to one address, at most `limit`; idle ones are used last in, first out."""

    def __init__(
        self, address: _Address, limit: int, connect_timeout_s: float, keepalive_s: float
    ) -> None:
        self.busy: dict[_Line, float] = {}  # when each must be answered, in this order
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._limit = limit
        self._connect_timeout_s = connect_timeout_s
        self._keepalive_s = keepalive_s
        self._idle: deque[_Line] = deque()
        self._open = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._there: Sequence[AddrInfoType] = ()
        self._there_until_s = 0.0
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def close(self) -> None:
        self._sweeper.cancel()
        for line in [*self._idle, *self.busy]:
            line.end("reset")

    def take_idle(self) -> _Line | None:
        """Return an open connection that nobody has; None when there is none."""
        while self._idle:
            line = self._idle.pop()
            if line.is_usable:
                return line
        return None

    async def take(self) -> _Line:
        """Wait for a connection that nobody else has.

        Raises:
            OSError: none could be made.
            TimeoutError: none was free or made in time.
        """
        async with asyncio.timeout(self._connect_timeout_s):
            return await self._wait()

    def give_back(self, line: _Line) -> None:
        """Keep a connection whose answer is whole; end any other."""
        if not line.is_usable:
            line.end("reset")
            return
        line.idle_since_s = self._loop.time()
        self._idle.append(line)
        if self._waiters:
            self._wake_one()

    async def _wait(self) -> _Line:
        join = self._waiters.append
        while self._open >= self._limit:
            waiter = self._loop.create_future()
            join(waiter)
            try:
                await waiter
            except BaseException:
                if waiter.done() and not waiter.cancelled():
                    self._wake_one()  # the turn that came too late for this one is another's
                raise
            line = self.take_idle()
            if line is not None:
                return line
            join = self._waiters.appendleft  # somebody was quicker: first in line again
        return await self._connect()

    async def _connect(self) -> _Line:
        line = _Line(self._loop, self._lost)
        self._open += 1
        host, port, tls = self._address
        try:
            there = await self._resolve(host, port)
            # uvloop tries addresses one by one; a dead IPv6 route must not cost the whole wait.
            sock = await start_connection(there, happy_eyeballs_delay=_HAPPY_EYEBALLS_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.create_connection(
                lambda: line, sock=sock, ssl=tls, server_hostname=host if tls else None
            )
        except BaseException:
            line.end("reset")
            self._lost(line)
            raise
        if not line.is_usable:
            raise ConnectionResetError("closed before anything was asked")
        return line

    async def _resolve(self, host: str, port: int) -> Sequence[AddrInfoType]:
        now_s = self._loop.time()
        if now_s >= self._there_until_s:
            self._there = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self._there_until_s = now_s + _DNS_S
        return self._there

    def _lost(self, line: _Line) -> None:
        if line.is_counted:
            line.is_counted = False
            self._open -= 1
            self._wake_one()

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _sweep(self) -> None:
        """End what has run out of time: one timer for all, since each has as long as the others."""
        now_s = self._loop.time()
        for line, _ in list(takewhile(lambda each: each[1] <= now_s, self.busy.items())):
            line.end("timeout")
        while self._idle and self._idle[0].idle_since_s < now_s - self._keepalive_s:
            self._idle.popleft().end("reset")
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)


class ThinGraphClient:
    """A pool of connections to one Graph API; `async with` opens and closes it.

    Args:
        base_url: `GRAPH_BASE_URL`, without a path at its end.
        limit: connections at most: slots times concurrency.
        connect_timeout_s: for a free connection, TCP and TLS together.
        timeout_s: from the first byte of the request to the last of the answer; ends up to 50 ms
            late.
        keepalive_s: how long an idle connection is kept.
        on_answer: called when an answer has come, whatever it says: Graph is there.
        tls: for `https`; None trusts the system's authorities.
    """

    def __init__(
        self,
        base_url: str,
        limit: int = 320,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 30.0,
        keepalive_s: float = 15.0,
        on_answer: Callable[[], None] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Keep the figures; nothing is opened yet."""
        parts = urlsplit(base_url.rstrip("/"))
        is_tls = parts.scheme == "https"
        self._address = _Address(
            parts.hostname or "",
            parts.port or (443 if is_tls else 80),
            (tls or ssl.create_default_context()) if is_tls else None,
        )
        self._netloc = parts.netloc.rpartition("@")[2]
        self._path = parts.path
        self._limit = limit
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._keepalive_s = keepalive_s
        self._on_answer = on_answer
        self._heads: dict[tuple[str, str, str], bytes] = {}
        self._pool: _Pool | None = None

    async def __aenter__(self) -> Self:
        """Open the pool."""
        self._pool = _Pool(self._address, self._limit, self._connect_timeout_s, self._keepalive_s)
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Close every connection."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    async def send(
        self,
        version: str,
        phone_number_id: str,
        token: str,
        body: bytes,
        on_wire: Callable[[], None] | None = None,
    ) -> Answer:
        """Send once. Never raises for what the far side does; returns what it came to.

        Args:
            version: of the Graph API, such as `v22.0`.
            phone_number_id: the sender's, in the path.
            token: the sender's access token.
            body: the request as JSON.
            on_wire: called just before the first byte leaves; from then on a failure is
                `unknown`.
        """
        pool = self._pool
        if pool is None:
            raise RuntimeError("the Graph client is not open")
        head = self._heads.get((version, phone_number_id, token))
        if head is None:
            head = self._aim(version, phone_number_id, token)
        try:
            line = pool.take_idle() or await pool.take()
        except (OSError, TimeoutError) as error:
            return not_sent(_why_not_sent(error))
        if on_wire is not None:
            on_wire()
        pool.busy[line] = line.loop.time() + self._timeout_s
        try:
            reply = await line.ask(b"%b%d\r\n\r\n%b" % (head, len(body), body))
        except BaseException:
            line.end("reset")  # an answer that nobody waits for must not meet the next request
            raise
        finally:
            pool.busy.pop(line, None)
        pool.give_back(line)
        if isinstance(reply, str):
            return unknown(reply)
        if self._on_answer is not None:
            self._on_answer()
        return _meaning(reply)

    def _aim(self, version: str, phone_number_id: str, token: str) -> bytes:
        for part in (version, phone_number_id, token):
            if not part.isascii() or not part.isprintable() or " " in part:
                raise ValueError("a path or token with characters that would end a header")
        if len(self._heads) >= _TARGETS_MAX:
            self._heads.clear()
        head = (
            f"POST {self._path}/{version}/{phone_number_id}/messages HTTP/1.1\r\n"
            f"Host: {self._netloc}\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode("ascii")
        self._heads[version, phone_number_id, token] = head
        return head


def _meaning(reply: _Reply) -> Answer:
    if reply.status == _OK and b"content-encoding" not in reply.raw.lower():
        return read(reply.status, _NO_HEADERS, reply.body)
    headers = _Headers(reply.raw).found
    encoding = headers.get("Content-Encoding", "").lower()
    return read(reply.status, headers, plain_of(reply.body, encoding))


def _why_not_sent(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "dns"
    if isinstance(error, ssl.SSLError):
        return "tls"
    return "pool" if isinstance(error, TimeoutError) else "refused"
