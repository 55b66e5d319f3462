"""G10: the fault proxy between every pair of our parts, one toxic a cell."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final, NamedTuple

from tests.faults.real.door import Customer
from tests.faults.real.proxy import Fault, Proxy, Stream
from tests.faults.real.rig import Rig, cpu_s, require
from tests.faults.real.workers import FINISH_S

COUNT: Final = 1200
RATE: Final = 400
RECOVER_S: Final = 10
CPU_MAX: Final = 0.2
AWAY_S: Final = 5.5  # of what is measured for hot loops
ILL_S: Final = 3.0
BOTH: Final[tuple[Stream, ...]] = ("upstream", "downstream")


class Cell(NamedTuple):
    """Between whom, what."""

    who: str
    target: str
    toxic: str
    stream: Stream = "downstream"

    def __str__(self) -> str:
        way = f" {self.stream}" if self.toxic in TWO_WAYS else ""
        return f"{self.who} and {self.target}: {self.toxic}{way}"


TWO_WAYS: Final = ("latency", "bandwidth", "slicer", "limit_data")
ONE_WAY: Final = ("down", "reset_peer", "half_open", "cut_before", "cut_after", "hang_after")
CELLS: Final = [
    *(
        Cell("worker", target, toxic, stream)
        for target in ("redis", "postgres", "provider")
        for toxic in TWO_WAYS
        for stream in BOTH
    ),
    *(
        Cell("worker", target, toxic)
        for target in ("redis", "postgres", "provider")
        for toxic in ONE_WAY
    ),
    *(Cell("API", target, toxic) for target in ("redis", "postgres") for toxic in ONE_WAY),
    *(
        Cell("API", target, toxic, stream)
        for target, stream in (("redis", BOTH[0]), ("postgres", BOTH[1]))
        for toxic in TWO_WAYS[:3]
    ),
]


async def fall_ill(proxy: Proxy, cell: Cell, chance: Random) -> None:
    """Begin a cell's fault."""
    toxic = cell.toxic
    if toxic == "half_open":
        proxy.half_open()
    elif toxic in ("cut_before", "cut_after", "hang_after"):
        fault: Fault = toxic  # type: ignore[assignment]  # one of the three, as just asked
        proxy.plan(dict.fromkeys(chance.sample(range(1, 120), 8), fault))
    else:
        attributes = {
            "down": {},
            "reset_peer": {"timeout": chance.randrange(500)},
            "latency": {"latency": 300, "jitter": 200},
            "bandwidth": {"rate": 10},
            "slicer": {"average_size": 1},
            "limit_data": {"bytes": chance.randrange(1, 20_000)},
        }[toxic]
        await proxy.add(toxic, cell.stream, **attributes)


async def cell(rig: Rig, chance: Random, index: int) -> dict[str, float]:
    """Break one pair while it works; heal it; it is well again within 10 s."""
    this = CELLS[index % len(CELLS)]
    try:
        act = _submitting if this.who == "API" else _sending
        return await act(rig, this, chance)
    except Exception as error:
        error.args = (f"{this}: {error}",)
        raise
    finally:
        for proxy in rig.proxies.values():
            await proxy.heal()


async def _ill(
    rig: Rig, proxy: Proxy, this: Cell, chance: Random, busy: Callable[[], float]
) -> tuple[float, float]:
    """Hold the fault for its time; return when it was healed, and the CPU used meanwhile."""
    is_away = this.toxic in ("down", "half_open")
    await fall_ill(proxy, this, chance)
    began_s, began = rig.clock.monotonic(), busy()
    await rig.clock.sleep(AWAY_S if is_away else ILL_S)
    share = (busy() - began) / (rig.clock.monotonic() - began_s)
    await proxy.heal()
    return rig.clock.monotonic(), share if is_away else 0.0


async def _sending(rig: Rig, this: Cell, chance: Random) -> dict[str, float]:
    await rig.workers(2)
    proxy = rig.proxies[this.target]
    lost = _lost(proxy)
    # Long enough that there is something left to send when it is healed.
    count = COUNT * 2 if this.toxic in ("down", "half_open") else COUNT * 3 // 2
    job = await rig.submit(count, "fast")
    await rig.has_sent(job, chance.randrange(20, COUNT // 3))

    def busy() -> float:
        return max(cpu_s(child) for child in rig.stack.workers) if rig.stack.workers else 0.0

    healed_s, share = await _ill(rig, proxy, this, chance, busy)
    took_s = 0.0
    if this.target == "postgres":
        await rig.until(lambda: _archives(rig, job), RECOVER_S, "the archive goes on", 0.05)
        took_s = rig.clock.monotonic() - healed_s
    elif not await rig.is_over(job):
        took_s = await rig.goes_on(healed_s, RECOVER_S, "the fault")
    # Without PostgreSQL it goes on sending, and works; a worker with nothing to do may not.
    if this.target != "postgres":
        require(share < CPU_MAX, f"{share:.0%} of a CPU while it was away")
    await rig.has_ended(job, count / RATE + FINISH_S + 10)
    unknown = await rig.ended_well(job)
    lost = _lost(proxy) - lost
    most = lost if this.target == "provider" else 0
    rig.unknown_max += most
    rig.bounded(unknown, most)
    return {
        "unknown": unknown,
        f"worst recovery from {this.target} s": took_s,
        "worst CPU while away": share if this.target != "postgres" else 0.0,
    }


def _lost(proxy: Proxy) -> int:
    """Return how many answers cannot have come, or were not to be relied on.

    Requests without a whole answer; and one for each connection that was cut, which may have been
    under way to it.
    """
    return proxy.counters.begun - proxy.counters.answers + proxy.counters.cut


async def _archives(rig: Rig, job: str) -> bool:
    """Tell whether what is final in Redis has come to PostgreSQL, but for the last second's."""
    done = (await rig.stack.status(job)).tally.done
    logged = await rig.pool.fetchval(
        "SELECT count(*) FROM campaign_logs l JOIN bulk_jobs j ON j.number = l.job_number"
        " WHERE j.id = $1",
        job,
    )
    return bool(logged >= done - RATE)


async def _submitting(rig: Rig, this: Cell, chance: Random) -> dict[str, float]:
    await rig.workers(1)
    await rig.apis_ready(1)
    child, origin = rig.apis[0]
    proxy = rig.proxies[f"API {this.target}"]
    customers = [Customer(rig, chance.choice((1, 60, 700))) for _ in range(4)]
    works: list[Awaitable[None]] = []

    async def come() -> None:
        for customer in customers:
            works.append(asyncio.ensure_future(customer.submit([origin], 40)))
            await rig.clock.sleep(ILL_S / len(customers))

    coming = asyncio.ensure_future(come())
    healed_s, share = await _ill(rig, proxy, this, chance, lambda: cpu_s(child))
    await coming
    await asyncio.gather(*works)
    took_s = rig.clock.monotonic() - healed_s
    require(took_s <= RECOVER_S, f"the last 202 came {took_s:.1f} s after healing")
    require(share < CPU_MAX, f"{share:.0%} of a CPU while it was away")
    for customer in customers:
        await customer.owns_one()
    return {
        "worst recovery of submissions s": took_s,
        "worst CPU while away": share,
        "submissions repeated": sum(customer.tries - 1 for customer in customers),
    }
