"""taskiq on Redis Streams with its Redis result backend; one worker process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import work
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

_CONNECTIONS = 400

broker = RedisStreamBroker(
    work.REDIS, consumer_id="0", max_connection_pool_size=_CONNECTIONS
).with_result_backend(
    RedisAsyncResultBackend(
        work.REDIS, result_ex_time=work.KEPT_S, max_connection_pool_size=_CONNECTIONS
    )
)


@broker.task(task_name="send_one")
async def send_one(to: str, text: str) -> str:
    return await work.send(to, text)


async def enqueue(count: int) -> None:
    await broker.startup()
    await work.spread(lambda x: send_one.kiq(x["to"], x["text"]), count)


def run() -> None:
    here, at_once = Path(__file__).parent, str(work.JOBS_AT_ONCE)
    os.chdir(here)
    program = str(Path(sys.executable).parent / "taskiq")
    words = ["worker", "taskiq_peer:broker", "--workers", "1", "--log-level", "ERROR"]
    words += ["--max-async-tasks", at_once, "--max-prefetch", at_once, "--no-parse"]
    os.execv(program, [program, *words])  # noqa: S606 - a program of this environment


if __name__ == "__main__":
    work.main(enqueue, run)
