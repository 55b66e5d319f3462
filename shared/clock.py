"""Now, monotonic and sleep: the only place that asks the system for time."""

from __future__ import annotations

import asyncio
import time


class Clock:
    """The system's time; tests hand in one of their own.

    >>> Clock().now_ms() > 1_700_000_000_000
    True
    """

    def now_ms(self) -> int:
        """Return milliseconds since the epoch, on this machine's wall clock."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        return time.monotonic()

    async def sleep(self, delay_s: float) -> None:
        """Wait for `delay_s` seconds; below zero counts as zero."""
        await asyncio.sleep(max(0.0, delay_s))


async def is_set_within(stop: asyncio.Event, within_s: float) -> bool:
    """Wait at most `within_s` seconds for an event; tell whether it came."""
    try:
        await asyncio.wait_for(stop.wait(), within_s)
    except TimeoutError:
        return False
    return True
