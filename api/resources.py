"""What handlers find on the application and on a request, by typed keys."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakValueDictionary

from aiohttp import web

from api.hub import Hub
from api.sessions import Visitors
from api.switch import Switch
from shared.archive import Archive
from shared.clock import Clock
from shared.ids import Ids
from shared.inbox import Inbox
from shared.lineage import Lineage
from shared.management import Checks
from shared.metrics import ApiMetrics
from shared.office import Office
from shared.phone import PossibleLengths
from shared.queue import Queue
from shared.results import Results
from shared.settings import Settings
from shared.templates import Templates
from shared.uploads import Uploads

EXPORTS_MAX: Final = 2
READERS_MAX: Final = 2


@dataclass(slots=True)
class Resources:
    """Everything a handler may use; opened by `api.app`, closed by it.

    Attributes:
        is_draining: set by SIGTERM; readyz and new requests answer 503 from then on.
        born: the last known `born` of each shard, for the rows of jobs.
        exports: places for exports: each holds a connection of the pool.
        readers: places for child processes that read uploads.
        turns: one lock a user: one submission is decoded at a time.
        ready: checks of /readyz.
    """

    settings: Settings
    clock: Clock
    ids: Ids
    queue: Queue
    inbox: Inbox
    archive: Archive
    office: Office
    results: Results
    lineage: Lineage
    uploads: Uploads
    templates: Templates
    visitors: Visitors
    hub: Hub
    switch: Switch
    metrics: ApiMetrics
    lengths: PossibleLengths
    ready: Checks
    version: str = ""
    is_draining: bool = False
    born: dict[int, str] = field(default_factory=dict)
    exports: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(EXPORTS_MAX))
    readers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READERS_MAX))
    turns: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    @property
    def secret(self) -> bytes:
        """Return the key of MACs that leave this process: cursors, addresses in the audit log."""
        return self.settings.bulk_secret_key[0].reveal().encode()


RESOURCES: Final = web.AppKey("resources", Resources)


def resources(request: web.Request) -> Resources:
    """Return what the request's application was given."""
    return request.config_dict[RESOURCES]
