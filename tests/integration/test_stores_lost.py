"""The side tasks of a worker outlive both stores."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CollectorRegistry

from shared.archive import Archive
from shared.clock import Clock
from shared.embedded.children import free_port
from shared.ids import Ids
from shared.metrics import WorkerMetrics
from shared.queue import Queue
from shared.sealing import Sealing
from shared.settings import Settings
from tests.conftest import replaced
from worker.log_writer import LogWriter
from worker.publisher import Publisher
from worker.senders import Senders


async def test_without_postgresql_or_redis_they_wait_and_stop_when_told(
    queue: Queue,
    archive: Archive,
    settings: Settings,
    eventually: Callable[..., Awaitable[Any]],
) -> None:
    nowhere = await Queue.open(replaced(settings, redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    await archive._pool.close()
    stop = asyncio.Event()
    clock, metrics = Clock(), WorkerMetrics(CollectorRegistry())
    tasks, writers = [], []
    for each in (queue, nowhere):
        senders = Senders(archive, each, settings, Sealing(settings.bulk_secret_key), clock)
        publisher = Publisher(each, archive, settings, clock, Ids(), senders)
        writer = LogWriter(each, archive, settings, clock, metrics, "a1")
        writers.append(writer)
        tasks += [asyncio.create_task(s.run(stop)) for s in (senders, publisher, writer)]
    # A second and a half of trying again, which pauses for 0.2, 0.4 and 0.8 s.
    await eventually(lambda: writers[1]._failures[0] > 2)
    assert not [task for task in tasks if task.done()]
    stop.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
    await nowhere.close()
