"""Many readers of one job's stream: `subscribers.py PORT PATH KEY COUNT`.

Prints `{}` when each has its first frame. Then a line of JSON, event id → when it was caused, is
read from stdin, and another tells how late the frames of those events came to all readers.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from array import array
from collections import defaultdict
from typing import cast

import uvloop

from tests.bench.figures import share_at

AT_ONCE = 200
EVENT = re.compile(rb"^id: ?(\S+)", re.MULTILINE)
ARRIVED: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))


class Reader(asyncio.Protocol):
    """One connection; a frame counts when its end has come."""

    def __init__(self, request: bytes) -> None:
        self.request, self.rest = request, b""
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are not asyncio's own class.
        cast("asyncio.Transport", transport).write(self.request)

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        if data.startswith(b"HTTP/1.1") and not data.startswith(b"HTTP/1.1 200"):
            self.refuse(ConnectionError(data[:400]))
            return
        whole, _, self.rest = data.rpartition(b"\n\n")
        for event in EVENT.findall(whole):
            ARRIVED[event.decode()].append(time.monotonic())
            if not self.first.done():
                self.first.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.refuse(error or ConnectionError(self.rest[:400]))

    def refuse(self, error: Exception) -> None:
        if not self.first.done():
            self.first.set_exception(error)


def told(caused: dict[str, float]) -> dict[str, float]:
    late = [at - at_s for event, at_s in caused.items() for at in ARRIVED[event]]
    return {
        "frames": len(late),
        "p50_s": round(share_at(late, 0.5), 4),
        "p99_s": round(share_at(late, 0.99), 4),
        "max_s": round(max(late), 4),
    }


async def main(port: int, path: str, key: str, count: int) -> None:
    loop, room = asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE)
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n"
        f"Authorization: Bearer {key}\r\n\r\n"
    ).encode()

    async def one() -> None:
        async with room:
            _, reader = await loop.create_connection(lambda: Reader(request), "127.0.0.1", port)
            await reader.first

    await asyncio.gather(*(one() for _ in range(count)))
    print("{}", flush=True)  # noqa: T201 - read by live.py
    line = await loop.run_in_executor(None, sys.stdin.readline)
    print(json.dumps(told(json.loads(line))), flush=True)  # noqa: T201 - likewise


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
