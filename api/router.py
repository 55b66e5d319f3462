"""Typed routes, each with a declared policy, and the one gate all requests pass in one order.

host → route → method → draining → credential → CSRF → role or scope → media type and encoding;
size, kill switch, quota and validation are the handlers'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_urldispatcher import MatchInfoError

from api import problems
from api.auth import PRINCIPAL, Access, Credentials, Principal, check_access
from api.guard import (
    check_content,
    check_csrf,
    check_host,
    check_http,
    check_path,
    headers_of,
    request_id_of,
)
from api.resources import RESOURCES, Resources
from api.sessions import PaceError
from shared import logs
from shared.errors import (
    DrumbeatError,
    Fault,
    InvalidError,
    QueueError,
    SettingsError,
    UnavailableError,
)

REQUEST_ID: Final = web.RequestKey("request_id", str)
# Headers that whatever answer follows must carry, such as those of a quota.
HEADERS: Final = web.RequestKey("headers", dict)
ROUTES: Final = web.AppKey("routes", dict)
PARAMETERS_MAX: Final = 50
PACE_S: Final = 0.5
Finish = Callable[[web.Request, web.StreamResponse], Awaitable[None]]
_SERVER_ERROR: Final = 500
_log: Final = logs.get("api.http")


class Route(NamedTuple):
    """One route.

    Attributes:
        method: GET answers HEAD too, streams excepted.
        path: aiohttp's pattern.
        handler: a function of one route only: the gate looks its policy up by it.
        access: who may; a route without one stops the start.
        endpoint: label of the metrics.
        has_body: a JSON body is expected; its type is demanded.
        is_body_optional: without a body no type is demanded.
        is_stream: HEAD is 405, query parameters are not looked at, no duration is measured.
        is_quiet: not in the access log, and answered while draining.
        headers: of every answer, also of one that the gate gives.
    """

    method: str
    path: str
    handler: Handler
    access: Access | None = None
    endpoint: str = "other"
    has_body: bool = False
    is_body_optional: bool = False
    is_stream: bool = False
    is_quiet: bool = False
    headers: Callable[[web.Request, Resources], dict[str, str]] | None = None


async def _expect(request: web.Request) -> None:
    """Answer no `100 Continue`: a credential is checked before a byte of the body is asked for."""


class _Nowhere(MatchInfoError):  # noqa: N818 - it is no exception, whatever aiohttp calls it
    """A path or method that there is not."""

    @property
    def expect_handler(self) -> Callable[[web.Request], Awaitable[None]]:
        """Return ours: aiohttp's asks for the body, or answers 417 before the gate is reached."""
        return _expect


class _Router(web.UrlDispatcher):
    """aiohttp's router, whose refusals go through the gate whatever the request expects."""

    async def resolve(self, request: web.Request) -> web.UrlMappingMatchInfo:
        found = await super().resolve(request)
        error = found.http_exception
        return found if error is None else _Nowhere(error)


def install(app: web.Application, routes: Iterable[Route]) -> None:
    """Add the routes.

    Raises:
        SettingsError: a route declares no policy, or two share a handler.
    """
    # Its argument for one is deprecated, and nothing took its place.
    app._router = _Router()  # noqa: SLF001
    known: dict[Handler, Route] = {}
    for route in routes:
        if route.access is None or route.handler in known:
            raise SettingsError(f"{route.method} {route.path}: no policy of its own")
        known[route.handler] = route
        if route.method == "GET":
            app.router.add_get(
                route.path, route.handler, allow_head=not route.is_stream, expect_handler=_expect
            )
        else:
            app.router.add_route(route.method, route.path, route.handler, expect_handler=_expect)
    app[ROUTES] = known


def gate(credentials: Credentials) -> Middleware:
    """Return the middleware that lets nobody through whom a route does not name."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        made: Resources = request.config_dict[RESOURCES]
        route: Route | None = request.config_dict[ROUTES].get(request.match_info.handler)
        if route is not None and route.headers is not None:
            request[HEADERS].update(route.headers(request, made))
        check_http(request)
        if route is None or not route.is_quiet:
            check_host(request, made.settings)
        check_path(request)
        if request.match_info.http_exception is not None:
            raise request.match_info.http_exception
        if route is None or route.access is None:
            raise web.HTTPNotFound
        if made.is_draining and not route.is_quiet:
            raise UnavailableError("draining", "This process is about to stop; ask again.", 1)
        if not route.access.is_open:
            asker = await credentials.principal_of(request)
            request[PRINCIPAL] = asker
            if asker.session:
                check_csrf(request, made.settings)
            check_access(route.access, asker)
            await _pace(made, asker)
        is_expected = route.has_body and (not route.is_body_optional or request.can_read_body)
        check_content(request, has_body=is_expected)
        return await handler(request)

    return check


async def _pace(made: Resources, asker: Principal) -> None:
    """Count the request; where nobody can say how many there were, it goes on.

    Raises:
        PaceError: one too many this minute.
    """
    try:
        async with asyncio.timeout(PACE_S):
            wait_s = await made.visitors.pace(asker.key_id or asker.session)
    except (QueueError, TimeoutError):
        return
    if wait_s:
        raise PaceError(wait_s)


def edge(made: Resources) -> Middleware:
    """Return the outermost middleware: request id, problems, metrics, one log line."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = made.clock.monotonic()
        request_id = request_id_of(request) or made.ids.object_id("req")
        request[REQUEST_ID] = request_id
        request[HEADERS] = {}
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            response = await handler(request)
        except (DrumbeatError, web.HTTPException) as error:
            response = _problem(made, request, error, request_id)
        except Exception as error:  # noqa: BLE001 - the edge of the process
            _log.exception("http.failed", route=_route_of(request))
            response = _problem(made, request, error, request_id)
        _measure(made, request, response, made.clock.monotonic() - started)
        return response

    return answer


def finish(made: Resources) -> Finish:
    """Return the hook that gives every answer its headers, streams too, just before they leave."""
    fixed = {**headers_of(made.settings), "Cache-Control": "no-store"}

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        for name, value in fixed.items():
            response.headers.setdefault(name, value)
        response.headers.update(request.get(HEADERS, {}))
        if REQUEST_ID in request:
            response.headers["X-Request-Id"] = request[REQUEST_ID]
        response.headers.popall("Server", None)

    return prepare


def _problem(
    made: Resources, request: web.Request, error: BaseException, request_id: str
) -> web.Response:
    response = problems.respond(
        error,
        public_url=made.settings.public_url,
        instance=request.path,
        request_id=request_id,
    )
    if request.can_read_body and not request.content.at_eof():
        # What is left of the body is not worth reading.
        response.force_close()
    return response


def _route_of(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "none"


def _measure(
    made: Resources, request: web.Request, response: web.StreamResponse, took_s: float
) -> None:
    route: Route | None = request.config_dict[ROUTES].get(request.match_info.handler)
    if route is not None and route.is_quiet:
        return
    endpoint = route.endpoint if route is not None else "other"
    made.metrics.http_requests_total.labels(endpoint, f"{response.status // 100}xx").inc()
    if route is None or not route.is_stream:
        made.metrics.http_request_duration_seconds.labels(endpoint).observe(took_s)
    asker = request.get(PRINCIPAL)
    say = _log.error if response.status >= _SERVER_ERROR else _log.info
    say(
        "http.request",
        method=request.method[:16],
        route=_route_of(request),
        status=response.status,
        duration_s=round(took_s, 4),
        bytes=response.body_length if response.prepared else 0,
        userId=asker.user_id if asker is not None else None,
    )


def query_of(request: web.Request, *allowed: str) -> dict[str, str]:
    """Return the query's parameters.

    Raises:
        InvalidError: 422 `unknown_parameter`: not offered, repeated, or more than 50.
    """
    found: dict[str, str] = {}
    for number, (name, value) in enumerate(request.query.items()):
        if name not in allowed or name in found or number >= PARAMETERS_MAX:
            raise InvalidError(
                "unknown_parameter",
                "The query has a parameter that is not offered, or one twice.",
                [Fault("", "unknown_parameter", f"Offered: {', '.join(allowed) or 'none'}.")],
            )
        found[name] = value
    return found
