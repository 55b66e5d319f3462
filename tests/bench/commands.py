"""How many commands leave a worker for a message; Valkey's MONITOR names those inside scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import redis.asyncio

from shared.embedded.valkey import Valkey
from tests.bench.figures import THIN, Round
from tests.bench.rig import Asked, Rig


class Seen(msgspec.Struct):
    """Commands since MONITOR began, by whether a client or a script gave them."""

    sent: int = 0
    inside: int = 0


@asynccontextmanager
async def monitored(valkey: Valkey) -> AsyncIterator[Seen]:
    """Count what Valkey is told; it costs the server as much again, so nothing else is measured."""
    seen = Seen()
    async with redis.asyncio.Redis.from_url(valkey.url) as client, client.monitor() as told:

        async def look() -> None:
            while True:
                command = await told.next_command()
                if command["client_type"] == "lua":
                    seen.inside += 1
                else:
                    seen.sent += 1

        looking = asyncio.create_task(look())
        try:
            yield seen
        finally:
            looking.cancel()


async def commands(rig: Rig, asked: Asked) -> AsyncIterator[Round]:
    """Send one job, everything on, and count."""
    async with rig.far_side() as far, rig.system(far) as system:
        await system.add_workers()
        jobs = await system.submit([asked.messages])
        async with monitored(rig.valkey) as seen:
            done = await system.send(jobs, asked.messages)
        yield Round(
            THIN,
            0,
            {
                "sent_per_message": round(seen.sent / asked.messages, 3),
                "inside_per_message": round(seen.inside / asked.messages, 3),
                "lost": done["lost"],
                "duplicates": done["duplicates"],
            },
        )
