"""The table of contents: resources, middlewares, routes; and how one process lives and drains."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from api import auth, health, jobs, logins, stats, stream, submit, webhooks, work
from api.connections import Runner
from api.fleet import Fleet
from api.hub import Hub
from api.office import ROUTES as OFFICE_ROUTES
from api.resources import RESOURCES, Resources
from api.router import Route, edge, finish, gate, install
from api.sessions import Visitors
from api.switch import Switch
from api.web import pages
from shared import logs, management
from shared.archive import Archive
from shared.clock import Clock
from shared.connect import open_postgres
from shared.errors import QueueError, SettingsError
from shared.ids import Ids
from shared.inbox import Inbox
from shared.lineage import Lineage
from shared.management import Checks
from shared.metrics import ApiMetrics, ours
from shared.migrate import require_current
from shared.office import Office
from shared.phone import PossibleLengths
from shared.queue import Queue
from shared.results import Results
from shared.settings import Settings
from shared.templates import Templates
from shared.uploads import Uploads

DRAIN_S: Final = 10.0
LINGER_S: Final = 2.0  # for who is still sending what nobody reads
_OFF_TTL_MS: Final = 10_000
_OFF_EVERY_S: Final = 3.0
_LINE_MAX: Final = 8190
_log: Final = logs.get("api")

ROUTES: Final = (
    Route("POST", "/api/bulk/send", submit.send, auth.SEND, "send", has_body=True,
          headers=submit.policies_of),
    Route("GET", "/api/bulk/jobs", jobs.list_jobs, auth.READ, "jobs"),
    Route("GET", "/api/bulk/jobs/{job_id}", jobs.show, auth.READ, "job"),
    Route("POST", "/api/bulk/jobs/{job_id}/pause", jobs.pause, auth.SEND, "control",
          has_body=True, is_body_optional=True),
    Route("POST", "/api/bulk/jobs/{job_id}/resume", jobs.resume, auth.SEND, "control",
          has_body=True, is_body_optional=True),
    Route("POST", "/api/bulk/jobs/{job_id}/cancel", jobs.cancel, auth.SEND, "control",
          has_body=True, is_body_optional=True),
    *work.ROUTES,
    Route("GET", "/api/bulk/stats", stats.show, auth.ADMIN, "other"),
    *stream.ROUTES,
    *webhooks.ROUTES,
    *logins.ROUTES,
    Route("GET", "/livez", health.live, auth.OPEN, is_quiet=True),
    Route("GET", "/readyz", health.ready, auth.OPEN, is_quiet=True),
    *pages.ROUTES,
    *OFFICE_ROUTES,
)  # fmt: skip


def application(made: Resources, routes: tuple[Route, ...] = ROUTES) -> web.Application:
    """Return the application on doors that are open; the caller runs the hub."""
    app = web.Application(
        middlewares=[edge(made), gate(auth.Credentials())],
        client_max_size=made.settings.body_max_bytes,
    )
    app[RESOURCES] = made
    app.on_response_prepare.append(finish(made))
    install(app, routes)
    return app


async def open_resources(
    settings: Settings, stack: AsyncExitStack, registry: CollectorRegistry
) -> Resources:
    """Open both doors and everything that stands on them; the stack closes them.

    Raises:
        SettingsError: a secret is missing, or the schema is older than this code.
    """
    if not settings.bulk_secret_key:
        raise SettingsError("BULK_SECRET_KEY is needed, 32 bytes or more: `openssl rand -hex 32`")
    clock, ids, metrics = Clock(), Ids(), ApiMetrics(registry)
    seconds = metrics.redis_command_duration_seconds
    queue = await Queue.open(settings, lambda name, took_s: seconds.labels(name).observe(took_s))
    stack.push_async_callback(queue.close)
    inbox = Inbox.open(settings, clock)
    stack.push_async_callback(inbox.close)
    pool = await open_postgres(settings)
    stack.push_async_callback(pool.close)
    await require_current(settings, pool)
    if settings.whatsapp_app_secret:
        metrics.webhooks_total.labels("ok")  # from the start: silence must show
    archive, hub = Archive(pool), Hub(queue, settings, clock, metrics)
    made = Resources(
        settings=settings,
        clock=clock,
        ids=ids,
        queue=queue,
        inbox=inbox,
        archive=archive,
        office=Office(pool),
        results=Results(pool),
        lineage=Lineage(pool),
        uploads=Uploads(pool),
        templates=Templates(pool),
        visitors=Visitors(queue, settings, ids),
        hub=hub,
        switch=Switch(queue, settings, clock, archive),
        metrics=metrics,
        lengths=PossibleLengths(),
        ready=Checks({}, clock),
        version=ours(),
    )
    made.ready = Checks(health.ready_checks(made), clock)
    return made


def runner_of(app: web.Application, settings: Settings) -> Runner:
    """Return what serves the application; no encoding of a body is ever undone (pitfalls A4)."""
    return Runner(
        app,
        settings,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=settings.keepalive_s,
        lingering_time=LINGER_S,
        max_line_size=_LINE_MAX,
        max_field_size=_LINE_MAX,
        shutdown_timeout=DRAIN_S,
    )


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop`, then drain: readyz 503, `bye` to streams, requests in hand ≤ 10 s.

    Raises:
        SettingsError: an address is taken or a setting does not hold.
        StoreError: a store cannot be reached at the start.
    """
    registry = CollectorRegistry()
    async with AsyncExitStack() as stack:
        made = await open_resources(settings, stack, registry)
        await made.queue.require_durable()
        fleet = Fleet(made)
        await stack.enter_async_context(
            management.serve(
                settings.metrics_host,
                settings.api_metrics_port,
                registry=registry,
                clock=made.clock,
                live={},
                ready=health.ready_checks(made),
                token=settings.metrics_token,
                refresh=fleet.refresh,
                scale=fleet.scale,
            )
        )
        runner = runner_of(application(made), settings)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await _listen(runner, settings)
        # What is here now stays: a full collection in mid-request need not look at it again.
        gc.collect()
        gc.freeze()
        _log.info(
            "api.started", port=settings.api_port, sandbox=settings.is_sandbox, version=made.version
        )
        async with asyncio.TaskGroup() as group:
            side = [group.create_task(made.hub.run()), group.create_task(_watch_loop(made))]
            if settings.disable_bulk_messaging:
                side.append(group.create_task(_stay_off(made)))
            await stop.wait()
            made.is_draining = True
            _log.info("api.draining")
            await made.hub.close()
            for task in side:
                task.cancel()


async def _listen(runner: web.AppRunner, settings: Settings) -> None:
    try:
        await web.TCPSite(runner, settings.api_host, settings.api_port, backlog=1024).start()
    except OSError as error:
        raise SettingsError(
            f"API_PORT: cannot listen on {settings.api_host}:{settings.api_port} "
            f"({error.strerror}); set API_PORT to a free port"
        ) from error


async def _watch_loop(made: Resources) -> None:
    """Measure how late the loop wakes, and how many connections the pool has."""
    step = 0.5
    while True:
        before = made.clock.monotonic()
        await made.clock.sleep(step)
        late = made.clock.monotonic() - before - step
        made.metrics.event_loop_lag_seconds.observe(max(0.0, late))
        busy, size = made.archive.pool_sizes()
        made.metrics.postgres_pool_connections.labels("busy").set(busy)
        made.metrics.postgres_pool_connections.labels("idle").set(size - busy)


async def _stay_off(made: Resources) -> None:
    """Hold the whole pool while this process lives: DISABLE_BULK_MESSAGING is set."""
    name = made.ids.worker_name()
    try:
        while True:
            for shard in range(made.queue.shards):
                try:
                    await made.queue.switch(shard, name, _OFF_TTL_MS)
                except QueueError:
                    _log.warning("switch.not_written", shard=shard)
            await made.clock.sleep(_OFF_EVERY_S)
    finally:
        for shard in range(made.queue.shards):
            await made.queue.switch(shard, name, 0)
