"""A whole system that is there to be broken: servers of its own, processes, and the books on it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import redis.asyncio
import redis.exceptions

from api.client import Client
from shared import settings as settings_module
from shared.archive import Archive, NewJob, SenderRow, pack_blob
from shared.clock import Clock
from shared.connect import open_postgres
from shared.embedded.children import Child, is_open
from shared.embedded.postgres import Postgres
from shared.embedded.valkey import Valkey
from shared.errors import DrumbeatError
from shared.ids import Ids
from shared.migrate import apply
from shared.models import Chunk, JobSpec, State, state_of
from shared.queue import Queue
from shared.sealing import Sealing
from tests import oracle
from tests.conftest import SECRET, Processes
from tests.e2e.stack import CONCURRENCY, Stack
from tests.faults.real.proxy import Kind, Proxy
from tests.fleet import Guarded, Sharded, Topology

LEASE_S: Final = 2.0
_STANDS_S: Final = 0.3  # what has not changed for so long is final
SLOTS: Final = 16  # of a worker
SIZE: Final = 50  # recipients of a chunk
# What a dead log writer had read is taken over after 30 s, by the look that comes 5 s later.
DRAIN_S: Final = 60.0
BASE: Final = 393_000_000_000
IDS: Final = Ids()
Through = Literal["", "processes", "all"]
Shape = Literal["", "sentinel", "cluster"]
MESSAGE: Final = b'{"kind":"text","text":{"body":"hello","preview_url":false}}'
SENDERS: Final = (("main", 0.0), ("fast", 400.0), ("steady", 200.0), ("slow", 80.0))


class NotHere(Exception):  # noqa: N818 - nothing is wrong
    """What a run needs is not on this machine."""


class Violated(Exception):  # noqa: N818 - a finding, not an error of the tests
    """A pass condition that does not hold."""


def require(holds: object, sentence: str) -> None:
    """Note that a condition must hold; the run ends when it does not."""
    if not holds:
        raise Violated(sentence)


class Run(msgspec.Struct):
    """One run as the table counts it.

    Attributes:
        faults: how many there were.
        violations: sentences; none is a pass.
        figures: name → value; see `table.py` for how they are put together.
        skipped: why it did not run here, '' when it did.
    """

    goal: str
    index: int
    seed: int
    faults: int = 0
    violations: list[str] = []
    figures: dict[str, float] = {}
    skipped: str = ""
    took_s: float = 0.0


class _Line(msgspec.Struct):
    """One line of the sandbox's ledger; the oracle's `Line` has only what it judges by."""

    seq: int
    t_mono: float
    to: str
    attempt: int
    verdict: str
    code: int | None
    wamid: str | None
    opaque: str

    @property
    def job(self) -> str:
        """Return the job it belongs to."""
        return self.opaque.split(".")[1]

    @property
    def position(self) -> int:
        """Return the recipient's place in its job."""
        return int(self.opaque.split(".")[2])


_decode = msgspec.json.Decoder(_Line).decode


class Rig:
    """One lane's servers and, after `fresh`, an empty system on them.

    Args:
        folder: of everything it writes.
    """

    def __init__(self, folder: Path) -> None:
        """Start nothing yet."""
        self.folder = folder
        self.clock = Clock()
        self.valkey = Valkey(folder / "valkey")
        self.postgres = Postgres(folder / "postgres")
        self._turn = 0
        self._phones = BASE
        self._is_fresh = False
        self.fleet: Topology | None = None

    async def open(self) -> None:
        """Start the servers."""
        # PostgreSQL may have to run as nobody.
        self.folder.chmod(0o711)
        await self.valkey.start()
        await self.postgres.start()

    async def close(self) -> None:
        """End all that was started."""
        await self.put_away()
        await self.valkey.stop()
        await self.postgres.stop()

    # -- an empty system -------------------------------------------------------------------

    async def fresh(
        self,
        *,
        latency_ms: int = 50,
        through: Through = "",
        shape: Shape = "",
        **extra: str,
    ) -> None:
        """Throw away what there was; begin with empty stores, a pretended Graph and no worker.

        Args:
            latency_ms: how long the pretended Graph takes.
            through: whose connections go through proxies: nobody's, the `processes`', or `all`,
                ours to Redis too.
            shape: of Redis: one server, or several of the run's own.
            extra: variables of every process of ours.
        """
        await self.put_away()
        self._turn += 1
        self._extra = extra
        self._redis_url = self._server_url = self.valkey.url
        self.proxies: dict[str, Proxy] = {}
        self.apis: list[tuple[Child, str]] = []
        self.frozen: set[int] = set()
        self._leases_told = 0
        folder = self.folder / f"system-{self._turn}"
        folder.mkdir()
        if shape:
            await self._start_fleet(shape, folder)
        environ = {
            "REDIS_URL": self._server_url,
            "DATABASE_URL": self.postgres.url,
            "DATABASE_SCHEMA": f"t{IDS.object_id('sup')[4:]}",
            "BULK_SECRET_KEY": SECRET,
            "WORKER_BLOCK_MS": "200",
            "WORKER_LEASE_MS": str(int(LEASE_S * 1000)),
            "METRICS_PORT": "0",
            "API_REQUESTS_PER_MINUTE": "0",
        }
        await self.until(self._flush, 20, "Valkey is empty")
        if through:
            await self._put_between()
        ours_url = self._server_url
        if through == "all":
            self._redis_url = ours_url = self._past(self._server_url, "redis")
        # What we read at the end is larger than anything of the product's.
        ours = {"REDIS_URL": ours_url, "DATABASE_TIMEOUT_S": "60"}
        settings = settings_module.load({**environ, **ours}, None)
        await apply(settings)
        self.queue = await Queue.open(settings)
        self.pool = await open_postgres(settings)
        archive = Archive(self.pool)
        self.processes = Processes(folder, {**environ, **extra})
        words = ["--rate", "0", "--latency", str(latency_ms), "--latency-p99", str(2 * latency_ms)]
        words += ["--no-fsync", "--no-pair-limit", "--no-suffix-faults"]
        _, origin, ledger = self.processes.sandbox(*words)
        await self.until(lambda: is_open(int(origin.rsplit(":", 1)[1])), 20, "no sandbox")
        owner = str(IDS.user_id())
        await archive.add_user(owner, "a@example.com", "hash", "user")
        sealed = Sealing(settings.bulk_secret_key).seal("token")
        for number, (name, rate) in enumerate(SENDERS):
            row = SenderRow(f"snd_{name}", name, f"100{number}", sealed, rate=rate)
            await archive.add_sender(row)
        await self.queue.give_born(0, "b")
        self.stack = Stack(self.queue, archive, ledger, owner)
        self.stack.workers, self.stack.processes = [], self.processes
        self.stack.origin = origin
        if through:
            await self._add_proxy("provider", int(origin.rsplit(":", 1)[1]), "http")
            self.stack.origin = f"http://127.0.0.1:{self.proxies['provider'].port}"
        await self.stack.add_key()
        self.accepted: list[oracle.Accepted] = []
        self.unknown_max = self.again_max = 0
        self._is_fresh = True

    async def put_away(self) -> None:
        """End the processes of the system there is."""
        if not self._is_fresh:
            return
        self._is_fresh = False
        for child in self.processes.all:
            child.send(signal.SIGCONT)
        for child in self.processes.all:
            await child.kill()
        await self.queue.close()
        self.pool.terminate()
        for proxy in self.proxies.values():
            await proxy.close()
        if self.fleet is not None:
            await self.fleet.stop()
            self.fleet = None

    async def _start_fleet(self, shape: Shape, folder: Path) -> None:
        self.fleet = Guarded(folder) if shape == "sentinel" else Sharded(folder, "{s0}:gate")
        try:
            await self.fleet.open(partial(self.until, sentence=f"the {shape} is whole"))
        except BaseException:
            await self.fleet.stop()
            raise
        self._server_url = self.fleet.url
        await self.look()

    async def look(self) -> int:
        """Find who of several servers may be written to now: it is the one that we read too."""
        assert self.fleet is not None
        port = await self.fleet.look()
        self._redis_url = f"redis://127.0.0.1:{port}/0"
        return port

    async def _flush(self) -> bool:
        async with self.redis() as client:
            try:
                return bool(await client.flushall())
            except redis.exceptions.RedisError:  # it has just begun to load
                return False

    async def _put_between(self) -> None:
        """Stand between our processes and the stores; the API has proxies of its own."""
        for prefix in ("", "API "):
            await self._add_proxy(f"{prefix}redis", self.valkey.port, "resp")
            await self._add_proxy(f"{prefix}postgres", self.postgres.port, "postgres")

    async def _add_proxy(self, name: str, port: int, kind: Kind) -> None:
        self.proxies[name] = Proxy(port, kind)
        await self.proxies[name].open()

    def _past(self, url: str, name: str) -> str:
        """Return a store's address through a proxy; the store's own when there is none."""
        proxy = self.proxies.get(name)
        return url if proxy is None else re.sub(r":\d+/", f":{proxy.port}/", url)

    def redis(self) -> Any:
        """Return a client beside the door, to be used with `async with`."""
        return redis.asyncio.Redis.from_url(self._redis_url)

    # -- what a run does -------------------------------------------------------------------

    async def until(
        self, is_so: Callable[[], Any], within_s: float, sentence: str, every_s: float = 0.02
    ) -> None:
        """Wait until a condition holds; a store that is away counts as no."""
        end_s = self.clock.monotonic() + within_s
        while True:
            with contextlib.suppress(DrumbeatError, OSError):
                found = is_so()
                if isinstance(found, Awaitable):
                    found = await found
                if found:
                    return
            require(self.clock.monotonic() < end_s, f"not within {within_s:g} s: {sentence}")
            await self.clock.sleep(every_s)

    def add_worker(self, **more: str) -> Child:
        """Start a worker, with `more` variables of its own; do not wait for it."""
        stores = {
            "REDIS_URL": self._past(self._server_url, "redis"),
            "DATABASE_URL": self._past(self.postgres.url, "postgres"),
        }
        return self.stack.add_worker(**stores, **self._extra, **more)

    def start_api(self, **more: str) -> None:
        """Start an API process, with `more` variables of its own; do not wait for it."""
        values = {
            "REDIS_URL": self._past(self._server_url, "API redis"),
            "DATABASE_URL": self._past(self.postgres.url, "API postgres"),
            "GRAPH_BASE_URL": self.stack.origin,
            "BULK_SUBMITS_PER_HOUR_IP": "0",
            **more,
        }
        self.apis.append(self.processes.api(**values))

    async def apis_ready(self, count: int) -> None:
        """Have so many API processes that take requests."""
        while len(self.apis) < count:
            self.start_api()
        for _, origin in self.apis:
            await self.until(partial(is_ready, origin), 30, f"{origin} is ready", 0.05)

    async def workers(self, count: int) -> None:
        """Have so many workers, all ticking."""
        while len(self.stack.workers) < count:
            self.add_worker()
        await self.until(lambda: self.at_work(count), 60, f"{count} workers tick")

    async def at_work(self, count: int) -> bool:
        """Tell whether `count` of the workers there are have ticked."""
        ticking = (await self.queue.stats(0, [])).workers
        alive = [child for child in self.stack.workers if name_of(child, ticking)]
        return len(alive) >= count

    def phones(self, count: int) -> list[int]:
        """Return numbers that nobody had before."""
        first = self._phones
        self._phones += count
        return list(range(first, first + count))

    async def submit(
        self,
        count: int,
        sender: str = "main",
        step: int = 0,
        *,
        scheduled_ms: int = 0,
        expires_ms: int = 0,
    ) -> str:
        """Submit as the API does.

        Args:
            count: recipients.
            sender: name of one of `SENDERS`.
            step: how far it may be released at first, and further each time; 0 = all of it.
            scheduled_ms, expires_ms: epoch; 0 = at once, never.
        """
        job, phones = IDS.job_id(0), self.phones(count)
        encoded = [
            msgspec.msgpack.encode(Chunk(phones[i : i + SIZE])) for i in range(0, count, SIZE)
        ]
        step, now_ms = step or count, self.clock.now_ms()
        owner, reserved = self.stack.owner, min(step, count)
        await self.stack.archive.add_job(
            NewJob(
                id=job, owner=owner, campaign_id=None, name=None, kind="text",
                template_name=None, template_language=None, sender_id=f"snd_{sender}",
                sender_name=sender, message=MESSAGE, vars=[], chunk_size=SIZE, recipients=count,
                blob=pack_blob(encoded), intake=b"{}", rate=0.0, weight=4, priority="normal",
                scheduled_ms=scheduled_ms, expires_ms=expires_ms, on_unknown="hold",
                reserved=reserved, step=step, born="b", created_ms=now_ms,
            )
        )  # fmt: skip
        await self.queue.stage(job, 0, encoded)
        spec = JobSpec(
            job, f"snd_{sender}", owner, count, SIZE, reserved, step, MESSAGE, [],
            scheduled_ms=scheduled_ms, expires_ms=expires_ms, created_ms=now_ms,
        )  # fmt: skip
        require((await self.queue.submit(spec)).kind == "made", f"{job} was not made")
        self.accepted.append(oracle.Accepted(job, phones))
        return job

    async def sent(self, job: str) -> int:
        """Return how many of a job are sent as Redis has it."""
        return (await self.stack.status(job)).tally.sent

    async def has_sent(self, job: str, count: int, within_s: float = 30) -> None:
        """Wait until so many are sent or the job is over."""

        async def is_so() -> bool:
            status = await self.stack.status(job)
            return status.is_ended or status.tally.sent >= count

        await self.until(is_so, within_s, f"{count} of {job} are sent", 0.005)

    async def is_over(self, job: str) -> bool:
        """Tell whether a job has ended; False too while Redis does not know it."""
        status = (await self.queue.statuses([job]))[0]
        return status is not None and status.is_ended

    async def has_ended(self, job: str, within_s: float) -> None:
        """Wait until a job is over."""
        await self.until(lambda: self.is_over(job), within_s, f"{job} has ended", 0.05)

    async def held_by(self, child: Child) -> tuple[int, int]:
        """Return how many claims and how many intents a worker that stopped has left.

        What it had written last may still be on its way into Redis, which takes 16 KB of a
        connection a turn and, on a busy machine, few turns: read until it stands for a while.
        """
        held, since_s = await self._held_by(child), self.clock.monotonic()
        while self.clock.monotonic() - since_s < _STANDS_S:
            await self.clock.sleep(0.03)
            now = await self._held_by(child)
            if now != held:
                held, since_s = now, self.clock.monotonic()
        return held

    async def _held_by(self, child: Child) -> tuple[int, int]:
        held = await self.claims_of(child)
        intents = 0
        async with self.redis() as raw:
            for job, first, indices in held:
                states = await raw.get(f"{{s0}}:job:{job}:states") or b""
                intents += sum(
                    state_of(states[first + i]) == State.INTENT
                    for i in indices
                    if first + i < len(states)
                )
        claims = len(held)
        require(intents <= 5 * CONCURRENCY * claims, f"{intents} intents in {claims} claims")
        return claims, intents

    async def claims_of(self, child: Child) -> list[tuple[str, int, list[int]]]:
        """Return what a worker has in hand: job, position of the chunk, indices in it."""
        out = []
        async with self.redis() as raw:
            for entry in await raw.xpending_range("{s0}:ready", "workers", "-", "+", 1000):
                if not name_of(child, [entry["consumer"].decode()]):
                    continue
                found = await raw.xrange("{s0}:ready", entry["message_id"], entry["message_id"])
                if found:
                    fields = found[0][1]
                    packed = fields[b"o"]
                    indices = struct.unpack(f">{len(packed) // 2}H", packed) or range(SIZE)
                    out.append((fields[b"j"].decode(), int(fields[b"c"]) * SIZE, [*indices]))
        return out

    async def kill_worker(self, at: int) -> tuple[int, int]:
        """Kill -9 the worker at a place of the list; return the claims and intents it leaves."""
        child = self.stack.workers.pop(at)
        await child.kill()
        claims, intents = await self.held_by(child)
        self.unknown_max += intents
        return claims, intents

    # -- what came of it -------------------------------------------------------------------

    def lines(self) -> list[_Line]:
        """Return what the provider has seen, in its order; a line half written is left out."""
        whole = self.stack.ledger.read_bytes().rpartition(b"\n")[0]
        return [_decode(line) for line in whole.splitlines()]

    def asked(self, job: str) -> int:
        """Return how many requests of a job the provider has seen."""
        return self.stack.ledger.read_bytes().count(b"d1." + job.encode())

    async def stands_still(self, for_s: float) -> bool:
        """Tell whether the provider has seen nothing for so long."""
        times = self.times()
        return not times or self.clock.monotonic() - times[-1] > for_s

    def times(self) -> list[float]:
        """Return when requests came to the provider, on the clock of every process here."""
        return [line.t_mono for line in self.lines()]

    async def goes_on(self, since_s: float, within_s: float, what: str) -> float:
        """Wait for the provider's next request after `since_s`; return how long it took."""

        def first() -> float:
            return next((t for t in self.times() if t > since_s), 0.0)

        await self.until(first, within_s, f"sending again after {what}", 0.05)
        return first() - since_s

    async def starts(self, job: str, positions: set[int], since_s: float, within_s: float) -> float:
        """Wait until one of these has been asked for after it; return when, at least `since_s`."""

        def first() -> float:
            found = [x.t_mono for x in self.lines() if x.job == job and x.position in positions]
            return max(since_s, found[0]) if found else 0.0

        await self.until(first, within_s, "the rest is started by another", 0.01)
        return first()

    def no_second_copy(self) -> None:
        """Require that nobody was accepted twice."""
        extra = self.second_copies()
        require(extra <= self.again_max, f"{extra} second copies")

    def second_copies(self) -> int:
        """Return how many messages were accepted beyond the first to each."""
        counts = Counter(line.to for line in self.lines() if line.verdict == "accepted")
        return sum(counts.values()) - len(counts)

    async def ended_well(self, job: str) -> int:
        """Require that an ended job adds up; return how many of it are unknown."""
        tally = (await self.stack.status(job)).tally
        total = tally.sent + tally.unknown
        require(total == tally.total, f"{job}: {tally.sent} sent, {tally.unknown} unknown")
        self.no_second_copy()
        return tally.unknown

    def bounded(self, unknown: int, bound: int) -> None:
        """Require that no more are unknown than faults explain, and leases that were lost."""
        most = bound + self._of_lost_leases()
        require(unknown <= most, f"{unknown} unknown, {bound} can be, leases that were lost apart")

    def _of_lost_leases(self) -> int:
        """Return how many the leases lost since the last look may have made unknown."""
        lost = self.leases_lost()
        more = SLOTS * 2 * CONCURRENCY * (lost - self._leases_told)
        self._leases_told = lost
        self.unknown_max += more
        return more

    def evidence(self, names: frozenset[str]) -> oracle.Evidence:
        """Return what is known from outside; `names` are the workers that live."""
        lines = [
            oracle.Line(
                line.seq,
                int(line.to.lstrip("+")),
                line.job,
                line.position,
                int(line.opaque.split(".")[3]),
                line.verdict,
                line.wamid,
                line.code,
            )
            for line in self.lines()
        ]
        return oracle.Evidence(
            self.accepted,
            lines,
            unknown_max=self.unknown_max,
            again_max=self.again_max,
            workers=names,
        )

    async def verdict(self) -> list[str]:
        """Wait until everything has drained; return what does not hold then."""
        if not self._is_fresh:  # the run has had it examined, and put it away
            return []
        found: list[oracle.Violation] = []
        end_s = self.clock.monotonic() + DRAIN_S
        while True:
            self._of_lost_leases()
            ticking = (await self.queue.stats(0, [])).workers
            names = [name_of(child, ticking) for child in self.stack.workers]
            async with self.redis() as client:
                evidence = self.evidence(frozenset(name for name in names if name))
                found = await oracle.examine(evidence, client, self.pool)
            # What a zombie tells after the end is noted later than the end, as a receipt is.
            found = [violation for violation in found if not _is_later_note(violation.text)]
            # What is sent twice stays sent twice; the rest may only be late.
            final = [violation for violation in found if violation.invariant in ("I2", "I6")]
            if not found or final or self.clock.monotonic() > end_s:
                return [str(violation) for violation in found]
            await self.clock.sleep(0.5)

    def leases_lost(self) -> int:
        """Return how many workers that live, and were left alone, have been taken for dead.

        A machine that is too busy for a tick in two seconds does that; each may cost what its slots
        had noted (sentence 4).
        """
        names = set()
        for child in self.stack.workers:
            pattern = re.compile(rf'"reaped": "(w{child.pid}-[0-9a-z]+)"')
            for other in self.stack.workers:
                if other.pid not in self.frozen and child.pid not in self.frozen:
                    names |= set(pattern.findall(other.log.read_text(errors="replace")))
        return len(names)

    def logged(self, event: str) -> int:
        """Return how often the processes of ours have logged an event."""
        pattern = re.compile(rb'"event": ?"' + re.escape(event.encode()))
        return sum(
            len(pattern.findall(child.log.read_bytes()))
            for child in self.processes.all
            if child.log.exists()
        )


def name_of(child: Child, names: Any) -> str:
    """Return a worker process's name among `names`; '' when it is not there."""
    # A consumer is named after its process (shared/ids.py).
    return next((name for name in names if name.startswith(f"w{child.pid}-")), "")


async def is_ready(origin: str) -> bool:
    """Tell whether an API process takes requests."""
    try:
        async with Client(origin) as client:
            return bool(await client.ask("GET", "/readyz"))
    except DrumbeatError:
        return False


def _is_later_note(text: str) -> bool:
    found = re.search(r"ends with the events (\d+)-(\d+) and (\d+)-(\d+)", text)
    return found is not None and [*map(int, found.groups()[2:])] > [*map(int, found.groups()[:2])]


def cpu_s(child: Child) -> float:
    """Return how much CPU time a process has used."""
    fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
