"""The work every Python peer does for a message, and the words its runner is started with.

`<peer>_peer.py enqueue COUNT` fills the queue and prints `ENQUEUED {…}`; `work` sends until it is
ended. Runs in the peer's own environment, so it imports nothing of ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import aiohttp
import uvloop

REDIS = os.environ["BENCH_REDIS"]
URL = os.environ["BENCH_ORIGIN"] + "/v22.0/123456789012345/messages"
CONCURRENCY = int(os.environ["BENCH_CONCURRENCY"])  # messages at once
CHUNK = int(os.environ["BENCH_CHUNK"])  # recipients a job
JOBS_AT_ONCE = max(1, CONCURRENCY // CHUNK)
KEPT_S = 3600  # how long a result is kept
_ENQUEUERS = 50
_HEADERS = {"Authorization": "Bearer EAAG" + "x" * 196, "Content-Type": "application/json"}
_sessions: list[aiohttp.ClientSession] = []
Recipient = dict[str, str]


def recipients(count: int) -> list[Recipient]:
    text = "Your order has shipped. " * 3
    return [{"to": f"+1555{i:07}", "text": text} for i in range(count)]


def chunks(count: int) -> list[list[Recipient]]:
    every = recipients(count)
    return [every[i : i + CHUNK] for i in range(0, count, CHUNK)]


def body(to: str, text: str) -> bytes:
    message = {
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        "to": to,
        "type": "text",
        "text": {"preview_url": False, "body": text},
    }
    return json.dumps(message, separators=(",", ":")).encode()


def session() -> aiohttp.ClientSession:
    if not _sessions:
        made = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=max(CONCURRENCY, 100), keepalive_timeout=120),
            headers=_HEADERS,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        _sessions.append(made)
    return _sessions[0]


async def send(to: str, text: str) -> str:
    """Send one message; its id is what the peer records as the job's result."""
    async with session().post(URL, data=body(to, text)) as answer:
        raw = await answer.read()
        if answer.status != 200:
            raise RuntimeError(answer.status)
    message_id: str = json.loads(raw)["messages"][0]["id"]
    return message_id


async def send_chunk(items: Iterable[Recipient]) -> list[str]:
    return await asyncio.gather(*(send(item["to"], item["text"]) for item in items))


async def spread(put: Callable[[Any], Coroutine[Any, Any, Any]], count: int) -> None:
    """Call `put` for each recipient, or each chunk, fifty at a time."""
    left = iter(recipients(count) if CHUNK == 1 else chunks(count))

    async def one() -> None:
        for item in left:
            await put(item)

    await asyncio.gather(*(one() for _ in range(_ENQUEUERS)))


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(enqueue: Callable[[int], Coroutine[Any, Any, None]], work: Callable[[], None]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("enqueue", "work"))
    parser.add_argument("count", type=int, nargs="?", default=0)
    asked = parser.parse_args()
    if asked.what == "work":
        work()
        return
    before, start = cpu_s(), time.perf_counter()
    uvloop.run(enqueue(asked.count))
    told = {"s": time.perf_counter() - start, "cpu_s": cpu_s() - before}
    print("ENQUEUED " + json.dumps(told), flush=True)  # noqa: T201 - read by contest.py
    os._exit(0)
