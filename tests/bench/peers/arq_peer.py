"""arq, polling often: its own half second would bound it to twice its jobs at once."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import uvloop
import work
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

SETTINGS = RedisSettings.from_dsn(work.REDIS)
POLL_S = 0.01


async def send_one(_context: dict[str, Any], to: str, text: str) -> str:
    return await work.send(to, text)


async def enqueue(count: int) -> None:
    pool = await create_pool(SETTINGS)
    await work.spread(lambda x: pool.enqueue_job("send_one", x["to"], x["text"]), count)


def run() -> None:
    logging.basicConfig(level=logging.ERROR)
    asyncio.set_event_loop(uvloop.new_event_loop())
    Worker(
        [func(send_one, keep_result=work.KEPT_S)],
        redis_settings=SETTINGS,
        max_jobs=work.JOBS_AT_ONCE,
        poll_delay=POLL_S,
        log_results=False,
    ).run()


if __name__ == "__main__":
    work.main(enqueue, run)
