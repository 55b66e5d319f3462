"""How long 50,000 recipients take to be accepted, and what a recipient occupies while it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec

from shared.clock import Clock
from tests.bench.contest import BULLMQ_PEER, PEERS, Peer, lane, ready
from tests.bench.figures import THIN, Round
from tests.bench.machine import cpu_s
from tests.bench.rig import Asked, FarSide, Rig, StalledError, System, until, used_memory
from tests.e2e.stack import KEY

COUNT = 50_000
TIMES = 3  # as many rounds as asked for: one takes a fraction of a second
PROBE_S = 0.005
PAUSE_S = 0.5  # the next one is not to meet what this one left to do
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


def body_of(phones: list[int]) -> bytes:
    """Return a submission as its caller sends it."""
    return msgspec.json.encode(
        {
            "recipients": [f"+{phone}" for phone in phones],
            "message": {"kind": "text", "text": {"body": "hello", "preview_url": False}},
            "sender": "b0",
        }
    )


class Prober:
    """Asks /livez again and again, one request at a time: what its loop is late, they wait."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        """Ask nothing yet."""
        self._http, self._url = http, url
        self.waits_s: list[float] = []

    async def run(self) -> None:
        """Ask until cancelled."""
        clock = Clock()
        while True:
            start_s = clock.monotonic()
            async with self._http.get(self._url) as answer:
                await answer.read()
            self.waits_s.append(clock.monotonic() - start_s)
            await clock.sleep(PROBE_S)


async def post(system: System, origin: str, pid: int, turn: int) -> Round:
    """Post 50,000, from the first byte of the request to the whole of the 202."""
    clock, body = Clock(), body_of(system.phones(COUNT))
    # The probe has a connection of its own, or it would wait behind the body.
    async with aiohttp.ClientSession() as http, aiohttp.ClientSession() as other:
        prober = Prober(other, f"{origin}/livez")
        probing = asyncio.create_task(prober.run())
        before_s, start_s = cpu_s(pid), clock.monotonic()
        async with http.post(f"{origin}/api/bulk/send", data=body, headers=HEADERS) as answer:
            made = await answer.json()
        took_s = clock.monotonic() - start_s
        probing.cancel()
        await asyncio.wait([probing])
    if answer.status != 202 or made["intake"]["accepted"] != COUNT:
        raise StalledError(f"not accepted: {answer.status} {made}")
    figures: dict[str, float | None] = {
        "accept_s": round(took_s, 4),
        "cpu_s": round(cpu_s(pid) - before_s, 3),
        "loop_late_s": round(max(prober.waits_s), 4),
    }
    await clock.sleep(PAUSE_S)
    return Round(THIN, turn, figures)


async def add_bulk(rig: Rig, far: FarSide, turn: int) -> Round:
    """Have BullMQ take 50,000 in one addBulk."""
    peer = BULLMQ_PEER
    if why := ready(peer).why:
        return Round(peer.name, turn, not_run=why)
    try:
        async with lane(rig, peer, far) as its:
            told = await its.enqueue(COUNT, str(COUNT))
    except StalledError as error:
        return Round(peer.name, turn, not_run=str(error))
    return Round(peer.name, turn, {"accept_s": round(told["s"], 4), "cpu_s": told["cpu_s"]})


async def accepting(rig: Rig, asked: Asked) -> AsyncIterator[Round]:
    """Measure both in turns."""
    async with rig.far_side() as far, rig.system(far) as system:
        await system.stack.add_key()
        child, origin = await system.stack.add_api(until_ready, LOG_LEVEL="warning")
        for turn in range(TIMES * asked.rounds):
            yield await post(system, origin, child.pid, turn)
            if turn < asked.rounds:
                yield await add_bulk(rig, far, turn)


async def until_ready(is_so: Callable[[], Any], within_s: float, every_s: float) -> None:
    """Wait as the stack's `eventually` does."""
    await until(is_so, within_s, "the API is ready", every_s)


async def queued(rig: Rig, asked: Asked) -> AsyncIterator[Round]:
    """Measure the bytes of Redis that a waiting recipient takes: of memory, so one round."""
    async with rig.far_side() as far:
        async with rig.system(far) as system:
            before = await used_memory(rig.valkey)
            await system.submit([COUNT])
            size = (await used_memory(rig.valkey) - before) / COUNT
            yield Round(THIN, 0, {"bytes_per_recipient": round(size, 1)})
        for peer in PEERS:
            yield await queue_of(rig, peer, far, asked.messages)


async def queue_of(rig: Rig, peer: Peer, far: FarSide, count: int) -> Round:
    """Fill a peer's queue."""
    if why := ready(peer).why:
        return Round(peer.name, 0, not_run=why)
    try:
        async with lane(rig, peer, far) as its:
            before = await used_memory(its.valkey)
            told = await its.enqueue(count)
            size = round((await used_memory(its.valkey) - before) / count, 1)
    except StalledError as error:
        return Round(peer.name, 0, not_run=str(error))
    figures: dict[str, float | None] = {"bytes_per_recipient": size}
    figures["enqueue_s_per_1000"] = round(told["s"] * 1000 / count, 4)
    return Round(peer.name, 0, figures)
