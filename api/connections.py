"""One connection: how long its headers may take, how many an address may have, raw faults.

aiohttp has no limit for any of them (pitfalls A1, A5). What is left over is nginx's: how many
connections in all, and the least speed.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from api.guard import address_in, headers_of, name_of
from api.problems import problem
from shared.ids import Ids
from shared.settings import Settings

_SERVER_ERROR: Final = 500


class Doorway:
    """How many connections each client address has open in this process.

    A trusted proxy brings everybody's, so it is not counted; behind one its own limit counts.

    Args:
        settings: CONNECTIONS_PER_IP and TRUSTED_PROXIES; PUBLIC_URL for refusals.
    """

    def __init__(self, settings: Settings) -> None:
        """Begin with nobody inside."""
        self.header_timeout_s = settings.header_timeout_s
        self.public_url = settings.public_url
        self.headers = {**headers_of(settings), "Cache-Control": "no-store"}
        self.ids = Ids()
        self._most = settings.connections_per_ip
        self._trusted = [
            ipaddress.ip_network(text, strict=False) for text in settings.trusted_proxies
        ]
        self._open: Counter[str] = Counter()

    def enter(self, peer: str) -> str | None:
        """Count a connection; return what `leave` is given, None when it is one too many."""
        name = self._name_of(peer)
        if name and self._open[name] >= self._most:
            return None
        if name:
            self._open[name] += 1
        return name

    def leave(self, name: str) -> None:
        """Forget a connection."""
        if name:
            self._open[name] -= 1
            if self._open[name] <= 0:
                del self._open[name]

    def _name_of(self, peer: str) -> str:
        address = address_in(peer)
        # A socket in the file system has none.
        if address is None or any(address in network for network in self._trusted):
            return ""
        return name_of(address)


class _Nameless(web.Response):
    """An answer that no application's hooks see: it must not say by itself what serves it."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)


class Connection(RequestHandler):
    """One connection; what aiohttp's parser refuses gets our answer and no byte of theirs."""

    __slots__ = ("_doorway", "_late", "_name")

    def __init__(self, doorway: Doorway, *args: Any, **rest: Any) -> None:  # noqa: ANN401 - aiohttp's
        """Take aiohttp's arguments, and whom to ask for room."""
        super().__init__(*args, **rest)
        self._doorway = doorway
        self._name: str | None = None
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless this address has too many open already."""
        peer = transport.get_extra_info("peername")
        self._name = self._doorway.enter(str(peer[0]) if isinstance(peer, tuple) else "")
        super().connection_made(transport)
        if self._name is None:
            self.force_close()
        else:
            self._wait_for_headers()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place back."""
        self._stop_waiting()
        if self._name is not None:
            self._doorway.leave(self._name)
            self._name = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; headers that have begun must be whole within HEADER_TIMEOUT_S."""
        super().data_received(data)
        if self._messages or self._current_request is not None:
            self._stop_waiting()
        elif self._late is None:
            self._wait_for_headers()

    def _wait_for_headers(self) -> None:
        self._late = self._loop.call_later(self._doorway.header_timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if not self._messages and self._current_request is None:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = _SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return a generic problem and close."""
        del request, message
        code, detail = "bad_request", "The request is not valid HTTP."
        if status >= _SERVER_ERROR:
            self.log_exception("http.failed", exc_info=exc)
            code, detail = "internal", "Something went wrong on our side."
        request_id, public_url = self._doorway.ids.object_id("req"), self._doorway.public_url
        told = problem(code, detail, public_url=public_url, request_id=request_id)
        response = _Nameless(
            status=told.status,
            body=told.body,
            headers={
                **self._doorway.headers,
                "Content-Type": told.headers["Content-Type"],
                "X-Request-Id": request_id,
            },
        )
        response.force_close()
        return response


class Runner(web.AppRunner):
    """An application's runner whose connections are `Connection`s.

    Args:
        app: the application.
        settings: for the doorway.
        options: aiohttp's.
    """

    def __init__(self, app: web.Application, settings: Settings, **options: Any) -> None:  # noqa: ANN401 - aiohttp's
        """Take aiohttp's options."""
        super().__init__(app, **options)
        self._doorway = Doorway(settings)

    async def _make_server(self) -> Any:  # noqa: ANN401 - aiohttp's own is generic
        server = await super()._make_server()
        loop = asyncio.get_running_loop()
        options, doorway = self._kwargs, self._doorway

        def connect() -> Connection:
            return Connection(doorway, server, loop=loop, **options)

        return _Server(server, connect)


class _Server:
    """aiohttp's server with another factory; the rest is asked of the original."""

    def __init__(self, server: Any, connect: Any) -> None:  # noqa: ANN401
        self._server = server
        self._connect = connect

    def __call__(self) -> Connection:
        connection: Connection = self._connect()
        return connection

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._server, name)
