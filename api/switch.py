"""Whether sending is switched off by any process of the pool, asked at most once a second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from shared.archive import Archive
from shared.clock import Clock
from shared.errors import StoreError, UnavailableError
from shared.queue import Queue
from shared.settings import Settings

OLD_S: Final = 1.0
ASK_S: Final = 0.5
RETRY_S: Final = 60


class Switch:
    """The pool's switch as this process last saw it.

    Args:
        queue: the Redis door, where every process that holds the pool leaves its mark.
        settings: DISABLE_BULK_MESSAGING of this process.
        clock: tells how old an answer is.
        archive: knows of a switch that a wiped Redis has not been told of again.
    """

    def __init__(
        self, queue: Queue, settings: Settings, clock: Clock, archive: Archive | None = None
    ) -> None:
        """Ask nothing yet."""
        self._queue = queue
        self._archive = archive
        self._is_ours = settings.disable_bulk_messaging
        self._clock = clock
        self._lock = asyncio.Lock()
        self._is_off = False
        self._at = float("-inf")

    async def is_off(self) -> bool:
        """Tell whether sending is off, at most a second old; not off where no store can say.

        Whoever is let through then is accepted at most: a held pool sends nothing.
        """
        if self._is_ours:
            return True
        async with self._lock:
            if self._clock.monotonic() - self._at >= OLD_S:
                self._is_off = await self._ask(self._queue.is_off())
                if self._archive is not None and not self._is_off:
                    self._is_off = await self._ask(self._archive.is_off())
                self._at = self._clock.monotonic()
            return self._is_off

    def forget(self) -> None:
        """Ask again at the next question: somebody has just switched."""
        self._at = float("-inf")

    async def _ask(self, question: Awaitable[bool]) -> bool:
        try:
            async with asyncio.timeout(ASK_S):
                return await question
        except (StoreError, TimeoutError):
            return False

    async def require_on(self) -> None:
        """Return when sending is on.

        Raises:
            UnavailableError: `bulk_disabled`, 503 with Retry-After.
        """
        if await self.is_off():
            raise UnavailableError("bulk_disabled", "Sending is switched off.", RETRY_S)
