"""The Redis door: jobs, claims, facts. Knows nothing of HTTP or Graph."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, TypeVar, cast

from redis.asyncio import Connection, Redis
from redis.exceptions import (
    AskError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from shared import keys
from shared.batch import Batch
from shared.clock import Clock
from shared.connect import open_redis
from shared.errors import QueueError, SettingsError
from shared.models import (
    Argument,
    Begun,
    Claim,
    ControlResult,
    EventNote,
    JobMessage,
    JobSpec,
    JobStatus,
    OutcomeEntry,
    Reported,
    SenderStatus,
    ServerInfo,
    ShardStats,
    SubmitResult,
    Ticked,
    Waiting,
)
from shared.replies import (
    age_of,
    begun_of,
    claim_of,
    entries_of,
    hash_of,
    outcome_of,
    sender_of,
    status_of,
    submitted_of,
    text_of,
)
from shared.scripts import NAMES, Script
from shared.settings import Settings

# A script may run twice, so the door repeats it: at most 3 tries within 2 s (pitfalls R1).
TRIES: Final = 3
_PAUSES_S: Final = (0.1, 0.5)
_ELSEWHERE: Final = (ReadOnlyError, MovedError, AskError)
_REFUSALS: Final = ("OOM", "READONLY", "LOADING", "MISCONF", "NOAUTH", "WRONGPASS", "NOPERM")
# What scripts and doors use, in a form that changes nothing but the key it is tried on.
_USED: Final = (
    "SET KEY 1 EX 10", "GET KEY", "GETRANGE KEY 0 0", "SETRANGE KEY 0 1", "EXISTS KEY",
    "PERSIST KEY", "PEXPIRE KEY 10000", "EXPIRE KEY 10", "HSET KEY a 1", "HSETNX KEY a 1",
    "HGET KEY a", "HMGET KEY a", "HGETALL KEY", "HVALS KEY", "HEXISTS KEY a", "HINCRBY KEY a 1",
    "HDEL KEY a", "SADD KEY a", "SREM KEY a", "SPOP KEY", "SMEMBERS KEY", "SRANDMEMBER KEY",
    "ZADD KEY 1 a", "ZREM KEY a", "ZCARD KEY", "ZSCORE KEY a", "ZCOUNT KEY 0 1", "ZRANGE KEY 0 0",
    "ZRANGEBYSCORE KEY 0 1", "ZREMRANGEBYSCORE KEY 0 1", "XADD KEY * a 1", "XLEN KEY",
    "XRANGE KEY - +", "XREVRANGE KEY + -", "XDEL KEY 1-0", "XACK KEY a 1-0", "XPENDING KEY a",
    "XGROUP CREATE KEY a 0", "XINFO GROUPS KEY", "XREAD STREAMS KEY 0",
    "XREADGROUP GROUP a b STREAMS KEY >", "XAUTOCLAIM KEY a b 0 0", "EVAL return 1 KEY",
    "EVALSHA 0000000000000000000000000000000000000000 1 KEY", "TIME", "INFO", "DEL KEY",
)  # fmt: skip
# What a worker must know of a job to send it (`Queue.message`).
_OF_MESSAGE: Final = (
    "sender", "message", "on_unknown", "chunk_size", "created_ms", "scheduled_ms", "category",
)  # fmt: skip
_T = TypeVar("_T")
_Call = tuple[str, list[Argument]]
Observe = Callable[[str, float], None]


def error_of(error: Exception) -> QueueError:
    """Translate what redis-py raised; say whether anything can have happened."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or text.startswith("OOM"):
        return QueueError("Redis is full", refused=True, full=True)
    refused = isinstance(error, _ELSEWHERE) or text.startswith(_REFUSALS)
    refused = refused or (text.startswith("Error") and "connecting to" in text)
    return QueueError(f"Redis: {type(error).__name__}", refused=refused)


class Queue:
    """Jobs in Redis, over all shards.

    Every method is one round trip unless it says so, may be repeated, and raises QueueError.

    Args:
        settings: REDIS_URL, QUEUE_SHARDS, leases and limits.
        commands, reads: a client for scripts and one for blocking reads, for each shard.
        shebang: False where the server's Lua does not know `#!lua` (fakeredis).
        observe: told of each round trip of a script: its name, seconds.
    """

    def __init__(
        self,
        settings: Settings,
        commands: list[Redis],
        reads: list[Redis],
        visitors: Redis,
        *,
        shebang: bool = True,
        observe: Observe | None = None,
    ) -> None:
        """Borrow the clients."""
        self._observe = observe
        self.settings = settings
        self.shards = len(commands)
        self.visitors = visitors
        self._commands = commands
        self._reads = reads
        self._clock = Clock()
        self._scripts = {name: Script(name, shebang=shebang) for name in NAMES}
        self._batches: list[Batch[_Call, Any]] = [
            Batch(partial(self._trip, shard)) for shard in range(self.shards)
        ]
        self._messages: list[Batch[str, Any]] = [
            Batch(partial(self._read_messages, shard)) for shard in range(self.shards)
        ]

    @classmethod
    async def open(cls, settings: Settings, observe: Observe | None = None) -> Queue:
        """Open two clients a shard and one for visitors; nothing is sent yet."""
        commands, reads = [], []
        for shard in range(settings.queue_shards):
            hook = _hold_hook(shard, settings)
            commands.append(open_redis(settings, keys.tag(shard), on_connect=hook))
            reads.append(open_redis(settings, keys.tag(shard), blocking=True, on_connect=hook))
        visitors = open_redis(settings, keys.VISITORS)
        return cls(settings, commands, reads, visitors, observe=observe)

    async def close(self) -> None:
        """Close every connection."""
        for client in [*self._commands, *self._reads, self.visitors]:
            await client.aclose()

    # -- running scripts -------------------------------------------------------------------

    async def _try(
        self, act: Callable[[], Awaitable[_T]], tries: int = TRIES, names: Iterable[str] = ()
    ) -> _T:
        is_lost = False
        for turn in range(tries):
            begun_s = self._clock.monotonic()
            try:
                done = await act()
            except (RedisError, OSError, TimeoutError) as error:
                last = error_of(error)
                if is_lost:  # an earlier try may have come through, whatever this one met
                    last = QueueError(str(last), refused=False, full=last.full)
                is_lost = not last.refused
                # The wrong server has refused: the connection is closed, the right one is asked.
                may_try = not last.refused or isinstance(error, _ELSEWHERE)
                if not may_try or turn == tries - 1:
                    raise last from error
                await self._clock.sleep(_PAUSES_S[min(turn, 1)])
            else:
                if self._observe is not None:
                    took_s = self._clock.monotonic() - begun_s
                    for name in names:
                        self._observe(name, took_s)
                return done
        raise AssertionError

    async def _run(self, name: str, shard: int, *args: Argument) -> Any:  # noqa: ANN401 - a script's reply, narrowed by its caller
        script, client = self._scripts[name], self._commands[shard]
        full: list[Argument] = [keys.tag(shard), *args]
        return await self._try(lambda: script.run(client, [keys.gate(shard)], full), names=(name,))

    async def _trip(self, shard: int, calls: Sequence[_Call]) -> list[Any]:
        """Run scripts in one pipeline; each result is looked at by itself."""
        client, gate, tag = self._commands[shard], keys.gate(shard), keys.tag(shard)

        async def act() -> list[Any]:
            pipe = client.pipeline(transaction=False)
            for name, args in calls:
                pipe.evalsha(self._scripts[name].sha, 1, gate, tag, *args)
            results = await pipe.execute(raise_on_error=False)
            for i, result in enumerate(results):
                if isinstance(result, NoScriptError):
                    name, args = calls[i]
                    results[i] = await client.eval(self._scripts[name].text, 1, gate, tag, *args)
            return list(results)

        results = await self._try(act, names={name for name, _ in calls})
        return [error_of(x) if isinstance(x, Exception) else x for x in results]

    async def visit(self, script: Script, names: list[str], args: list[Argument]) -> object:
        """Run a script about visitors (`api.sessions`); its keys carry the tag `{v}`."""
        return await self._try(lambda: script.run(self.visitors, names, args))

    # -- jobs ------------------------------------------------------------------------------

    async def stage(self, job_id: str, first_chunk: int, chunks: list[bytes]) -> None:
        """Append encoded chunks, together at most 1 MB, before the job is known."""
        await self._run("stage", keys.shard_of(job_id), job_id, first_chunk, *chunks)

    async def submit(self, spec: JobSpec) -> SubmitResult:
        """Make a staged job known and release its first portions."""
        reply = await self._run("submit", keys.shard_of(spec.id), spec.id, *hash_of(spec))
        return submitted_of(reply)

    async def restore(
        self,
        spec: JobSpec,
        states: bytes,
        cursor: int,
        counters: dict[str, int],
        also: Mapping[str, Argument] | None = None,
    ) -> SubmitResult:
        """Make a lost job known again, with its states; chunks from `cursor` on are staged.

        Args:
            spec: what it is; nothing beyond its `reserved` is released.
            states: one byte a recipient.
            cursor: the first pending position.
            counters: name → value.
            also: further fields of its hash: its receipts; its `state`, when it was stopped.
        """
        flat: list[Argument] = [x for pair in counters.items() for x in pair]
        reply = await self._run(
            "restore",
            keys.shard_of(spec.id),
            spec.id,
            states,
            cursor,
            len(flat),
            *flat,
            *hash_of(spec),
            *(x for pair in (also or {}).items() for x in pair),
        )
        return submitted_of(reply)

    async def control(
        self, job_id: str, action: str, *, by: str = "", reason: str = "", value: str = ""
    ) -> ControlResult:
        """Pause, resume, cancel or expire a job, or change its rate, priority or times.

        Args:
            job_id: which.
            action: what is to become of it.
            by: who wants it; `system` when nobody does.
            reason: why; a job shows it while it is paused.
            value: of rate, priority and times; with `resume`, the reasons for which `system` may
                have paused it, by spaces: a job that is paused for another stays as it is.
        """
        kind, state, version, event = await self._run(
            "control", keys.shard_of(job_id), job_id, action, by, reason, value
        )
        word = cast("Literal['ok', 'same', 'conflict', 'gone']", text_of(kind))
        return ControlResult(word, text_of(state), int(version), text_of(event))

    async def reserve(self, job_id: str, mark: int) -> None:
        """Raise the position up to which a job may be released."""
        await self._run("reserve", keys.shard_of(job_id), job_id, mark)

    async def archived(self, job_id: str, version: int) -> None:
        """Start the TTL of a job whose end PostgreSQL has committed."""
        ttl = self.settings.job_ttl_s
        await self._batches[keys.shard_of(job_id)].run(("archived", [job_id, version, ttl]))

    async def totals(
        self, job_id: str, version: int, delivered: int, read: int, undelivered: int
    ) -> None:
        """Set a job's receipts when `version` is newer than what Redis has."""
        await self._run(
            "totals", keys.shard_of(job_id), job_id, version, delivered, read, undelivered
        )

    async def trips(self, job_id: str, count: int, reason: int) -> bool:
        """Count in a job's breaker what webhooks told of it; tell whether it opened.

        Args:
            job_id: which.
            count: content errors so far, of the whole job.
            reason: of most of them, as in a fact.
        """
        shard = keys.shard_of(job_id)
        return text_of(await self._run("trips", shard, job_id, count, reason)) == "1"

    async def exists(self, job_ids: list[str]) -> list[bool]:
        """Tell for each job whether Redis knows it; one pipeline a shard."""
        found: dict[str, bool] = {}
        for shard, ids in self._by_shard(job_ids).items():
            client = self._commands[shard]

            async def act(client: Redis = client, ids: list[str] = ids) -> list[Any]:
                pipe = client.pipeline(transaction=False)
                for job_id in ids:
                    pipe.exists(keys.job(job_id))
                return list(await pipe.execute())

            found.update(zip(ids, map(bool, await self._try(act)), strict=True))
        return [found[job_id] for job_id in job_ids]

    async def states(self, job_id: str) -> bytes:
        """Return a job's state bytes; empty when Redis does not know the job."""
        client = self._commands[keys.shard_of(job_id)]
        return cast("bytes", await self._try(lambda: client.get(keys.states(job_id))) or b"")

    async def message(self, job_id: str) -> JobMessage | None:
        """Return what a worker must know of a job to send it; None when it is gone."""
        reply = await self._messages[keys.shard_of(job_id)].run(job_id)
        sender, message, on_unknown, chunk_size, created, scheduled, category = reply
        if sender is None:
            return None
        due_ms = max(int(created or 0), int(scheduled or 0))
        return JobMessage(
            text_of(sender),
            bytes(message),
            text_of(on_unknown),
            int(chunk_size),
            due_ms,
            text_of(category or b""),
        )

    async def _read_messages(self, shard: int, job_ids: Sequence[str]) -> list[Any]:
        client = self._commands[shard]

        async def act() -> list[Any]:
            pipe = client.pipeline(transaction=False)
            for job_id in job_ids:
                pipe.hmget(keys.job(job_id), _OF_MESSAGE)
            return list(await pipe.execute())

        return list(await self._try(act))

    async def statuses(self, job_ids: list[str]) -> list[JobStatus | None]:
        """Return what Redis knows of each job; two pipelines a shard: jobs, then their senders."""
        found: dict[str, JobStatus] = {}
        for shard, ids in self._by_shard(job_ids).items():
            hashes, gate, now_ms = await self._read_hashes(shard, ids)
            known = sorted({text_of(h["sender"]) for h in hashes if h})
            senders = {s.id: s for s in await self._sender_statuses(shard, known)}
            for job_id, fields in zip(ids, hashes, strict=True):
                if fields:
                    sender = senders[text_of(fields["sender"])]
                    found[job_id] = status_of(job_id, fields, sender, gate, now_ms)
        return [found.get(job_id) for job_id in job_ids]

    async def _read_hashes(
        self, shard: int, ids: list[str]
    ) -> tuple[list[dict[str, bytes]], dict[str, bytes], int]:
        client = self._commands[shard]

        async def act() -> list[Any]:
            pipe = client.pipeline(transaction=False)
            for job_id in ids:
                pipe.hgetall(keys.job(job_id))
            pipe.hmget(keys.gate(shard), ["off", "unreachable"])
            pipe.zcard(f"{keys.tag(shard)}off")
            pipe.time()
            return list(await pipe.execute())

        *raw, gate, switched, time = await self._try(act)
        off = b"1" if gate[0] == b"1" or switched else b""
        now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
        hashes = [{text_of(k): v for k, v in h.items()} for h in raw]
        return hashes, {"off": off, "unreachable": gate[1] or b""}, now_ms

    # -- senders ---------------------------------------------------------------------------

    async def sender(
        self,
        shard: int,
        sender_id: str,
        *,
        version: int,
        rate: float,
        burst: float,
        paused: bool,
        why: str,
        blocked_until_ms: int = 0,
    ) -> bool:
        """Tell a shard of a sender; False when it has seen this version and rate.

        Args:
            shard: where the sender lives.
            sender_id: which one.
            version: of its row in PostgreSQL.
            rate: messages per second; 0 = no limit.
            burst: messages; 0 = a quarter of a second of the rate.
            paused: nothing is released until it is not.
            why: shown as the reason of a pause or block.
            blocked_until_ms: nothing is released before, server clock; 0 = not blocked.
        """
        reply = await self._run(
            "sender", shard, sender_id, version, rate, burst, int(paused), why, blocked_until_ms
        )
        return text_of(reply) == "1"

    async def sender_versions(self, shard: int, ids: list[str]) -> list[int]:
        """Return the version Redis has of each sender; 0 = none."""
        client = self._commands[shard]

        async def act() -> list[Any]:
            pipe = client.pipeline(transaction=False)
            for sender_id in ids:
                pipe.hget(keys.sender(shard, sender_id), "version")
            return list(await pipe.execute())

        return [int(v or 0) for v in await self._try(act)] if ids else []

    async def sender_status(self, shard: int, sender_id: str) -> SenderStatus:
        """Return what Redis knows of a sender."""
        return (await self._sender_statuses(shard, [sender_id]))[0]

    async def _sender_statuses(self, shard: int, ids: list[str]) -> list[SenderStatus]:
        if not ids:
            return []
        client = self._commands[shard]

        async def act() -> list[Any]:
            pipe = client.pipeline(transaction=False)
            for sender_id in ids:
                pipe.hgetall(keys.sender(shard, sender_id))
                pipe.zcard(keys.sender_jobs(shard, sender_id))
            return list(await pipe.execute())

        raw = await self._try(act)
        out = []
        for i, sender_id in enumerate(ids):
            fields = {text_of(k): v for k, v in raw[2 * i].items()}
            out.append(sender_of(sender_id, fields, int(raw[2 * i + 1])))
        return out

    # -- claims ----------------------------------------------------------------------------

    async def claim(self, shard: int, worker: str, count: int, block_ms: int) -> list[Claim]:
        """Take up to `count` claims; wait up to `block_ms` for the first. Never cancel it."""
        client, key = self._reads[shard], keys.ready(shard)

        async def act() -> list[Any]:
            reply = await client.xreadgroup(
                keys.GROUP_WORKERS, worker, {key: ">"}, count=count, block=block_ms
            )
            return entries_of(reply)

        entries = await self._read(shard, act, keys.GROUP_WORKERS, key)
        return [claim_of(shard, entry, fields) for entry, fields in entries]

    async def _read(
        self, shard: int, act: Callable[[], Awaitable[list[Any]]], group: str, key: str
    ) -> list[Any]:
        try:
            return await act()
        except ResponseError as error:
            if "NOGROUP" in str(error):
                await self._make_group(shard, key, group)
                return []
            raise error_of(error) from error
        except (RedisError, OSError, TimeoutError) as error:
            raise error_of(error) from error

    async def _make_group(self, shard: int, key: str, group: str) -> None:
        # From 0: a group made at `$` misses what was there before (pitfalls S10).
        try:
            await self._commands[shard].xgroup_create(key, group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise error_of(error) from error
        except (RedisError, OSError, TimeoutError) as error:
            raise error_of(error) from error

    async def prepare(self, shard: int) -> None:
        """Make both groups of a shard; harmless when they are there."""
        await self._make_group(shard, keys.ready(shard), keys.GROUP_WORKERS)
        await self._make_group(shard, keys.outcomes(shard), keys.GROUP_ARCHIVE)

    async def begin(self, worker: str, claims: list[Claim]) -> list[Begun]:
        """Ask for each claim of one shard whether, when and with what it may start."""
        if not claims:
            return []
        replies = await asyncio.gather(
            *(
                self._batches[c.shard].run(("begin", [worker, c.entry, c.job, c.chunk]))
                for c in claims
            )
        )
        return [begun_of(reply) for reply in replies]

    async def report(
        self,
        worker: str,
        claim: Claim,
        *,
        facts: bytes = b"",
        record: bytes = b"",
        intents: bytes = b"",
        throttled_ms: int | None = None,
        latency_ms: int = 0,
        done: bool = False,
    ) -> Reported:
        """Tell what is known of a claim's recipients.

        Args:
            worker: consumer name.
            claim: the claim, whose entry id proves the ownership.
            facts: packed `Fact`s, 9 bytes each.
            record: msgpack list of `Detail` for the archive.
            intents: packed `Intent`s of what may leave next.
            throttled_ms: Graph said slow down, for so long (0 = it did not say how long).
            latency_ms: mean answer time, with `done`.
            done: close the claim; every `retry` and `pending` is in `facts` with its due.
        """
        throttled: Argument = "" if throttled_ms is None else throttled_ms
        rest: list[Argument] = [claim.offsets, latency_ms] if done else [intents]
        args: list[Argument] = [worker, claim.entry, claim.job, claim.chunk, facts, record]
        call = ("close" if done else "report", [*args, throttled, *rest])
        reply = await self._batches[claim.shard].run(call)
        return Reported(text_of(reply[0]) == "1", text_of(reply[1]), int(reply[2]), bool(reply[3]))

    async def tick(
        self,
        shard: int,
        worker: str,
        *,
        slots: int,
        told: str = "",
        entries: Sequence[str] = (),
        jobs: Sequence[str] = (),
        unreachable: bool = False,
        stale: bool = False,
    ) -> Ticked:
        """Give a sign of life, and learn what must stop; never repeated by the door itself."""
        s = self.settings
        args: list[Argument] = [
            worker,
            slots,
            s.bulk_concurrency,
            s.worker_lease_ms,
            told,
            s.outcomes_max,
            s.events_max,
            "1" if unreachable else "2" if stale else "",
            len(entries),
            *entries,
            *jobs,
        ]
        script, client = self._scripts["tick"], self._commands[shard]
        full: list[Argument] = [keys.tag(shard), *args]

        async def act() -> Any:  # noqa: ANN401 - a script's reply, narrowed below
            try:
                return await script.run(client, [keys.gate(shard)], full)
            except ResponseError as error:
                # Readers make it again, but not whose slots are full or whose lease has run out:
                # without this tick nobody would ever have one again.
                if "NOGROUP" in str(error):
                    await self._make_group(shard, keys.ready(shard), keys.GROUP_WORKERS)
                raise

        reply: Any = await self._try(act, tries=1, names=("tick",))
        return Ticked(
            wiped=text_of(reply[0]) == "wiped",
            now_ms=int(reply[1]),
            run=text_of(reply[2]),
            held_ms=int(reply[3]),
            off=text_of(reply[4]) == "1",
            next_timer_ms=int(reply[5]),
            stop=[text_of(job) for job in reply[6]],
            reaped=[text_of(name) for name in reply[7]],
            requeued=int(reply[8]),
        )

    async def leave(self, shard: int, worker: str) -> bool:
        """Put back what a worker holds and forget it; False: call again."""
        return text_of(await self._run("leave", shard, worker)) == "1"

    async def hold(self, shard: int, run: str) -> str:
        """Say which server answers; returns `born`. What every new connection does first."""
        return text_of(await self._run("hold", shard, run, self.settings.worker_lease_ms))

    async def switch(self, shard: int, process: str, for_ms: int) -> bool:
        """Switch sending off in a process's name for `for_ms` (0 = on again); returns: is off."""
        return text_of(await self._run("switch", shard, process, for_ms)) == "1"

    # -- outcomes and events ----------------------------------------------------------------

    async def low(self, shard: int, count: int = 200) -> list[tuple[str, int, int]]:
        """Return jobs close to their mark as (job, reserved, step); two round trips."""
        client = self._commands[shard]
        members = await self._try(lambda: client.srandmember(keys.low(shard), count))
        ids = [text_of(member) for member in members or []]
        if not ids:
            return []

        async def act() -> list[Any]:
            pipe = client.pipeline(transaction=False)
            for job_id in ids:
                pipe.hmget(keys.job(job_id), ["reserved", "step"])
            return list(await pipe.execute())

        rows = await self._try(act)
        return [(j, int(r[0] or 0), int(r[1] or 0)) for j, r in zip(ids, rows, strict=True)]

    async def read_outcomes(
        self,
        shard: int,
        consumer: str,
        count: int = 200,
        block_ms: int = 500,
        *,
        given: bool = False,
    ) -> list[OutcomeEntry]:
        """Take new entries for the archive; wait up to `block_ms` for the first.

        With `given`, return at once what this consumer was given and never acknowledged: a reply
        that was lost on its way.
        """
        client, key = self._reads[shard], keys.outcomes(shard)
        start = "0" if given else ">"

        async def act() -> list[Any]:
            reply = await client.xreadgroup(
                keys.GROUP_ARCHIVE, consumer, {key: start}, count=count, block=block_ms
            )
            return entries_of(reply)

        entries = await self._read(shard, act, keys.GROUP_ARCHIVE, key)
        return [outcome_of(entry, fields) for entry, fields in entries]

    async def claim_stale_outcomes(
        self, shard: int, consumer: str, cursor: str, idle_ms: int = 30_000
    ) -> tuple[str, list[OutcomeEntry]]:
        """Take over entries whose reader died; carry the returned cursor (pitfalls S4)."""
        client, key = self._commands[shard], keys.outcomes(shard)
        try:
            reply = await client.xautoclaim(
                key, keys.GROUP_ARCHIVE, consumer, idle_ms, start_id=cursor, count=200
            )
        except ResponseError as error:
            if "NOGROUP" in str(error):
                await self._make_group(shard, key, keys.GROUP_ARCHIVE)
                return "0-0", []
            raise error_of(error) from error
        except (RedisError, OSError, TimeoutError) as error:
            raise error_of(error) from error
        entries = [
            outcome_of(text_of(e), {text_of(k): v for k, v in f.items()}) for e, f in reply[1] if f
        ]
        return text_of(reply[0]), entries

    async def ack_outcomes(self, shard: int, entries: list[str]) -> None:
        """Acknowledge and delete entries whose effect is committed."""
        if not entries:
            return
        client, key = self._commands[shard], keys.outcomes(shard)

        async def act() -> list[Any]:
            pipe = client.pipeline(transaction=True)
            pipe.xack(key, keys.GROUP_ARCHIVE, *entries)
            pipe.xdel(key, *entries)
            return list(await pipe.execute())

        await self._try(act)

    async def read_events(
        self, shard: int, after: str, block_ms: int = 1000, count: int = 500
    ) -> list[EventNote]:
        """Return change notes after an id; wait up to `block_ms` for the first."""
        client, key = self._reads[shard], keys.events(shard)

        async def act() -> list[Any]:
            reply = await client.xread({key: after}, count=count, block=block_ms)
            return entries_of(reply)

        try:
            entries = await act()
        except (RedisError, OSError, TimeoutError) as error:
            raise error_of(error) from error
        return [
            EventNote(entry, text_of(fields["j"]), fields.get("e") == b"1")
            for entry, fields in entries
        ]

    async def last_event(self, shard: int) -> str:
        """Return the id of the newest change note; `0-0` when there is none."""
        client = self._commands[shard]
        last = await self._try(lambda: client.xrevrange(keys.events(shard), count=1))
        return text_of(last[0][0]) if last else "0-0"

    # -- the server ------------------------------------------------------------------------

    async def born(self, shard: int) -> str:
        """Return the id written when the shard was first used; '' after a wipe."""
        client = self._commands[shard]
        return text_of(await self._try(lambda: client.hget(keys.gate(shard), "born")) or b"")

    async def give_born(self, shard: int, born: str) -> str:
        """Write `born` if there is none; return the one in force."""
        client = self._commands[shard]
        await self._try(lambda: client.hsetnx(keys.gate(shard), "born", born))
        return await self.born(shard)

    async def probe(self) -> None:
        """Write to every shard: a full disk refuses writes and answers reads (pitfalls V2)."""
        for shard, client in enumerate(self._commands):
            key = f"{keys.tag(shard)}probe"

            async def act(client: Redis = client, key: str = key) -> object:
                return await client.set(key, "1", ex=10)

            await self._try(act, tries=1)

    async def denied(self, shard: int) -> list[str]:
        """Return the commands we use and this user may not, sorted.

        Tried on a key of their own that is a string, which most of them refuse to touch; a right
        is asked for before the type.
        """
        client, key = self._commands[shard], f"{keys.tag(shard)}probe"

        async def act() -> list[Any]:
            pipe = client.pipeline(transaction=False)
            for words in _USED:
                pipe.execute_command(*(key if word == "KEY" else word for word in words.split()))
            return list(await pipe.execute(raise_on_error=False))

        said = await self._try(act, tries=1)
        found = zip(_USED, said, strict=True)
        return sorted(w.split()[0] for w, answer in found if isinstance(answer, NoPermissionError))

    async def server_info(self, shard: int = 0) -> ServerInfo:
        """Return what the server says of itself."""
        client = self._commands[shard]
        info: dict[str, Any] = await self._try(client.info)
        return ServerInfo(
            version=str(info.get("valkey_version") or info.get("redis_version") or ""),
            run=str(info.get("run_id", "")),
            used_bytes=int(info.get("used_memory", 0)),
            max_bytes=int(info.get("maxmemory", 0)),
            is_aof=bool(info.get("aof_enabled", 0)),
            policy=str(info.get("maxmemory_policy", "")),
            is_persistence_ok=info.get("aof_last_write_status", "ok") == "ok",
        )

    async def require_durable(self) -> None:
        """Refuse a server that may forget what it was told (pitfalls V1).

        Raises:
            SettingsError: no append-only file, or keys may be evicted, and ALLOW_VOLATILE is not
                set. The process must not start.
        """
        if self.settings.allow_volatile:
            return
        for shard in range(self.shards):
            info = await self.server_info(shard)
            if not info.is_aof or info.policy != "noeviction":
                raise SettingsError(
                    "REDIS_URL: this server may lose jobs: it needs `appendonly yes` and "
                    "`maxmemory-policy noeviction`; ALLOW_VOLATILE=1 accepts it as it is"
                )

    async def stats(self, shard: int, minutes: list[int]) -> ShardStats:
        """Return what a shard is doing; `minutes` are epoch minutes. Two pipelines."""
        client, tag = self._commands[shard], keys.tag(shard)
        sender_ids = await self._sender_ids(shard)

        async def act() -> list[Any]:
            pipe = client.pipeline(transaction=False)
            pipe.xlen(keys.ready(shard))
            pipe.xlen(keys.outcomes(shard))
            pipe.xlen(keys.events(shard))
            pipe.zrange(f"{tag}workers", 0, -1, withscores=True)
            pipe.hvals(f"{tag}slots")
            pipe.time()
            pipe.hget(keys.gate(shard), "off")
            pipe.zcard(f"{tag}off")
            pipe.xrange(keys.ready(shard), count=1)
            pipe.xrange(keys.outcomes(shard), count=1)
            for minute in minutes:
                pipe.hgetall(f"{tag}minute:{minute}")
            return list(await pipe.execute())

        raw = await self._try(act)
        ready, outcomes, events, workers, slots, time, off, switched, head, oldest, *counts = raw
        now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
        return ShardStats(
            ready=ready,
            outcomes=outcomes,
            outcomes_pending=await self._pending(shard),
            events=events,
            ready_age_ms=age_of(now_ms, head),
            outcomes_age_ms=age_of(now_ms, oldest),
            workers={text_of(w): max(0, now_ms - int(at)) for w, at in workers},
            slots=sum(int(n) for n in slots),
            senders=await self._sender_statuses(shard, sender_ids),
            minutes=[{text_of(k): int(v) for k, v in c.items()} for c in counts],
            is_off=off == b"1" or bool(switched),
        )

    async def is_off(self) -> bool:
        """Tell whether any process, or an operator, holds the pool now; a pipeline a shard."""
        for shard, client in enumerate(self._commands):

            async def act(client: Redis = client, shard: int = shard) -> list[Any]:
                pipe = client.pipeline(transaction=False)
                pipe.hget(keys.gate(shard), "off")
                pipe.zrange(f"{keys.tag(shard)}off", -1, -1, withscores=True)
                pipe.time()
                return list(await pipe.execute())

            flag, last, time = await self._try(act)
            now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
            if flag == b"1" or (last and last[0][1] >= now_ms):
                return True
        return False

    async def waiting(self, shard: int) -> Waiting:
        """Return what workers have of a shard's claims and what nobody has; two pipelines."""
        client, key = self._commands[shard], keys.ready(shard)

        async def look() -> list[Any]:
            pipe = client.pipeline(transaction=False)
            pipe.xinfo_groups(key)
            pipe.hgetall(f"{keys.tag(shard)}slots")
            pipe.time()
            return list(await pipe.execute(raise_on_error=False))

        groups, slots, time = await self._try(look)
        if isinstance(groups, Exception):  # the stream is not there before the first worker is
            groups = []
        if isinstance(time, Exception) or isinstance(slots, Exception):
            raise QueueError("Redis does not answer", refused=False)
        group: dict[str, Any] = next(
            (g for g in groups if g["name"] == keys.GROUP_WORKERS.encode()), {}
        )
        after = text_of(group.get("last-delivered-id", b"0-0"))
        head: Any = await self._try(lambda: client.xrange(key, min=f"({after}", count=1))
        now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
        draining = [text_of(name) for name, count in slots.items() if count == b"0"]
        return Waiting(int(group.get("pending", 0)), age_of(now_ms, head), draining)

    async def phases(self, job_ids: Sequence[str]) -> tuple[int, int]:
        """Return recipients in flight and retrying, summed over jobs; one pipeline a shard."""
        in_flight = retrying = 0
        for shard, ids in self._by_shard(job_ids).items():
            client = self._commands[shard]

            async def act(client: Redis = client, ids: list[str] = ids) -> list[Any]:
                pipe = client.pipeline(transaction=False)
                for job_id in ids:
                    pipe.hmget(keys.job(job_id), ["in_flight", "retrying"])
                return list(await pipe.execute())

            for row in await self._try(act):
                in_flight += int(row[0] or 0)
                retrying += int(row[1] or 0)
        return in_flight, retrying

    async def _pending(self, shard: int) -> int:
        client = self._commands[shard]
        try:
            summary = await client.xpending(keys.outcomes(shard), keys.GROUP_ARCHIVE)
        except ResponseError:
            return 0
        except (RedisError, OSError, TimeoutError) as error:
            raise error_of(error) from error
        return int(summary["pending"])

    async def _sender_ids(self, shard: int) -> list[str]:
        client, prefix = self._commands[shard], keys.sender(shard, "")
        found = set()

        async def act() -> None:
            async for key in client.scan_iter(match=f"{prefix}*", count=500):
                name = text_of(key)[len(prefix) :]
                if not name.endswith(":jobs"):
                    found.add(name)

        await self._try(act)
        return sorted(found)

    def _by_shard(self, job_ids: Sequence[str]) -> dict[int, list[str]]:
        out: dict[int, list[str]] = {}
        for job_id in job_ids:
            shard = keys.shard_of(job_id)
            if shard < self.shards:
                out.setdefault(shard, []).append(job_id)
        return out


def _hold_hook(shard: int, settings: Settings) -> Callable[[Connection], Awaitable[None]]:
    """Return what each new connection does first: tell the shard which server this is."""
    script = Script("hold")

    async def hook(connection: Connection) -> None:
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        info = await connection.read_response()
        text = text_of(info if not isinstance(info, dict) else "")
        run = next(
            (line[7:].strip() for line in text.splitlines() if line.startswith("run_id:")), ""
        )
        await connection.send_command(
            "EVAL", script.text, 1, keys.gate(shard), keys.tag(shard), run, settings.worker_lease_ms
        )
        await connection.read_response()

    return hook
