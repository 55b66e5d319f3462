"""The far side of every contender: takes a POST, answers as Graph does, counts per recipient.

`python -m tests.bench.far_side PORT LATENCY_MS`; GET /counts tells, GET /reset forgets. It is no
sandbox: it refuses nothing, keeps no ledger and costs as little as Python can, so that two cores
are left to those who are measured.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections import Counter
from typing import cast

import uvloop

from shared.lifeline import watch_stdin

REPLY = (
    b'{"messaging_product":"whatsapp","contacts":[{"input":"+15550000001","wa_id":"15550000001"}],'
    b'"messages":[{"id":"wamid.HBgLMTU1NTAwMDAwMDEVAgARGBI%020d","message_status":"accepted"}]}'
)
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: keep-alive\r\n"
    b"Content-Length: %d\r\n\r\n"
)
ANSWER = HEAD % len(REPLY % 0) + REPLY


class Counts:
    """Who got how many, and when the first and the last came, on the clock of all processes."""

    def __init__(self) -> None:
        self.by_recipient: Counter[bytes] = Counter()
        self.total = 0
        self.first_s = self.last_s = 0.0

    def add(self, to: bytes) -> int:
        """Count a message; return its number."""
        self.last_s = time.monotonic()
        self.first_s = self.first_s or self.last_s
        self.by_recipient[to] += 1
        self.total += 1
        return self.total

    def told(self) -> bytes:
        return json.dumps(
            {
                "total": self.total,
                "recipients": len(self.by_recipient),
                "first_s": self.first_s,
                "last_s": self.last_s,
            }
        ).encode()


class Connection(asyncio.Protocol):
    """One kept-alive connection of HTTP/1.1."""

    counts = Counts()
    numbers = 0
    latency_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are not asyncio's own class.
        self.transport = cast("asyncio.Transport", transport)
        self.loop, self.rest = asyncio.get_running_loop(), b""

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        while (end := data.find(b"\r\n\r\n") + 4) > 3:
            if data.startswith(b"GET"):
                self.tell(data.split(b" ", 2)[1])
                data = data[end:]
                continue
            head = data[:end].lower()
            length = int(head.split(b"content-length:", 1)[1].split(b"\r", 1)[0])
            if len(data) < end + length:
                break
            self.take(data[end : end + length])
            data = data[end + length :]
        self.rest = data

    def take(self, body: bytes) -> None:
        first = body.index(b'"to":"') + 6
        Connection.counts.add(body[first : body.index(b'"', first)])
        # Rising for as long as the process lives: no two messages have one id.
        Connection.numbers += 1
        answer = ANSWER % Connection.numbers
        if self.latency_s:
            self.loop.call_later(self.latency_s, self.say, answer)
        else:
            self.transport.write(answer)

    def say(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)

    def tell(self, path: bytes) -> None:
        if path == b"/reset":
            Connection.counts = Counts()
        body = Connection.counts.told()
        self.transport.write(HEAD % len(body) + body)


async def main() -> None:
    stop = asyncio.Event()
    watch_stdin(stop.set)
    loop = asyncio.get_running_loop()
    await loop.create_server(Connection, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    gc.freeze()
    await stop.wait()


if __name__ == "__main__":
    Connection.latency_s = float(sys.argv[2]) / 1000
    uvloop.run(main())
