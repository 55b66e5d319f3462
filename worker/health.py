"""What makes a worker live and ready: did reader and tick turn, do the stores answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from shared.archive import Archive
from shared.clock import Clock
from shared.queue import Queue
from worker.pool import Pool
from worker.tick import Pulse

LIVE_S: Final = 30.0
READY_TICK_S: Final = 5.0
Check = Callable[[], Awaitable[None]]


def checks(
    queue: Queue, archive: Archive, pool: Pool, pulse: Pulse, clock: Clock
) -> tuple[dict[str, Check], dict[str, Check]]:
    """Return the checks of /livez and of /readyz; a check that fails raises."""

    async def reading() -> None:
        if clock.monotonic() - pool.last_read_s > LIVE_S and not pulse.is_draining:
            raise RuntimeError("the reader has not turned for 30 s")

    async def ticking() -> None:
        if clock.monotonic() - pulse.last_good_s > READY_TICK_S:
            raise RuntimeError("no tick was answered for 5 s")

    async def draining() -> None:
        if pulse.is_draining:
            raise RuntimeError("draining")

    live: dict[str, Check] = {"reader": reading}
    ready: dict[str, Check] = {
        "redis": queue.probe,
        "postgres": archive.ping,
        "tick": ticking,
        "drain": draining,
    }
    return live, ready
