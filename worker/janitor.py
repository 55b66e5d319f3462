"""Sweeps once a minute: files whose time is over, Idempotency-Keys past theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from shared.clock import is_set_within
from shared.errors import ArchiveError
from shared.leftovers import Leftovers
from shared.logs import get

_EVERY_S: Final = 60.0
_log = get("worker.janitor")


class Janitor:
    """Forgets what has outlived its time; every worker sweeps, none waits for another.

    Args:
        leftovers: where it lies.
        idempotency_ttl_s: how long a key is kept.
    """

    def __init__(self, leftovers: Leftovers, idempotency_ttl_s: int) -> None:
        """Sweep nothing yet."""
        self._leftovers = leftovers
        self._ttl_s = idempotency_ttl_s

    async def run(self, stop: asyncio.Event) -> None:
        """Sweep at once and then every minute, until `stop`."""
        is_lost = False
        while True:
            try:
                await self.sweep(stop)
                is_lost = False
            except ArchiveError as error:
                if not is_lost:
                    _log.warning("janitor.waits", error=str(error))
                is_lost = True
            if await is_set_within(stop, _EVERY_S):
                return

    async def sweep(self, stop: asyncio.Event) -> None:
        """Forget all that may go, a little at a time.

        Raises:
            ArchiveError: PostgreSQL is away; the next sweep goes on.
        """
        files = await _all(self._leftovers.drop_uploads, stop)
        keys = await _all(lambda: self._leftovers.drop_keys(self._ttl_s), stop)
        if files or keys:
            _log.info("janitor.swept", uploads=files, keys=keys)


async def _all(drop: Callable[[], Awaitable[int]], stop: asyncio.Event) -> int:
    gone = 0
    while not stop.is_set() and (some := await drop()):
        gone += some
    return gone
