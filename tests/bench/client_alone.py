"""The Graph client without a queue: what a message costs at least. Prints CPU seconds per 1,000."""

from __future__ import annotations

import asyncio
import resource
import sys

import uvloop

from tests.bench.rig import TOKEN
from worker.graph import GraphClient
from worker.graph_thin import ThinGraphClient

BODY = (
    b'{"messaging_product":"whatsapp","recipient_type":"individual","to":"+%d","type":"text",'
    b'"text":{"body":"%b","preview_url":false}}'
)
TEXT = b"Your order has shipped. " * 3
LANES = 320  # as many connections as a worker of 64 slots keeps busy
FIRST = 393_350_000_000


async def run(kind: str, base_url: str, count: int) -> None:
    numbers = iter(range(FIRST, FIRST + count))
    async with (ThinGraphClient if kind == "thin" else GraphClient)(base_url) as client:

        async def lane() -> None:
            for number in numbers:
                answer = await client.send("v22.0", "77", TOKEN, BODY % (number, TEXT))
                assert answer.kind == "accepted", answer

        await asyncio.gather(*(lane() for _ in range(LANES)))


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    before = cpu_s()
    uvloop.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    sys.stdout.write(f"{(cpu_s() - before) * 1000 / int(sys.argv[3]):.4f}\n")
