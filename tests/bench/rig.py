"""What the benchmarks stand on: servers of their own, the far side, and Drumbeat as processes."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import redis.asyncio

from shared import settings as settings_module
from shared.archive import Archive, SenderRow
from shared.clock import Clock
from shared.connect import open_postgres
from shared.embedded.children import Child, free_port
from shared.embedded.postgres import Postgres
from shared.embedded.valkey import Valkey, wait_open
from shared.ids import Ids
from shared.migrate import apply
from shared.queue import Queue
from shared.sealing import Sealing
from tests.bench import machine
from tests.bench.figures import per_thousand
from tests.conftest import ROOT, SECRET, Processes
from tests.e2e.stack import Stack, is_at_work

IDS: Final = Ids()
TOKEN: Final = "EAAG" + "x" * 196  # as long as Graph's
MESSAGE: Final = msgspec.json.encode(
    {"kind": "text", "text": {"body": "Your order has shipped. " * 3, "preview_url": False}}
)
# As deployed, not as the tests hurry it.
DEFAULTS: Final = {
    "WORKER_LEASE_MS": "10000",
    "WORKER_TICK_MS": "200",
    "WORKER_BLOCK_MS": "1000",
    "WORKER_SLOTS": "64",
    "LOG_LEVEL": "warning",
}
SETTLE_S: Final = 1.0  # what is written behind a message is counted as its cost
STALLED_S: Final = 20.0
_SUBMITS: Final = 8  # at once
_FIRST: Final = 393_000_000_000


class StalledError(Exception):
    """What should have gone on did not."""


class Asked(msgspec.Struct, frozen=True):
    """What the command line asks for.

    Attributes:
        rounds: interleaved rounds of each part.
        messages: of one measurement.
        is_quick: fewer and smaller, in five minutes.
        is_long: also what takes many minutes.
    """

    rounds: int
    messages: int
    is_quick: bool
    is_long: bool


async def until(is_so: Callable[[], Any], within_s: float, what: str, every_s: float = 0.02) -> Any:
    """Return a condition's first true value.

    Raises:
        StalledError: time is up.
    """
    clock = Clock()
    end_s = clock.monotonic() + within_s
    while True:
        found = is_so()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        if clock.monotonic() > end_s:
            raise StalledError(f"not within {within_s:g} s: {what}")
        await clock.sleep(every_s)


class Seen(msgspec.Struct):
    """What the far side has counted; times are `Clock.monotonic`'s."""

    total: int
    recipients: int
    first_s: float
    last_s: float

    @property
    def duplicates(self) -> int:
        """Return how many came more than once each."""
        return self.total - self.recipients

    @property
    def rate(self) -> float:
        """Return messages per second between the first and the last."""
        return round(self.total / max(1e-3, self.last_s - self.first_s), 1)


class FarSide:
    """The counting server of all contenders, as a process."""

    def __init__(self, folder: Path, latency_ms: int) -> None:
        """Start it; nobody may ask before `ready`."""
        self.latency_ms = latency_ms
        self.port = free_port()
        words = ["-m", "tests.bench.far_side", str(self.port), str(latency_ms)]
        env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        self.child = Child(f"far-side-{self.port}", [sys.executable, *words], folder, env)
        self.child.start()

    @property
    def origin(self) -> str:
        """Return what GRAPH_BASE_URL must be."""
        return f"http://127.0.0.1:{self.port}"

    async def ready(self) -> None:
        """Wait until it listens."""
        await wait_open(self.child, self.port)

    def seen(self) -> Seen:
        """Return what has come since `forget`."""
        return msgspec.json.decode(self._ask("/counts"), type=Seen)

    def forget(self) -> None:
        """Begin to count anew."""
        self._ask("/reset")

    async def has_seen(self, count: int) -> Seen:
        """Wait for so many messages.

        Raises:
            StalledError: none came for `STALLED_S`.
        """
        clock = Clock()
        last, changed_s = 0, clock.monotonic()
        while (seen := self.seen()).total < count:
            if seen.total != last:
                last, changed_s = seen.total, clock.monotonic()
            if clock.monotonic() > changed_s + STALLED_S:
                raise StalledError(f"{last:,} of {count:,} messages after {STALLED_S:g} s of none")
            await clock.sleep(0.02)
        return seen

    def _ask(self, path: str) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), 5) as wire:
            wire.sendall(b"GET %b HTTP/1.1\r\n\r\n" % path.encode())
            data = b""
            while not data.endswith(b"}"):
                data += wire.recv(4096)
        return data.partition(b"\r\n\r\n")[2]


class Reading(msgspec.Struct):
    """The meters at one moment; CPU seconds, 0 for a server that a contender does without."""

    worker_s: float
    valkey_s: float
    postgres_s: float
    busy_s: float
    commands: int

    def cost(self, after: Reading, count: int) -> dict[str, float | None]:
        """Return what `count` messages took since this reading; of the machine, all others' too."""
        own = sum(
            getattr(after, name) - getattr(self, name)
            for name in ("worker_s", "valkey_s", "postgres_s")
        )
        figures: dict[str, float | None] = {
            "worker_cpu_s_per_1000": per_thousand(self.worker_s, after.worker_s, count),
            "valkey_cpu_s_per_1000": per_thousand(self.valkey_s, after.valkey_s, count),
            "commands_per_message": round((after.commands - self.commands) / count, 2),
            "rest_of_machine_cpu_s": round(after.busy_s - self.busy_s - own, 2),
        }
        if after.postgres_s:
            spent = per_thousand(self.postgres_s, after.postgres_s, count)
            figures["postgres_cpu_s_per_1000"] = spent
        return figures


async def read_meters(workers: list[int], valkey: Valkey, postgres: int = 0) -> Reading:
    """Read what the workers and their servers have used."""
    assert valkey.child is not None
    async with redis.asyncio.Redis.from_url(valkey.url) as client:
        commands = await machine.told_by(client, "stats", "total_commands_processed")
    return Reading(
        worker_s=sum(map(machine.cpu_s, workers)),
        valkey_s=machine.cpu_s(valkey.child.pid),
        postgres_s=machine.cpu_s(postgres) if postgres else 0.0,
        busy_s=machine.busy_s(),
        commands=commands,
    )


async def used_memory(valkey: Valkey) -> int:
    """Return the bytes Valkey's data takes."""
    async with redis.asyncio.Redis.from_url(valkey.url) as client:
        return await machine.told_by(client, "memory", "used_memory")


class System:
    """Drumbeat, empty at first: stores, senders, and the workers one adds.

    Attributes:
        stack: starts processes, reads the stores.
        far: where its workers send.
    """

    def __init__(self, rig: Rig, stack: Stack, far: FarSide) -> None:
        """Take what `Rig.system` has made."""
        self.stack = stack
        self.far = far
        self._rig = rig
        self._next = _FIRST

    async def add_workers(self, count: int = 1, **extra: str) -> None:
        """Start workers with their defaults, their metrics too, and wait until all have ticked."""
        for _ in range(count):
            self.stack.add_worker(**{**DEFAULTS, "METRICS_PORT": str(free_port()), **extra})
        for child in self.stack.workers:
            await until(partial(is_at_work, self.stack, child), 60, "a worker ticks")

    def phones(self, count: int) -> list[int]:
        """Return numbers that nobody had before."""
        first = self._next
        self._next += count
        return list(range(first, first + count))

    async def submit(self, sizes: list[int], senders: int = 1) -> list[str]:
        """Submit a job of each size, the senders in turn, sending held meanwhile.

        What is measured from `release` on is sending alone, as with contenders whose queue is
        filled before their worker starts.
        """
        await self.stack.queue.switch(0, "bench", 600_000)
        room = asyncio.Semaphore(_SUBMITS)

        async def one(number: int, size: int) -> str:
            async with room:
                sender = f"snd_b{number % senders}"
                return await self.stack.submit(self.phones(size), sender=sender, message=MESSAGE)

        return await asyncio.gather(*(one(n, size) for n, size in enumerate(sizes)))

    async def release(self) -> None:
        """Let what was submitted be sent."""
        await self.stack.queue.switch(0, "bench", 0)

    async def are_over(self, jobs: list[str]) -> bool:
        """Tell whether jobs have ended, in the archive too."""
        for job in jobs:
            row = await self.stack.archive.job(job, None)
            if row is None or row.state != "completed":
                return False
        return True

    async def send(self, jobs: list[str], count: int) -> dict[str, float | None]:
        """Release `jobs` of `count` recipients; return what sending, recording and logging took."""
        before = await self.meters()
        await self.release()
        await self.far.has_seen(count)
        await until(lambda: self.are_over(jobs), 60, "the archive has the jobs' ends", 0.2)
        await Clock().sleep(SETTLE_S)
        after = await self.meters()
        seen = self.far.seen()
        return {
            **before.cost(after, count),
            "rate": seen.rate,
            "lost": float(count - seen.recipients),
            "duplicates": float(seen.duplicates),
            "rss_mb": max(machine.rss_mb(child.pid) for child in self.stack.workers),
        }

    async def meters(self) -> Reading:
        """Read what its workers and servers have used."""
        pids = [child.pid for child in self.stack.workers]
        return await read_meters(pids, self._rig.valkey, self._rig.postgres_pid)


class Rig:
    """The servers of Drumbeat, kept for the whole run, and fresh ones for each peer's turn.

    Args:
        folder: of everything it writes.
    """

    def __init__(self, folder: Path) -> None:
        """Start nothing yet."""
        self.folder = folder
        self.valkey = Valkey(folder / "valkey")
        self.postgres = Postgres(folder / "postgres")
        self._turn = 0

    @property
    def postgres_pid(self) -> int:
        """Return PostgreSQL's first process."""
        assert self.postgres.child is not None
        return self.postgres.child.pid

    async def open(self) -> None:
        """Start the servers."""
        # PostgreSQL may have to run as nobody.
        self.folder.chmod(0o711)
        await self.valkey.start()
        await self.postgres.start()

    async def close(self) -> None:
        """End the servers."""
        await self.valkey.stop()
        await self.postgres.stop()

    @asynccontextmanager
    async def far_side(self, latency_ms: int = 0) -> AsyncIterator[FarSide]:
        """Run a far side that takes `latency_ms`."""
        far = FarSide(self.folder, latency_ms)
        try:
            await far.ready()
            yield far
        finally:
            await far.child.kill()

    @asynccontextmanager
    async def fresh_valkey(self) -> AsyncIterator[Valkey]:
        """Run a Valkey of its own, set as Drumbeat's."""
        self._turn += 1
        valkey = Valkey(self.folder / f"valkey-{self._turn}")
        try:
            await valkey.start()
            yield valkey
        finally:
            await valkey.kill()

    @asynccontextmanager
    async def system(
        self, far: FarSide, *, senders: int = 1, rate: float = 0.0
    ) -> AsyncIterator[System]:
        """Begin with empty stores and `senders` senders; end every process afterwards."""
        self._turn += 1
        folder = self.folder / f"system-{self._turn}"
        folder.mkdir()
        environ = {
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": self.postgres.url,
            "DATABASE_SCHEMA": f"b{IDS.object_id('sup')[4:]}",
            "BULK_SECRET_KEY": SECRET,
            "API_REQUESTS_PER_MINUTE": "0",
        }
        async with redis.asyncio.Redis.from_url(self.valkey.url) as client:
            await client.flushall()
        settings = settings_module.load(environ, None)
        await apply(settings)
        queue = await Queue.open(settings)
        pool = await open_postgres(settings)
        archive, owner = Archive(pool), str(IDS.user_id())
        await archive.add_user(owner, "a@example.com", "hash", "user")
        sealed = Sealing(settings.bulk_secret_key).seal(TOKEN)
        for number in range(senders):
            row = SenderRow(f"snd_b{number}", f"b{number}", f"{1000 + number}", sealed, rate=rate)
            await archive.add_sender(row)
        await queue.give_born(0, "b")
        stack = Stack(queue, archive, folder / "no-ledger", owner)
        stack.workers, stack.processes = [], Processes(folder, environ)
        stack.origin = far.origin
        far.forget()
        try:
            yield System(self, stack, far)
        finally:
            for child in stack.processes.all:
                child.send(signal.SIGCONT)
                await child.kill()
            await queue.close()
            await pool.execute(f'DROP SCHEMA "{settings.database_schema}" CASCADE')
            await pool.close()


async def printed(child: Child, start: str, within_s: float) -> dict[str, Any]:
    """Return the JSON a child prints on the line that begins with `start`."""

    def line() -> str | None:
        lines = child.log.read_text(errors="replace").splitlines()
        found = next((x for x in lines if x.startswith(start)), None)
        if found is None and not child.is_running:
            raise StalledError(f"{child.name} ended: {child.tail()[-400:]}")
        return found

    text = await until(line, within_s, f"{child.name} prints {start}")
    found: dict[str, Any] = json.loads(text[len(start) :])
    return found
