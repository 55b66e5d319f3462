"""streaq; only its recovery is measured."""

from __future__ import annotations

import logging

import work
from streaq import Worker

_PIECE = 1000

worker = Worker(
    redis_url=work.REDIS, concurrency=work.JOBS_AT_ONCE, anyio_kwargs={"use_uvloop": True}
)


@worker.task(ttl=work.KEPT_S, silent=True)
async def send_one(to: str, text: str) -> str:
    return await work.send(to, text)


async def enqueue(count: int) -> None:
    async with worker:
        tasks = [send_one.enqueue(x["to"], x["text"]) for x in work.recipients(count)]
        for first in range(0, count, _PIECE):
            await worker.enqueue_many(tasks[first : first + _PIECE])


def run() -> None:
    logging.basicConfig(level=logging.ERROR)
    worker.run_sync()


if __name__ == "__main__":
    work.main(enqueue, run)
