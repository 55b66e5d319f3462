"""The Graph door: one message, one request, one answer. Decides nothing about retries."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from types import SimpleNamespace, TracebackType
from typing import Final, NamedTuple, Self

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from shared.models import Answer
from worker.answer import BODY_MAX, not_sent, plain_of, read, unknown

_TARGETS_MAX: Final = 1_024
_DNS_S: Final = 30


class _Target(NamedTuple):
    url: URL
    headers: CIMultiDict[str]


class _Flight:
    """One request in the air; the trace context that aiohttp hands back.

    Attributes:
        has_left: set just before the first byte is written; the line between `not_sent` and
            `unknown`, which no exception draws (pitfalls C3).
    """

    __slots__ = ("deadline", "has_left", "on_wire", "timeout_s")

    def __init__(
        self, deadline: asyncio.Timeout, timeout_s: float, on_wire: Callable[[], None] | None
    ) -> None:
        self.has_left = False
        self.deadline = deadline
        self.timeout_s = timeout_s
        self.on_wire = on_wire


async def _leaving(
    _session: aiohttp.ClientSession,
    flight: SimpleNamespace,
    _params: aiohttp.TraceRequestHeadersSentParams,
) -> None:
    flight.has_left = True
    # Counted from here and by our own clock: a trickling answer ends too (pitfalls C2).
    flight.deadline.reschedule(asyncio.get_running_loop().time() + flight.timeout_s)
    if flight.on_wire is not None:
        flight.on_wire()


class GraphClient:
    """A pool of connections to one Graph API; `async with` opens and closes it.

    Args:
        base_url: `GRAPH_BASE_URL`, without a path at its end.
        limit: connections at most: slots times concurrency.
        connect_timeout_s: for a free connection, TCP and TLS together.
        timeout_s: from the first byte of the request to the last of the answer.
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
        self._base_url = base_url.rstrip("/")
        self._limit = limit
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._keepalive_s = keepalive_s
        self._on_answer = on_answer
        self._tls = tls
        self._targets: dict[tuple[str, str, str], _Target] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the pool."""
        trace = aiohttp.TraceConfig(
            # The flight is the context itself: no second object for each request.
            trace_config_ctx_factory=lambda trace_request_ctx=None: trace_request_ctx,  # type: ignore[arg-type]  # a factory of SimpleNamespace by name only
        )
        trace.on_request_headers_sent.append(_leaving)
        # Every figure is set on purpose; the defaults cost a quarter of the rate (pitfalls C6, C7).
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._limit,
                keepalive_timeout=self._keepalive_s,
                ttl_dns_cache=_DNS_S,
                ssl=self._tls or True,
            ),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=self._connect_timeout_s,
                sock_connect=self._connect_timeout_s,
                sock_read=None,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
            auto_decompress=False,
            trust_env=False,
            trace_configs=[trace],
        )
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

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
        target = self._targets.get((version, phone_number_id, token))
        if target is None:
            target = self._aim(version, phone_number_id, token)
        deadline = asyncio.timeout(None)
        flight = _Flight(deadline, self._timeout_s, on_wire)
        try:
            async with deadline:
                return await self._exchange(target, body, flight)
        except (aiohttp.ClientError, HttpProcessingError, OSError, TimeoutError) as error:
            if not flight.has_left:
                return not_sent(_why_not_sent(error))
            return unknown(_why_unknown(error))

    async def _exchange(self, target: _Target, body: bytes, flight: _Flight) -> Answer:
        if self._session is None:
            raise RuntimeError("the Graph client is not open")
        reply = await self._session.post(
            target.url,
            data=body,
            headers=target.headers,
            allow_redirects=False,
            trace_request_ctx=flight,
        )
        if self._on_answer is not None:
            self._on_answer()
        try:
            content = reply.content
            text = await content.read(BODY_MAX + 1)
            while not content.at_eof() and len(text) <= BODY_MAX:
                text += await content.read(BODY_MAX + 1 - len(text))
            encoding = reply.headers.get("Content-Encoding", "").lower()
            return read(reply.status, reply.headers, plain_of(text, encoding))
        finally:
            # Closes a connection whose answer was not read to its end; keeps the others.
            reply.release()

    def _aim(self, version: str, phone_number_id: str, token: str) -> _Target:
        if len(self._targets) >= _TARGETS_MAX:
            self._targets.clear()
        target = _Target(
            URL(f"{self._base_url}/{version}/{phone_number_id}/messages"),
            CIMultiDict({"Authorization": f"Bearer {token}", "Content-Type": "application/json"}),
        )
        self._targets[version, phone_number_id, token] = target
        return target


def _why_not_sent(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns"
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return "tls"
    return "pool" if isinstance(error, TimeoutError) else "refused"


def _why_unknown(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError):
        return "bad_reply"
    return "reset"
