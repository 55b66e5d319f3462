"""The far side's truth: one line for each request, on disk before its answer leaves."""

from __future__ import annotations

import asyncio
import os
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from worker.sandbox.behaviour import Opaque

_encoder: Final = msgspec.json.Encoder()


class Entry(msgspec.Struct):
    """One request as the far side saw it.

    Attributes:
        seq: from 1, without gaps, over all starts of the sandbox.
        t_mono: seconds on the machine's monotonic clock, when the request had been read.
        t_ms: milliseconds since the epoch, likewise.
        sender: phone number id in the path.
        version: API version in the path.
        attempt: how many requests for this recipient there have been, from 1.
        to: as written in the request.
        delivered: the number it went to, digits only.
        opaque: `biz_opaque_callback_data` as written.
        parsed: the same, taken apart; None when it has another form.
        sha256: of the body.
        verdict: accepted, refused, throttled or dropped (no answer of Graph's, not taken).
        code: of the error.
        wamid: when accepted.
        answered: the answer was meant to leave whole.
    """

    seq: int
    t_mono: float
    t_ms: int
    sender: str
    version: str
    attempt: int
    to: str
    delivered: str
    opaque: str | None
    parsed: Opaque | None
    sha256: str
    verdict: str
    code: int | None
    wamid: str | None
    answered: bool


class Count(msgspec.Struct):
    """What one recipient has got."""

    requests: int = 0
    accepted: int = 0
    delivered: str = ""
    wamids: list[str] = []


class Ledger:
    """The file and the counts that are read back from it.

    Args:
        path: the file; made when it does not exist.
        fsync: False leaves durability to the kernel, for benchmarks.
    """

    def __init__(self, path: Path, *, fsync: bool = True) -> None:
        """Read the file back and cut a torn last line off."""
        self._path = path
        self._fsync = fsync
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._lines: list[bytes] = []
        self._waiting: list[Callable[[], None]] = []
        self._writing: asyncio.Future[None] | None = None
        self._open()

    def _open(self) -> None:
        self.seq = 0
        self.counts: dict[str, Count] = {}
        self.codes: dict[str, int] = {}
        self.times: dict[str, array[float]] = {}
        self._offsets = array("Q")
        self._size = self._durable = 0
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        decoder = msgspec.json.Decoder(Entry)
        with self._path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._count(decoder.decode(line), len(line))
        os.ftruncate(self._file, self._size)
        self._durable = self._size

    def _count(self, entry: Entry, size: int) -> None:
        self.seq = entry.seq
        self._offsets.append(self._size)
        self._size += size
        count = self.counts.get(entry.to)
        if count is None:
            count = self.counts[entry.to] = Count(delivered=entry.delivered)
        count.requests += 1
        if entry.wamid is not None:
            count.accepted += 1
            count.wamids.append(entry.wamid)
        word = entry.verdict if entry.code is None else str(entry.code)
        self.codes[word] = self.codes.get(word, 0) + 1
        times = self.times.get(entry.sender)
        if times is None:
            times = self.times[entry.sender] = array("d")
        times.append(entry.t_mono)

    def append(self, entry: Entry, then: Callable[[], None]) -> None:
        """Add a line; `then` is called once it is durable."""
        line = _encoder.encode(entry) + b"\n"
        self._count(entry, len(line))
        self._lines.append(line)
        self._waiting.append(then)
        if self._writing is None:
            loop = asyncio.get_running_loop()
            self._writing = loop.create_future()
            # One turn later, so that what arrived together shares one fsync.
            loop.call_soon(self._commit)

    def _commit(self) -> None:
        lines, self._lines = b"".join(self._lines), []
        waiting, self._waiting = self._waiting, []
        if not self._fsync:
            os.write(self._file, lines)
            self._settle(len(lines), waiting)
            return
        done = asyncio.get_running_loop().run_in_executor(self._pool, self._write, lines)

        def settle(written: asyncio.Future[None]) -> None:
            written.result()
            self._settle(len(lines), waiting)

        done.add_done_callback(settle)

    def _write(self, lines: bytes) -> None:
        os.write(self._file, lines)
        os.fdatasync(self._file)

    def _settle(self, size: int, waiting: list[Callable[[], None]]) -> None:
        self._durable += size
        for then in waiting:
            then()
        if self._lines:
            self._commit()
        elif self._writing is not None:
            self._writing.set_result(None)
            self._writing = None

    async def settled(self) -> None:
        """Wait until nothing is on its way to the disk."""
        if self._writing is not None:
            await self._writing

    def after(self, seq: int) -> bytes:
        """Return the durable lines behind `seq`."""
        skipped = seq - (self.seq - len(self._offsets))
        if skipped >= len(self._offsets):
            return b""
        start = self._offsets[max(0, skipped)]
        return os.pread(self._file, max(0, self._durable - start), start)

    def of_job(self, job: str) -> list[Entry]:
        """Return the durable lines of messages that were accepted for a job; for a thread."""
        word, decode = job.encode(), msgspec.json.Decoder(Entry).decode
        found = [decode(line) for line in self.after(0).splitlines() if word in line]
        return [e for e in found if e.wamid is not None and e.parsed and e.parsed.job == job]

    async def renew(self) -> None:
        """Start a new, empty file."""
        await self.settled()
        os.close(self._file)
        self._path.unlink()
        self._open()

    async def close(self) -> None:
        """Wait for the disk, then close the file."""
        await self.settled()
        self._pool.shutdown()
        os.close(self._file)
