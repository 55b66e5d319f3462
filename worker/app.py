"""Opens everything, runs slots and side tasks together: one that crashes ends all."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final

from prometheus_client import CollectorRegistry

from shared import logs, management
from shared.archive import Archive
from shared.clock import Clock
from shared.connect import open_postgres
from shared.errors import QueueError
from shared.ids import Ids
from shared.inbox import Inbox
from shared.leftovers import Leftovers
from shared.metrics import WorkerMetrics
from shared.migrate import require_current
from shared.notices import Notices
from shared.queue import Queue
from shared.receipts import Receipts
from shared.sealing import Sealing
from shared.settings import Settings
from shared.templates import Templates
from worker.default_sender import Renewal, ensure_default
from worker.executor import Graph, Jobs, Tools
from worker.graph import GraphClient
from worker.graph_lists import ListReader
from worker.graph_thin import ThinGraphClient
from worker.health import checks
from worker.janitor import Janitor
from worker.log_writer import LogWriter
from worker.noticeboard import Noticeboard
from worker.pool import Pool
from worker.publisher import Publisher
from worker.receipts import Consumer
from worker.receipts import Tools as ReceiptTools
from worker.retry import WAITS, Waits
from worker.scopes import Scopes
from worker.senders import Senders
from worker.suppression import Listed, Suppressions
from worker.templates import Lists
from worker.tick import Pulse

_OFF_TTL_MS: Final = 10_000
_OFF_EVERY_S: Final = 3.0
_GARBAGE: Final = 10_000  # new objects before one looks for rings among them; 700 by default
_log = logs.get("worker")


async def run(
    settings: Settings,
    stop: asyncio.Event,
    waits: Waits = WAITS,
    again: asyncio.Event | None = None,
) -> None:
    """Send until `stop`, then drain.

    Args:
        settings: of the process.
        stop: set when it is to end.
        waits: of the error policy.
        again: set when a new token is to be read; None = it never is.

    Raises:
        SettingsError: a secret is missing, Redis may lose what it is told, the schema is older
            than this code, or a port is taken.
    """
    clock, ids = Clock(), Ids()
    metrics = WorkerMetrics(CollectorRegistry())
    worker = ids.worker_name()
    sealing = Sealing(settings.bulk_secret_key)
    async with AsyncExitStack() as stack:
        queue, inbox, pool = await _stores(stack, settings, clock, metrics)
        archive = Archive(pool)
        await ensure_default(archive, settings, sealing, ids)
        senders = Senders(archive, queue, settings, sealing, clock)
        await senders.refresh()
        pulse = Pulse(queue, worker, settings, clock, metrics)
        graph = await stack.enter_async_context(_graph(settings, pulse))
        listed = Listed(sealing.derive("suppression"))
        suppressions = Suppressions(archive, listed, clock)
        await suppressions.refresh()
        scopes = Scopes(queue, archive, senders, pulse, clock, waits)
        templates = Templates(pool)
        opaque_key = sealing.derive("opaque")
        lists = Lists(templates, ListReader(settings), senders, clock)
        tools = Tools(
            queue,
            graph,
            senders,
            Jobs(queue, opaque_key),
            pulse,
            settings,
            clock,
            ids,
            metrics,
            logs.Refusals(logs.get("worker"), clock),
            scopes.act,
            waits,
            listed,
            lists.doubt,
        )
        slots = Pool(tools, settings.worker_slots)
        await stack.enter_async_context(_management(tools, archive, slots))
        for shard in range(queue.shards):
            await queue.prepare(shard)
        _log.info("worker.started", worker=worker, sandbox=settings.is_sandbox)
        writer = LogWriter(queue, archive, settings, clock, metrics, worker)
        publisher = Publisher(queue, archive, settings, clock, ids, senders)
        pulse.bring_back = publisher.bring_back
        board = Noticeboard(Notices(pool), templates, scopes, senders, metrics)
        consumer = Consumer(
            ReceiptTools(
                queue,
                inbox,
                Receipts(pool),
                senders,
                scopes,
                board,
                clock,
                metrics,
                opaque_key,
                sealing.derive_older("opaque"),
            ),
            worker,
        )
        janitor = Janitor(Leftovers(pool), settings.idempotency_ttl_s)
        renewal = Renewal(again or asyncio.Event(), archive, sealing, ids, clock)
        sides = [writer.run, publisher.run, senders.run, suppressions.run, consumer.run, lists.run,
                 renewal.run, janitor.run]  # fmt: skip
        # What is here by now stays: looked at again and again it was 8 % of what a message costs.
        gc.freeze()
        gc.set_threshold(_GARBAGE)
        await _together(stop, tools, slots, pulse, archive, sides)


async def _stores(
    stack: AsyncExitStack, settings: Settings, clock: Clock, metrics: WorkerMetrics
) -> tuple[Queue, Inbox, Any]:
    """Open Redis and PostgreSQL; refuse those that would lose what they are told."""

    def observe(name: str, took_s: float) -> None:
        metrics.redis_command_duration_seconds.labels(name).observe(took_s)

    queue = await Queue.open(settings, observe)
    stack.push_async_callback(queue.close)
    inbox = Inbox.open(settings, clock)
    stack.push_async_callback(inbox.close)
    await queue.require_durable()
    pool = await open_postgres(settings)
    stack.push_async_callback(pool.close)
    await require_current(settings, pool)
    return queue, inbox, pool


def _graph(settings: Settings, pulse: Pulse) -> AbstractAsyncContextManager[Graph]:
    """Return the Graph client that the settings ask for."""
    client: Callable[..., AbstractAsyncContextManager[Graph]] = (
        ThinGraphClient if settings.graph_client == "thin" else GraphClient
    )
    return client(
        settings.graph_base_url,
        limit=min(settings.worker_slots, 64) * settings.bulk_concurrency,
        connect_timeout_s=settings.graph_connect_timeout_s,
        timeout_s=settings.graph_timeout_s,
        keepalive_s=settings.graph_keepalive_s,
        on_answer=pulse.reached,
    )


def _management(tools: Tools, archive: Archive, slots: Pool) -> AbstractAsyncContextManager[Any]:
    """Return the port that probes and Prometheus ask."""
    settings, metrics, clock = tools.settings, tools.metrics, tools.clock
    live, ready = checks(tools.queue, archive, slots, tools.pulse, clock)
    ready["redis"] = management.shown(ready["redis"], metrics.redis_up)
    ready["postgres"] = management.shown(ready["postgres"], metrics.postgres_up)
    asked = management.Checks(ready, clock)

    async def probe() -> None:
        """Set what the checks show: nobody else may ask for readiness."""
        await asked.run()

    return management.serve(
        settings.metrics_host,
        settings.worker_metrics_port,
        registry=metrics.registry,
        clock=clock,
        live=live,
        ready=ready,
        token=settings.metrics_token,
        refresh=probe,
    )


async def _together(
    stop: asyncio.Event,
    tools: Tools,
    slots: Pool,
    pulse: Pulse,
    archive: Archive,
    sides: list[Any],
) -> None:
    """Run all until `stop`; the side tasks outlive the slots, whose last facts they must write."""
    drained = asyncio.Event()

    async def send() -> None:
        try:
            await slots.run(stop)
        finally:
            drained.set()

    async def watch() -> None:
        clock = tools.clock
        while not drained.is_set():
            tools.metrics.worker_slots.set(tools.settings.worker_slots)
            tools.metrics.worker_busy_slots.set(slots.busy)
            tools.metrics.graph_in_flight.set(slots.in_the_air)
            tools.metrics.tick_age_seconds.set(clock.monotonic() - pulse.last_good_s)
            busy, size = archive.pool_sizes()
            tools.metrics.postgres_pool_connections.labels("busy").set(busy)
            tools.metrics.postgres_pool_connections.labels("idle").set(size - busy)
            tools.refusals.flush_if_due()
            before_s = clock.monotonic()
            await clock.sleep(1.0)
            late_s = clock.monotonic() - before_s - 1.0
            tools.metrics.event_loop_lag_seconds.observe(max(0.0, late_s))
        tools.refusals.flush()

    work: list[Coroutine[Any, Any, None]] = [send(), watch(), pulse.run(drained)]
    work += [side(drained) for side in sides]
    if tools.settings.disable_bulk_messaging:
        work.append(_stay_off(tools, drained))
    async with asyncio.TaskGroup() as group:
        for each in work:
            group.create_task(each)


async def _stay_off(tools: Tools, stop: asyncio.Event) -> None:
    """Hold the whole pool while this process lives: DISABLE_BULK_MESSAGING is set."""
    name = tools.pulse.worker
    while not stop.is_set():
        for shard in range(tools.queue.shards):
            try:
                await tools.queue.switch(shard, name, _OFF_TTL_MS)
            except QueueError:
                _log.warning("switch.not_written", shard=shard)
        await tools.clock.sleep(_OFF_EVERY_S)
    for shard in range(tools.queue.shards):
        await tools.queue.switch(shard, name, 0)
