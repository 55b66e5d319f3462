"""saq, a job a recipient or a job of 50 that gathers."""

from __future__ import annotations

import logging
from typing import Any

import uvloop
import work
from saq import Queue, Worker

RETRIES = 3
_CONNECTIONS = 50


async def send_one(_context: dict[str, Any], *, to: str, text: str) -> str:
    return await work.send(to, text)


async def send_chunk(_context: dict[str, Any], *, items: list[work.Recipient]) -> list[str]:
    return await work.send_chunk(items)


async def enqueue(count: int) -> None:
    queue = Queue.from_url(work.REDIS, max_concurrent_ops=_CONNECTIONS)
    await queue.connect()

    async def put(item: Any) -> None:
        name, words = ("send_one", item) if work.CHUNK == 1 else ("send_chunk", {"items": item})
        await queue.enqueue(name, retries=RETRIES, ttl=work.KEPT_S, **words)

    await work.spread(put, count)


async def serve() -> None:
    queue = Queue.from_url(work.REDIS, max_concurrent_ops=max(20, work.CONCURRENCY))
    await queue.connect()
    await Worker(queue, [send_one, send_chunk], concurrency=work.JOBS_AT_ONCE).start()


def run() -> None:
    logging.basicConfig(level=logging.ERROR)
    uvloop.run(serve())


if __name__ == "__main__":
    work.main(enqueue, run)
