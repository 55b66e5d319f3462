"""One system on a stage: API, workers and far side in this process, real stores, a clock to move.

Nothing here runs by a timer: a scenario calls submit, turns, and lets time pass. A process that
died is followed by another; one that stands still wakes when its claims have gone to another.
"""

from __future__ import annotations

import asyncio
import copy
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import fields
from functools import partial
from itertools import cycle, islice
from logging import ERROR
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec
import redis.asyncio
import structlog
from aiohttp import StreamReader, web
from aiohttp.test_utils import make_mocked_request
from prometheus_client import CollectorRegistry
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from api import auth, jobs, submit
from api.hub import Hub
from api.problems import respond
from api.resources import RESOURCES, Resources
from api.router import HEADERS, REQUEST_ID
from api.sessions import Visitors
from api.switch import Switch
from shared import keys, logs
from shared.archive import Archive, SenderRow
from shared.batch import Batch
from shared.clock import Clock
from shared.errors import ArchiveError, QueueError
from shared.ids import Ids
from shared.inbox import Inbox
from shared.management import Checks
from shared.metrics import ApiMetrics, WorkerMetrics
from shared.models import RANK, Claim, State, state_of
from shared.notices import Notices
from shared.phone import PossibleLengths
from shared.queue import Queue
from shared.scripts import Script
from shared.sealing import Sealing
from shared.settings import Settings
from shared.templates import Templates
from tests.faults.post import OPAQUE_KEY, FaultyReceipts, Said, is_worked_off
from tests.faults.provider import Provider
from tests.faults.watch import Audience
from tests.faults.world import (
    FaultyArchive,
    FaultyGraph,
    FaultyRedis,
    Frozen,
    Gone,
    Kind,
    Life,
    Stuck,
    World,
    WorldClock,
)
from tests.oracle import Accepted, Evidence, Violation, examine
from worker.executor import Jobs, Tools
from worker.log_writer import LogWriter
from worker.noticeboard import Noticeboard
from worker.pool import Pool
from worker.publisher import Publisher
from worker.receipts import Consumer
from worker.receipts import Tools as ReceiptTools
from worker.scopes import Scopes
from worker.senders import Senders
from worker.tick import Pulse

OWNER: Final = "00000000-0000-7000-8000-000000000001"
FIRST: Final = 393331000000
RUN: Final = "r1"
IDLE_MAX: Final = 5
PATIENCE: Final = 5
READS_MAX: Final = 50  # between two ticks; ten recipients take five
# How long each turn of a drain is followed by nothing: a lease, the archive's 30 s, back-offs.
WAITS_MS: Final = (1_000, 11_000, 11_000, 31_000, 11_000, 31_000, 61_000, 11_000, 700_000,
                   11_000, 1_100_000, 11_000, 90_000_000, *[11_000] * 9)  # fmt: skip
ROUNDS_MAX: Final = 10  # of those turns
LATE_S: Final = 0.25
# Time passes by moving the past away: the server's clock itself cannot be set.
_LATER: Final = """#!lua flags=allow-oom
local P, ms, live = ARGV[1], tonumber(ARGV[2]), {}
for i = 4, #ARGV do live[ARGV[i]] = true end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function set(key, only)
  local all = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #all, 2 do
    if not (only and live[all[i]]) then
      redis.call('ZADD', key, string.format('%.0f', all[i + 1] - ms), all[i])
    end
  end
end
local function hash(key, names)
  for _, name in ipairs(names) do
    local v = tonumber(redis.call('HGET', key, name) or '0')
    local past = string.format('%.0f', math.max(1, (v or 0) - ms))
    if v and v > 0 then redis.call('HSET', key, name, past) end
  end
end
-- What is released at a rate has its start in its entry, and an entry cannot be changed in place.
local function age_claims(key)
  local call, is_paced = redis.call, false
  local all = call('XRANGE', key, '-', '+')
  for _, e in ipairs(all) do
    for i = 1, #e[2], 2 do
      if e[2][i] == 'g' then is_paced = is_paced or e[2][i + 1] ~= '0' end
      if e[2][i] == 's' or e[2][i] == 'r' then
        e[2][i + 1] = string.format('%.0f', e[2][i + 1] - ms)
      end
    end
  end
  if not is_paced then return end
  local function of(reply)
    local h = {}
    for i = 1, #reply, 2 do h[reply[i]] = reply[i + 1] end
    return h
  end
  local last, groups = of(call('XINFO', 'STREAM', key))['last-generated-id'], {}
  for _, g in ipairs(call('XINFO', 'GROUPS', key)) do
    local name = of(g).name
    groups[#groups + 1] = {name = name, last = of(g)['last-delivered-id'],
                           consumers = call('XINFO', 'CONSUMERS', key, name),
                           pending = call('XPENDING', key, name, '-', '+', 1000)}
  end
  call('DEL', key)
  for _, e in ipairs(all) do call('XADD', key, e[1], unpack(e[2])) end
  call('XSETID', key, last)
  for _, g in ipairs(groups) do
    call('XGROUP', 'CREATE', key, g.name, g.last)
    for _, c in ipairs(g.consumers) do call('XGROUP', 'CREATECONSUMER', key, g.name, of(c).name) end
    for _, p in ipairs(g.pending) do
      call('XCLAIM', key, g.name, p[2], 0, p[1], 'IDLE', p[3], 'RETRYCOUNT', p[4], 'FORCE',
           'JUSTID')
    end
  end
end
if redis.call('EXISTS', P .. 'ready') == 1 then age_claims(P .. 'ready') end
set(P .. 'workers', true)
set(P .. 'off')
set(P .. 'timers')
hash(P .. 'gate', {'gated_at', 'calm_until', 'hold_until', 'hold_at', 'flushed_at'})
if ARGV[3] == '1' and redis.call('HEXISTS', P .. 'gate', 'gated_at') == 1 then
  redis.call('HSET', P .. 'gate', 'gated_at', string.format('%.0f', now - 600))
end
for _, key in ipairs(redis.call('KEYS', P .. 'sender:*')) do
  if redis.call('TYPE', key).ok == 'hash' then
    hash(key, {'blocked_until', 'bucket_ms', 'rate_at', 'last_cut'})
  end
end
for _, key in ipairs(redis.call('KEYS', P .. 'job:*')) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'zset' then set(key)
  elseif kind == 'hash' then hash(key, {'scheduled_ms', 'expires_ms', 'bucket_ms', 'speed_at'}) end
end
for _, pair in ipairs({{P .. 'ready', 'workers'}, {P .. 'outcomes', 'archive'},
                        {'{hooks}:inbox', 'receipts'}}) do
  local ok, pending = pcall(redis.call, 'XPENDING', pair[1], pair[2], '-', '+', 1000)
  if ok and not pending.err then
    for _, p in ipairs(pending) do
      local idle = string.format('%.0f', p[3] + ms)
      redis.call('XCLAIM', pair[1], pair[2], p[2], 0, p[1], 'IDLE', idle, 'JUSTID')
    end
  end
end
return 1
"""
_LATER_ROWS: Final = """UPDATE bulk_jobs SET created_ms = created_ms - $1,
  scheduled_ms = CASE WHEN scheduled_ms > 0 THEN greatest(1, scheduled_ms - $1) ELSE 0 END,
  expires_ms = CASE WHEN expires_ms > 0 THEN greatest(1, expires_ms - $1) ELSE 0 END
WHERE state NOT IN ('completed', 'cancelled')"""
_OPEN: Final = """SELECT count(*) FROM bulk_jobs WHERE state NOT IN ('completed', 'cancelled')
  OR sent + failed + skipped + unknown + cancelled < recipients"""


class SteppedPool(Pool):
    """Slots whose step ends where a process would wait for its next tick."""

    def __init__(self, life: Life, tools: Tools, slots: int) -> None:
        super().__init__(tools, slots)
        self._life = life
        self._reads = 0

    async def _room(self, shard: int) -> None:
        if not self._t.pulse.may_claim(shard):
            self._life.on_idle()
        await super()._room(shard)

    async def _begin(self, shard: int, claims: list[Claim], stop: asyncio.Event) -> None:
        # What the last tick stopped, and was let go on since, goes round until the next one.
        await super()._begin(shard, claims, stop)
        self._reads += 1
        if self._reads % READS_MAX == 0:
            self._life.on_idle()


class Worker:
    """One worker process, taken step by step."""

    def __init__(self, stage: Stage, life: Life) -> None:
        settings, clock = stage.tuned, stage.worker_clock
        self.life = life
        self.stage = stage
        self.queue = stage.new_queue()
        archive = stage.archive
        self.senders = Senders(archive, self.queue, settings, stage.sealing, clock)
        self.pulse = Pulse(self.queue, life.name, settings, clock, stage.worker_metrics)
        scopes = Scopes(self.queue, archive, self.senders, self.pulse, clock)
        graph: Any = FaultyGraph(
            stage.world, stage.provider.take, stage.provider.after, self.pulse.reached
        )
        tools = Tools(
            self.queue,
            graph,
            self.senders,
            Jobs(self.queue, OPAQUE_KEY),
            self.pulse,
            settings,
            clock,
            stage.ids,
            stage.worker_metrics,
            logs.Refusals(logs.get("faults"), clock),
            scopes.act,
        )
        self.pool = SteppedPool(life, tools, settings.worker_slots)
        self.writer = LogWriter(
            self.queue, archive, settings, clock, stage.worker_metrics, life.name
        )
        self.publisher = Publisher(self.queue, archive, settings, clock, stage.ids, self.senders)
        self.consumer = Consumer(
            ReceiptTools(
                self.queue,
                stage.new_inbox(),
                stage.receipts,
                self.senders,
                scopes,
                Noticeboard(
                    Notices(stage.pool),
                    Templates(stage.pool),
                    scopes,
                    self.senders,
                    stage.worker_metrics,
                ),
                clock,
                stage.worker_metrics,
                OPAQUE_KEY,
            ),
            life.name,
        )
        self.cursor = self.hooks_cursor = "0-0"
        self.has_started = self.has_left = False

    async def start(self) -> None:
        """What a new process does: its connection's first word, its groups, its senders."""
        await self.queue.hold(0, self.stage.run)
        await self.queue.prepare(0)
        await self.senders.refresh()
        self.has_started = True

    async def tick(self) -> None:
        await self.pulse._tick(0)

    async def refresh(self) -> None:
        await self.senders.refresh()

    async def look(self) -> None:
        await self.publisher.look(0)

    async def take(self) -> None:
        """Claim and send until there is nothing to claim, or a tick must come first."""
        stop = self._until_idle()
        await self.pool._read(0, stop)
        while self.pool._running:
            await asyncio.wait(self.pool._running)

    async def write(self) -> None:
        """Bring outcomes to PostgreSQL until there are none."""
        await self.writer._follow(0, self._until_idle())

    async def read(self) -> None:
        """Read outcomes, and go no further."""
        await self.queue.read_outcomes(0, self.life.name, 200, 0)

    async def take_over(self) -> None:
        self.cursor = await self.writer.take_over(0, self.cursor, asyncio.Event())

    async def hear(self) -> None:
        """Work webhooks off until there are none."""
        await self.consumer.follow(self._until_idle())

    async def glance(self) -> None:
        """Read webhooks, and go no further."""
        await self.consumer._t.inbox.read(self.life.name, 32, 0, given=False)

    async def hear_for_the_dead(self) -> None:
        stop = asyncio.Event()
        self.hooks_cursor = await self.consumer.take_over(self.hooks_cursor, stop)

    async def sweep(self) -> None:
        await self.consumer.sweep()

    async def marks(self) -> None:
        await self.writer.raise_marks(0)

    async def serve(self, stop: asyncio.Event) -> None:
        """Claim and send as a process does, until it is told to stop, then leave."""
        idle = 0

        def tire() -> None:
            nonlocal idle
            idle += 1
            if idle > IDLE_MAX:
                stop.set()

        self.life.idle[None] = tire  # its reads are tasks of their own
        await self.pool.run(stop)
        self.has_left = True

    async def leave(self) -> None:
        """Stop as SIGTERM asks: what is in hand is finished, then the worker leaves."""
        stop = asyncio.Event()
        stop.set()
        await self.pool.run(stop)
        self.has_left = True

    def _until_idle(self) -> asyncio.Event:
        stop = asyncio.Event()
        self.life.idle[asyncio.current_task()] = stop.set
        return stop


class Submission(NamedTuple):
    """What a client asks for, and goes on asking for with one key."""

    key: str
    phones: list[int]
    body: dict[str, Any]


class Stage:
    """What all runs share, and what one run has come to."""

    def __init__(self, settings: Settings, world: World) -> None:
        self.settings = settings
        self.world = world
        world.on_long = self._free
        self.asker = auth.Principal(
            user_id=OWNER, email="a@example.com", role="user", scopes=("send", "read")
        )
        self.clock = WorldClock(world)
        self.worker_clock = WorldClock(world)
        # While a server is asked only the machine's clock goes on, and the bucket's with it.
        self.provider = Provider(lambda: world.loop.time() + Clock().monotonic())
        self.sealing = Sealing(settings.bulk_secret_key)
        self.worker_metrics = WorkerMetrics(CollectorRegistry())
        self.api_metrics = ApiMetrics(CollectorRegistry())
        self.ids = Ids(1)
        self.run = RUN

    async def open(self, stack: AsyncExitStack) -> None:
        """Open both stores once; every run uses them again."""
        structlog.configure(
            processors=[self._hear], wrapper_class=structlog.make_filtering_bound_logger(ERROR)
        )
        stack.callback(structlog.reset_defaults)
        assert self.settings.redis_url is not None
        assert self.settings.database_url is not None
        url = str(self.settings.redis_url)
        pool = redis.asyncio.ConnectionPool.from_url(url, retry=Retry(NoBackoff(), 0))
        self.client = FaultyRedis(connection_pool=pool)
        self.client.world = self.world
        # Outside any process's life it is a plain client.
        self.redis = self.client
        stack.push_async_callback(pool.aclose)
        self._limit = (await self.redis.config_get("maxmemory"))["maxmemory"]
        made = await asyncpg.create_pool(
            str(self.settings.database_url),
            min_size=0,  # a floor is restored beside the effects, and on a clock that then jumps
            max_size=4,
            max_inactive_connection_lifetime=0,
            server_settings={"search_path": self.settings.database_schema},
        )
        stack.push_async_callback(made.close)
        self.pool = PlainPool(made, self.world)
        self.archive = FaultyArchive(made, self.world)
        self.receipts = FaultyReceipts(made, self.world)
        self._pattern = Queue(self.settings, [self.client], [self.client], self.client)
        self._visitors = Visitors(self._pattern, self.settings, self.ids)
        self.client.scripts = {script.sha: script.name for script in self.scripts()}
        for script in self.scripts():
            await self.redis.script_load(script.text)
        self._later = await self.redis.script_load(_LATER)
        plain = Archive(made)
        await plain.add_user(OWNER, "a@example.com", "hash", "user")
        await plain.add_sender(
            SenderRow("snd_main", "main", "1001", self.sealing.seal("token"), rate=0.0,
                      is_default=True)
        )  # fmt: skip

    def scripts(self) -> list[Script]:
        """Return every script that any process runs."""
        of_hub = Script("visitor_streams")
        return [*self._pattern._scripts.values(), *self._visitors._scripts.values(), of_hub]

    def new_queue(self) -> Queue:
        """Return a door as a new process would open it; the scripts are read once."""
        queue = copy.copy(self._pattern)
        queue.settings = self.tuned
        queue._clock = self.clock
        queue._batches = [Batch(partial(queue._trip, 0))]
        queue._messages = [Batch(partial(queue._read_messages, 0))]
        return queue

    def _hear(self, _logger: Any, _method: str, event: Any) -> Any:
        """Note every exception that is only logged: none is meant to happen."""
        if event.get("exc_info"):
            self.notes.append(("log", f"{event['event']}: {sys.exc_info()[1]!r}"))
        raise structlog.DropEvent

    def new_inbox(self) -> Inbox:
        """Return the door of webhooks as a new process would open it."""
        return Inbox(self.client, self.client, self.tuned, self.clock)

    # -- one run -----------------------------------------------------------------------------

    async def reset(self, plan: dict[int, Kind]) -> None:
        """Empty both stores and forget the last run."""
        self.world.is_open = False
        self.world.watch = None
        await self.fill(is_full=False)
        await self.redis.flushdb()
        await self.pool.execute(
            "DELETE FROM campaign_logs; DELETE FROM bulk_jobs; DELETE FROM audit_log;"
            "DELETE FROM early_receipts;"
            "UPDATE senders SET state = 'active', why = '', until_ms = 0, version = 1, rate = 0;"
        )
        await self.redis.hset(keys.gate(0), mapping={"born": "b1", "run": RUN})
        self.provider.reset()
        self.ids = Ids(1)
        self.run = RUN
        self.tuned = self.settings
        _DRAFT._STEP_CHUNKS = _STEPS
        self.workers: list[Worker] = []
        self.zombies: list[Life] = []
        self.freed: list[Life] = []
        self.lives: list[Life] = []
        self.accepted: list[Accepted] = []
        self.worker_clock.off_ms = 0
        self.rate = 0.0
        self.answered: dict[str, Accepted] = {}
        self.doubtful: set[str] = set()
        self.refused: set[str] = set()
        self.notes: list[tuple[str, str]] = []
        self.unknown_max = self.again_max = self.submits = 0
        self.deeds: list[Callable[[], Awaitable[None]]] = []
        self.depth = 0
        self.has_operator = self.has_hooks = False
        self.said: dict[tuple[str, int], set[Said]] = {}
        self.strangers: set[tuple[str, int]] = set()
        self.receipts_seen: dict[tuple[str, int], int] = {}
        self.audience = Audience(self)
        self.asked_max = 0
        self.world.begin(plan)

    def born(self, kind: str, *, is_request: bool = False) -> Life:
        """Begin a life of a process."""
        count = 1 + sum(life.name.startswith(kind) for life in self.lives)
        life = Life(f"{kind}{count}", is_request=is_request)
        self.lives.append(life)
        self.world.lives.append(life)
        return life

    async def step(self, life: Life, act: Coroutine[Any, Any, Any]) -> Any:
        """Let a process take a step; None when it died, stands still, or its stores failed it."""
        if life.over.done():
            act.close()
            return None
        self.depth += 1
        try:
            return await self.world.run(life, act)
        except (QueueError, ArchiveError):
            return None  # the loop round every step says so and goes on
        except (Gone, Frozen) as end:
            await self._lost(life, end)
            return None
        finally:
            self.depth -= 1

    async def _lost(self, life: Life, end: Exception) -> None:
        """Count what a death or a lost lease may make unknown: the intents of that moment."""
        if not any(worker.life is life for worker in self.workers):
            if isinstance(end, Frozen) and life not in self.zombies:
                self.zombies.append(life)
            return
        await self.doubt()
        if isinstance(end, Frozen):
            if life not in self.zombies:  # both its step and whoever waits for it say so
                self.zombies.append(life)
            self.world.watch = self._fence

    async def doubt(self) -> None:
        """Count what is on its way: it may become unknown, or be sent again where that is asked."""
        intents = await self.intents()
        self.unknown_max += intents
        self.again_max += intents

    async def intents(self) -> int:
        """Return how many recipients are on their way by their state bytes."""
        found = (await self.states()).values()
        return sum(state_of(byte) is State.INTENT for states in found for byte in states)

    async def states(self) -> dict[str, bytes]:
        """Return the state bytes of every job that Redis knows, promised or not."""
        names = [name async for name in self.redis.scan_iter(f"{keys.tag(0)}job:*:states")]
        values = await self.redis.mget(names) if names else []
        ids = [name.decode().split(":")[2] for name in names]
        return {job: value or b"" for job, value in zip(ids, values, strict=True)}

    async def noted(self) -> int:
        """Return how many are noted and were not asked for yet, by the far side's ledger."""
        count = 0
        for accepted in self.accepted:
            asked = {line.position for line in self.provider.ledger if line.job == accepted.job}
            states = await self.redis.get(keys.states(accepted.job)) or b""
            at = [i for i, byte in enumerate(states) if state_of(byte) is State.INTENT]
            count += sum(position not in asked for position in at)
        return count

    async def later(self, for_ms: int, *, is_calm: bool = False) -> None:
        """Let time pass for stores and processes; `is_calm`: nobody has ticked meanwhile."""
        live = [] if is_calm else [w.life.name for w in self.live()]
        await self.redis.evalsha(self._later, 0, keys.tag(0), for_ms, "" if is_calm else "1", *live)
        await self.pool.execute(_LATER_ROWS, for_ms)
        self.world.loop.now_s += for_ms / 1000

    # -- workers -----------------------------------------------------------------------------

    def live(self) -> list[Worker]:
        """Return the workers that can take a step."""
        return [
            w
            for w in self.workers
            if not (w.life.is_dead or w.life.thawed or w.has_left or w.life in self.zombies)
        ]

    async def worker(self) -> Worker:
        """Return a living worker; another is started when there is none."""
        while not (live := self.live()):
            await self.start_worker()
        return live[0]

    async def start_worker(self) -> Worker:
        """Start one more."""
        worker = Worker(self, self.born("w"))
        self.workers.append(worker)
        await self.step(worker.life, worker.start())
        if not worker.has_started and worker in self.live():
            await self.kill(worker)  # a process whose start fails exits
        return worker

    async def turn(self) -> None:
        """Let every living worker do each of its things once."""
        await self.worker()
        woken = await self._wake()
        for worker in self.live():
            for act in (worker.tick, worker.look, worker.take, worker.write, worker.take_over,
                        worker.marks, worker.refresh, *self._hook_acts(worker)):  # fmt: skip
                await self.step(worker.life, act())
                # Who was reaped by this tick goes on beside whoever takes its claims.
                woken += await self._wake()
                if worker not in self.live():
                    break
        for life in woken:
            await self._finish(life)

    def _hook_acts(self, worker: Worker) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        if not self.has_hooks:
            return []
        return [worker.hear, worker.hear_for_the_dead, worker.write, worker.sweep]

    async def step_aside(self, worker: Worker, act: Coroutine[Any, Any, Any]) -> None:
        """Let a worker do something beside the step it is in."""
        life = worker.life
        task = self.world.loop.create_task(act, context=life.context)
        await asyncio.wait({task, life.over}, return_when=asyncio.FIRST_COMPLETED)

    def phone(self, job: int, position: int) -> int:
        """Return the number at a position of the job-th submission."""
        return FIRST + 1000 * job + position

    def limit_steps(self) -> None:
        """Let jobs be released two chunks at a time, as a slow sender's are."""
        _DRAFT._STEP_CHUNKS = (2, 2)

    async def set_right(self) -> None:
        """Be the operator who puts every stopped sender right."""
        await self.pool.execute(
            "UPDATE senders SET state = 'active', why = '', until_ms = 0, version = version + 1"
            " WHERE state <> 'active'"
        )

    async def pace(self, rate: float) -> None:
        """Give the sender a rate, in messages a second."""
        self.rate = rate
        await self.pool.execute("UPDATE senders SET rate = $1, version = version + 1", rate)

    async def fill(self, *, is_full: bool) -> None:
        """Let Redis have no memory left, or as much as it had."""
        await self.redis.config_set("maxmemory", "1" if is_full else self._limit)

    async def wipe(self) -> None:
        """Empty Redis; what was released and is not logged may have been sent."""
        for accepted in self.accepted:
            reserved = await self.pool.fetchval(
                "SELECT least(reserved, recipients) FROM bulk_jobs WHERE id = $1", accepted.job
            )
            logged = await self.pool.fetchval(
                "SELECT count(*) FROM campaign_logs WHERE job_id = $1", accepted.job
            )
            # A worker that stood still may raise the mark by a step until the job is restored.
            step = _DRAFT._STEP_CHUNKS[0] * self.tuned.bulk_batch_size if self.zombies else 0
            self.unknown_max += max(0, min(reserved + step, len(accepted.phones)) - logged)
        await self.redis.flushdb()

    async def lose(self, accepted: Accepted) -> None:
        """Let a fail-over lose a job whose outcomes are all logged."""
        if await self.redis.xlen(keys.outcomes(0)) or await self.redis.xlen(keys.ready(0)):
            return
        if await self.intents():
            return
        names = [name async for name in self.redis.scan_iter(f"*job:{accepted.job}*")]
        if names:
            await self.redis.delete(*names)

    def tune(self, **changes: Any) -> None:
        """Let processes that start from now on have other settings."""
        self.tuned = msgspec.structs.replace(self.tuned, **changes)

    async def kill(self, worker: Worker) -> None:
        """End a worker where it stands."""
        if worker in self.live():
            worker.life.is_dead = True
            worker.life.end(Gone)
            while self.world.loop.under_way:  # noqa: ASYNC110 - what has left arrives first
                await asyncio.sleep(0)
            await self.doubt()
            if worker.life.step is None or worker.life.step.done():
                await self.world.bury(worker.life)

    async def do_deeds(self) -> None:
        """Do what no request has brought about."""
        for deed in self.deeds[:]:
            await deed()

    async def _wake(self, *, is_late: bool = False) -> list[Life]:
        """Let go on whoever stands still and has been given up by the others."""
        self.look_for_zombies()
        woken = []
        for life in list(self.zombies):
            is_reaped = await self.redis.zscore(f"{keys.tag(0)}workers", life.name) is None
            if (is_late or (is_reaped and not life.wakes_late)) and self._let_go(life):
                woken.append(life)
        return woken

    def look_for_zombies(self) -> None:
        """Note which processes that are not stepped stand still."""
        self.zombies += [life for life in self.audience.frozen() if life not in self.zombies]

    def _free(self) -> None:
        """Let go on whoever stands still: a step under way may wait for what it holds."""
        self.freed += [life for life in list(self.zombies) if self._let_go(life)]

    def _let_go(self, life: Life) -> bool:
        self.zombies.remove(life)
        if life.thawed is None or life.is_dead:
            return False
        self.world.thaw(life)
        for worker in self.workers:
            if worker.life is life and worker.has_started:
                # Its pulse wakes with it.
                self.world.loop.create_task(worker.tick(), context=life.context)
        return life.step is not None

    async def wake(self, life: Life) -> None:
        """Let one that stands still go on, whether it was given up or not."""
        if self._let_go(life):
            await self._finish(life)

    async def _finish(self, life: Life) -> None:
        try:
            await self.world.finish(life)
        except (Gone, Frozen) as end:
            await self._lost(life, end)
        except (QueueError, ArchiveError):
            pass

    async def is_over(self) -> bool:
        """Tell whether every job has ended in PostgreSQL and nothing is on its way."""
        if await self.pool.fetchval(_OPEN) or await self.redis.xlen(keys.outcomes(0)):
            return False
        if self.has_hooks and not await is_worked_off(self):
            return False
        return not await self.redis.xlen(keys.ready(0))

    async def drain(self) -> None:
        """Take turns until every job has ended, nobody stands still, and all have left.

        Who is refused again and again by what an operator then sets right takes more than one
        round of them: as many as bring somebody to another answer.
        """
        answers = -1
        for count, wait_ms in enumerate(islice(cycle(WAITS_MS), ROUNDS_MAX * len(WAITS_MS))):
            if count % len(WAITS_MS) == 0:
                if answers == self.provider.requests:
                    self.notes.append(("liveness", "a round of turns brought nobody on"))
                    break
                answers = self.provider.requests
            await self.turn()
            while self.freed:
                await self._finish(self.freed.pop())
            if count and count % PATIENCE == 0:  # whoever stands still may hold what all wait for
                for life in await self._wake(is_late=True):
                    await self._finish(life)
            if self.has_operator:
                await self.set_right()
            if self.deeds:
                await self.do_deeds()
            elif await self.is_over():
                late = await self._wake(is_late=True)
                for life in late:
                    await self._finish(life)
                if not late and not self.zombies:
                    break
                continue
            await self.later(wait_ms)
        else:
            self.notes.append(("liveness", "not drained in all its turns"))
        for worker in self.live():
            await self.step(worker.life, worker.leave())
        # Whoever died while leaving is reaped by the next.
        if any(w.life.is_dead or w.life.thawed for w in self.workers):
            for life in await self._wake(is_late=True):
                await self._finish(life)
            await self.later(11_000)
            self.world.plan = {}
            for _ in range(2):
                await self.turn()
                await self.later(31_000)
            for worker in self.live():
                await self.step(worker.life, worker.leave())

    # -- the client and the API --------------------------------------------------------------

    def api(self) -> Resources:
        """Return what a handler of a new API process finds."""
        queue = self.new_queue()
        known: dict[str, Any] = {
            "settings": self.tuned,
            "clock": self.clock,
            "ids": self.ids,
            "queue": queue,
            "inbox": self.new_inbox(),
            "archive": self.archive,
            "visitors": Visitors(queue, self.settings, self.ids),
            "hub": Hub(queue, self.settings, self.clock, self.api_metrics),
            "switch": Switch(queue, self.settings, self.clock),
            "metrics": self.api_metrics,
            "lengths": LENGTHS,
            "ready": Checks({}, self.clock),
        }
        # What no story here asks for stays away.
        needed = [f.name for f in fields(Resources) if f.default is f.default_factory]
        return Resources(**{name: known.get(name) for name in needed})

    async def ask(
        self, handler: Any, path: str, body: Any, headers: dict[str, str], **match: str
    ) -> web.Response | None:
        """Make one request of a new API process; None when no answer came."""
        life = self.born("api", is_request=True)
        app = web.Application()
        app[RESOURCES] = self.api()
        raw = msgspec.json.encode(body) if body is not None else b""
        payload = StreamReader(_Protocol(), 2**16, loop=self.world.loop)  # type: ignore[arg-type]
        payload.feed_data(raw)
        payload.feed_eof()
        all_headers = {"Content-Type": "application/json", "Content-Length": str(len(raw))}
        request = make_mocked_request(
            "POST", path, {**all_headers, **headers}, app=app, payload=payload, match_info=match
        )
        request[auth.PRINCIPAL] = self.asker
        request[HEADERS] = {}
        request[REQUEST_ID] = "req"

        async def answer() -> web.Response:
            try:
                return await handler(request)
            except Exception as error:  # noqa: BLE001 - as the edge of the API does
                found = respond(error)
                if found.status == 500:
                    self.notes.append(("5xx", f"{path}: {error!r}"))
                return found

        return await self.step(life, answer())  # type: ignore[no-any-return]

    async def submit(self, count: int, **more: Any) -> Accepted:
        """Submit as a client does: with one key, until it is answered 202."""
        return await self.insist(self.new_submission(count, **more))

    def new_submission(self, count: int, **more: Any) -> Submission:
        """Return what a client will ask for, with a key and numbers of its own."""
        self.submits += 1
        phones = [self.phone(self.submits, i) for i in range(count)]
        body = {
            "message": {"kind": "text", "text": {"body": "hello"}},
            "recipients": [f"+{phone}" for phone in phones],
            **more,
        }
        return Submission(f"key-{self.submits}", phones, body)

    async def insist(self, asked: Submission) -> Accepted:
        """Submit until it is answered 202."""
        for _ in range(8):
            accepted = await self.attempt(asked)
            if accepted is not None:
                return accepted
            await self.later(1_000)
        raise Stuck(f"submission {asked.key} is never accepted")

    async def attempt(self, asked: Submission) -> Accepted | None:
        """Submit once; the same key again must come to the same job (I12)."""
        path, headers = "/api/bulk/send", {"Idempotency-Key": asked.key}
        response = await self.ask(submit.send, path, asked.body, headers)
        if response is None:
            self.doubtful.add(asked.key)
            return None
        if response.status != 202:
            # The one sender may have been stopped since.
            is_stopped = b'"code":"no_sender"' in (response.body or b"")
            assert response.status in (409, 429, 503) or is_stopped, response.body
            # An earlier request with this key may have left what it was not told of.
            if asked.key not in self.doubtful:
                await self._left_nothing(asked.key, response)
            return None
        self.doubtful.add(asked.key)
        job = msgspec.json.decode(response.body)["jobId"]  # type: ignore[arg-type]
        accepted = Accepted(job, asked.phones, asked.body.get("on_unknown") == "resend")
        if self.answered.setdefault(asked.key, accepted) != accepted:
            self.notes.append(("I12", f"{asked.key}: {self.answered[asked.key].job}, then {job}"))
        elif accepted not in self.accepted:
            self.accepted.append(accepted)
        return accepted

    async def _left_nothing(self, key: str, response: web.Response) -> None:
        """I1 at once: after a refusal there is no row and no job."""
        if response.status != 503:
            return
        row = await self.pool.fetchval("SELECT id FROM bulk_jobs WHERE idempotency_key = $1", key)
        if row is not None:
            self.notes.append(("I1", f"503, and there is a row {row}"))

    async def control(self, accepted: Accepted, action: str) -> None:
        """Ask for a change until it is answered; asking again is harmless."""
        handler = {"pause": jobs.pause, "resume": jobs.resume, "cancel": jobs.cancel}[action]
        path = f"/api/bulk/jobs/{accepted.job}/{action}"
        for _ in range(12):
            response = await self.ask(handler, path, None, {}, job_id=accepted.job)
            if response is not None and response.status in (200, 409):
                return
            await self.later(2_000)
            if not self.depth:
                await self.turn()
        raise Stuck(f"{action} is never answered")

    def at(self, request: int, deed: Callable[[], Awaitable[None]]) -> None:
        """Let a deed be done while the answer to a request is on its way; at the latest later."""

        async def once() -> None:
            if once in self.deeds:
                self.deeds.remove(once)
                await deed()

        self.deeds.append(once)
        self.provider.hooks[request] = once

    # -- what came of it -----------------------------------------------------------------------

    async def verdict(self) -> list[Violation]:
        """Return which invariants do not hold."""
        self.world.is_open = False
        doubtful = self._doubtful()
        evidence = Evidence(
            accepted=self.accepted,
            ledger=self.provider.ledger,
            unknown_max=self.unknown_max + doubtful,
            again_max=self.again_max + doubtful if any(a.resend for a in self.accepted) else 0,
            workers=frozenset(w.life.name for w in self.live()),
            refused=frozenset(self.refused),
            notes=tuple(self.notes),
            rate=self.rate,
            burst=self.burst(),
            watched=tuple(browser.told() for browser in self.audience.browsers),
        )
        return await examine(evidence, self.redis, self.pool)

    def burst(self) -> float:
        """Return what may leave at once: who stood still may also send what it had in hand."""
        # One more, and what a busy machine is late by: the bucket's clock goes on while ours stands
        # still, so a request may come later than its start, and the next one at its own.
        burst = max(1.0, 0.25 * self.rate) + 1 + LATE_S * self.rate
        if any(life.was_frozen for life in self.lives):
            burst += 1.2 * self.rate + 2 * self.tuned.bulk_batch_size
        return burst

    def _doubtful(self) -> int:
        lost = sum(
            kind.split(":")[1] == "err_after"
            and self.world.trace[int(kind.split(":")[0]) - 1].door == "graph"
            for kind in self.world.fired
        )
        return self.provider.doubtful + lost

    async def _fence(
        self, life: Life, name: str, seen: Any
    ) -> Callable[[Any], Coroutine[Any, Any, None]]:
        """I14: watch a report of a worker that may have been reaped."""
        calls = seen if isinstance(seen, list) else [seen]
        told = [c for c in calls if c and self.client.name_of(c) in ("report", "close")]
        stale = [c for c in told if not await self._owns(c)]
        if not stale or len(stale) < len(calls):
            return _unwatched
        before = await self._holdings()

        async def after(_reply: Any) -> None:
            now = await self._holdings()
            for part in ("ready", "pending", "again"):
                if before[part] != now[part]:
                    words = f"{life.name}'s stale {name} changed {part}"
                    self.notes.append(("I14", f"{words}: {before[part]} to {now[part]}"))
            for job, states in before["states"].items():
                for old, new in zip(states, now["states"][job], strict=False):
                    if RANK[new & 7] < RANK[old & 7]:
                        self.notes.append(("I14", f"{life.name}'s stale {name} lowered a state"))
                    if new & 7 == State.INTENT and old & 7 != State.INTENT and stale[0][9] == b"":
                        self.notes.append(("I14", f"{life.name}'s stale {name} noted an intent"))

        return after

    async def _owns(self, call: Any) -> bool:
        worker, entry = call[5], call[6]
        pending = await self.redis.xpending_range(
            keys.ready(0), keys.GROUP_WORKERS, entry, entry, 1
        )
        return bool(pending) and pending[0]["consumer"].decode() == worker

    async def _holdings(self) -> dict[str, Any]:
        ready, group = keys.ready(0), keys.GROUP_WORKERS
        pending = await self.redis.xpending_range(ready, group, "-", "+", 1000)
        found: dict[str, Any] = {
            "ready": [entry for entry, _ in await self.redis.xrange(ready)],
            "pending": [(p["message_id"], p["consumer"]) for p in pending],
            "again": [],
            "states": {},
        }
        for accepted in self.accepted:
            again = f"{keys.job(accepted.job)}:again"
            found["again"] += await self.redis.zrange(again, 0, -1)
            found["states"][accepted.job] = await self.redis.get(keys.states(accepted.job)) or b""
        return found


# Wherever the API decides how far ahead of its mark a job may be released.
_DRAFT: Final[Any] = next(
    module
    for name, module in list(sys.modules.items())
    if name.startswith("api.") and hasattr(module, "_STEP_CHUNKS")
)
_STEPS: Final = _DRAFT._STEP_CHUNKS
LENGTHS: Final = PossibleLengths()


async def _unwatched(_reply: Any) -> None:
    return


class PlainPool:
    """The stage's own questions to PostgreSQL: no effects of the program, but time must wait."""

    def __init__(self, pool: Any, world: World) -> None:
        self._pool = pool
        self._world = world

    async def fetch(self, *args: Any) -> Any:
        return await self._world.act(lambda: self._pool.fetch(*args))

    async def fetchval(self, *args: Any) -> Any:
        return await self._world.act(lambda: self._pool.fetchval(*args))

    async def execute(self, *args: Any) -> Any:
        return await self._world.act(lambda: self._pool.execute(*args))


class _Protocol:
    """What a body's reader asks of its connection: nothing to hold back here."""

    _reading_paused = False

    def pause_reading(self) -> None:
        return

    def resume_reading(self, *, resume_parser: bool = True) -> None:  # noqa: ARG002 - aiohttp's
        return
