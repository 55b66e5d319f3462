"""The second port of a process: live, ready, metrics, scale. Checks and registry are handed in."""

from __future__ import annotations

import asyncio
import errno
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from shared.clock import Clock
from shared.errors import SettingsError
from shared.settings import Secret

Check = Callable[[], Awaitable[None]]
Refresh = Callable[[], Awaitable[None]]
Scale = Callable[[], Awaitable[Mapping[str, float]]]
_CHECK_S: Final = 1.0
_CACHE_S: Final = 1.0


def shown(check: Check, gauge: Gauge) -> Check:
    """Return the check that also sets a gauge: 1 when it is well, else 0."""

    async def checked() -> None:
        try:
            await check()
        except BaseException:  # a cancelled one, which took too long, is not well either
            gauge.set(0)
            raise
        gauge.set(1)

    return checked


class CheckResult(msgspec.Struct, frozen=True):
    """What one check said: '' is well, anything else why not; and how long it took."""

    name: str
    problem: str
    took_s: float


class Checks:
    """Named checks, run side by side, each at most a second, their answer kept for a second.

    Args:
        checks: by name; one that returns is well, one that raises is not.
        clock: tells how old an answer is.
    """

    def __init__(self, checks: Mapping[str, Check], clock: Clock) -> None:
        """Keep the checks; nothing runs yet."""
        self._checks = dict(checks)
        self._clock = clock
        self._lock = asyncio.Lock()
        self._results: list[CheckResult] = []
        self._at = float("-inf")

    async def run(self) -> list[CheckResult]:
        """Return what each check says now, or said less than a second ago."""
        async with self._lock:
            if self._clock.monotonic() - self._at >= _CACHE_S:
                self._results = list(
                    await asyncio.gather(*(self._one(*item) for item in self._checks.items()))
                )
                self._at = self._clock.monotonic()
            return self._results

    async def _one(self, name: str, check: Check) -> CheckResult:
        started, problem = self._clock.monotonic(), ""
        try:
            async with asyncio.timeout(_CHECK_S):
                await check()
        except Exception as error:  # noqa: BLE001 - whatever a check meets, it is not well
            problem = f"{type(error).__name__}: {error}"
        return CheckResult(name, problem, round(self._clock.monotonic() - started, 4))

    async def response(self, *, verbose: bool = False) -> web.Response:
        """Return 200 when all are well, else 503 with the names of those that are not."""
        results = await self.run()
        failed = [result.name for result in results if result.problem]
        body: dict[str, object] = {"status": "failed" if failed else "ok"}
        if failed:
            body["failed"] = failed
        if verbose:
            body["checks"] = results
        return _json(body, 503 if failed else 200)


@asynccontextmanager
async def serve(  # one argument per thing served
    host: str,
    port: int,
    *,
    registry: CollectorRegistry,
    clock: Clock,
    live: Mapping[str, Check],
    ready: Mapping[str, Check],
    token: Secret | None = None,
    refresh: Refresh | None = None,
    scale: Scale | None = None,
) -> AsyncGenerator[int]:
    """Serve /livez, /readyz, /metrics and /scale until left; yields the port, 0 = off.

    Args:
        host: METRICS_HOST.
        port: METRICS_PORT as this process reads it; 0 serves nothing.
        registry: what /metrics shows.
        clock: for the age of answers.
        live: checks of /livez.
        ready: checks of /readyz.
        token: METRICS_TOKEN; asked for by /metrics and /scale when set.
        refresh: called before a scrape, to read the fleet's figures.
        scale: the body of /scale; None answers 404.

    Raises:
        SettingsError: the port is taken or the address is not ours; names the variable.
    """
    if port == 0:
        yield 0
        return
    app = web.Application(middlewares=[_bearer(token)])
    checks = {"/livez": Checks(live, clock), "/readyz": Checks(ready, clock)}

    async def health(request: web.Request) -> web.Response:
        return await checks[request.path].response(verbose=request.query.get("verbose") == "1")

    async def metrics(_request: web.Request) -> web.Response:
        if refresh is not None:
            await refresh()
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4}
        )

    async def wanted(_request: web.Request) -> web.Response:
        if scale is None:
            raise web.HTTPNotFound
        return _json(dict(await scale()))

    app.router.add_get("/livez", health)
    app.router.add_get("/readyz", health)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/scale", wanted)
    app.on_response_prepare.append(_bare)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await _listen(web.TCPSite(runner, host, port), host, port)
        yield port
    finally:
        await runner.cleanup()


async def _bare(_request: web.Request, response: web.StreamResponse) -> None:
    """Do not say what serves this, nor let anybody take it for something else."""
    response.headers.popall("Server", None)
    response.headers["X-Content-Type-Options"] = "nosniff"


async def _listen(site: web.TCPSite, host: str, port: int) -> None:
    try:
        await site.start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"METRICS_PORT: port {port} on {host} is taken; another process of ours may have "
                "it: set METRICS_PORT to a free port, or to 0 to do without"
            ) from error
        raise SettingsError(
            f"METRICS_HOST: cannot listen on {host}:{port} ({error.strerror})"
        ) from error


def _bearer(token: Secret | None) -> Middleware:
    wanted = b"" if token is None else b"Bearer " + token.reveal().encode()

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if wanted and request.path not in {"/livez", "/readyz"}:
            # Bytes that are no UTF-8 come as lone surrogates.
            given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
            if not hmac.compare_digest(given, wanted):
                return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    return middleware


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
