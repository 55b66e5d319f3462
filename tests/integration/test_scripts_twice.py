"""Every Lua script run twice leaves what it left once; a stale claim can only tell facts."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from shared.clock import Clock
from shared.ids import Ids
from shared.models import Chunk, Claim, Fact, Intent, JobSpec, Reason, Refused, State, state_of
from shared.queue import Queue
from shared.scripts import Script
from tests.conftest import IS_FAKE, ROOT
from tests.integration.test_queue_core import MESSAGE, add_sender, queue, submit, take, url

__all__ = ["queue", "url"]
SCRIPTS = sorted(path.stem for path in Path(ROOT / "shared" / "lua").glob("*.lua"))
SHARD = "{s0}:"
Call = Callable[[], Awaitable[object]]
Made = Callable[[Queue, Any], Awaitable[Call]]


class Case(NamedTuple):
    """One way to run a script.

    Attributes:
        script: which.
        made: brings about what it runs on; returns the call.
        stamps: what may differ: `key field` of hashes, `key` of scores; both are patterns.
    """

    script: str
    made: Made
    stamps: tuple[str, ...] = ()


CASES: dict[str, Case] = {}


def case(script: str, *stamps: str) -> Callable[[Made], Made]:
    def keep(made: Made) -> Made:
        CASES[made.__name__] = Case(script, made, stamps)
        return made

    return keep


async def dump(raw: Any, stamps: tuple[str, ...] = ()) -> dict[str, object]:
    """Return every key: its value, whether it has a lifetime, and who has what pending."""

    def is_stamp(name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in stamps)

    out: dict[str, object] = {}
    for key in sorted([key async for key in raw.scan_iter(count=1000)]):
        name, kind = key.decode(), (await raw.type(key)).decode()
        value: object
        if kind == "hash":
            fields = {k.decode(): v for k, v in (await raw.hgetall(key)).items()}
            value = {k: "*" if is_stamp(f"{name} {k}") else v for k, v in fields.items()}
        elif kind == "zset":
            pairs = await raw.zrange(key, 0, -1, withscores=True)
            value = sorted(m if is_stamp(name) else (m, score) for m, score in pairs)
        elif kind == "stream":
            value = [await raw.xrange(key)]
            for group in await raw.xinfo_groups(key):
                pending = await raw.xpending_range(key, group["name"], "-", "+", 1000)
                value.append([(p["message_id"], p["consumer"]) for p in pending])
        elif kind == "set":
            value = sorted(await raw.smembers(key))
        else:
            value = await raw.get(key)
        out[name] = (value, await raw.ttl(key) >= 0)
    return out


@pytest.fixture
async def raw(queue: Queue) -> AsyncIterator[Any]:
    yield queue.visitors
    await queue.visitors.flushall()


# -- claims ----------------------------------------------------------------------------------


async def started(queue: Queue, count: int = 120) -> tuple[str, list[Claim]]:
    await add_sender(queue)
    job = await submit(queue, count)
    return job, [claim for claim, _ in await take(queue)]


def facts_of(state: State, *indices: int, reason: int = 0, due_s: int = 0) -> bytes:
    return b"".join(Fact(i, state, 1, reason, due_s).pack() for i in indices)


def intents_of(*indices: int) -> bytes:
    return b"".join(Intent(i, 1).pack() for i in indices)


@case("begin", r".*:sender:s1 bucket_ms")  # its header: a late claim may be charged twice
async def begin_late(queue: Queue, raw: Any) -> Call:
    await add_sender(queue, rate=400)
    await submit(queue, 100)
    await make_late(queue, raw)
    claims = await queue.claim(0, "w1", 1, 50)
    return lambda: queue.begin("w1", claims)


async def make_late(queue: Queue, raw: Any) -> None:
    """Put the first claim back with a start long ago, and nothing beside it."""
    [claim] = await queue.claim(0, "w1", 1, 50)
    [(_, fields)] = await raw.xrange(f"{SHARD}ready", claim.entry, claim.entry)
    await raw.xack(f"{SHARD}ready", "workers", claim.entry)
    await raw.xtrim(f"{SHARD}ready", maxlen=0)
    await raw.xadd(f"{SHARD}ready", {**fields, b"s": b"1", b"r": b"1"})


@case("begin")
async def begin_gone(queue: Queue, raw: Any) -> Call:
    job, claims = await started(queue, 10)
    await raw.delete(f"{SHARD}job:{job}:chunks")
    return lambda: queue.begin("w1", claims)


@case("begin")
async def begin_back(queue: Queue, raw: Any) -> Call:
    await add_sender(queue, rate=100)
    await submit(queue, 60)
    await make_late(queue, raw)
    await raw.hset(f"{SHARD}sender:s1", "bucket_ms", Clock().now_ms() + 60_000)
    claims = await queue.claim(0, "w1", 1, 50)
    return lambda: queue.begin("w1", claims)


@case("report")
async def report_intents(queue: Queue, raw: Any) -> Call:
    assert raw
    _, [claim, *_] = await started(queue)
    return lambda: queue.report("w1", claim, intents=intents_of(0, 1, 2))


@case("report")
async def report_outcomes_and_intents(queue: Queue, raw: Any) -> Call:
    assert raw
    _, [claim, *_] = await started(queue)
    await queue.report("w1", claim, intents=intents_of(*range(6)))
    facts = (
        facts_of(State.SENT, 0, 1)
        + facts_of(State.FAILED, 2, reason=Reason.POISON)
        + facts_of(State.UNKNOWN, 3, reason=Reason.TIMEOUT)
        + facts_of(State.RETRY, 4, due_s=30)
        + facts_of(State.PENDING, 5)
    )
    return lambda: queue.report("w1", claim, facts=facts, record=b"\x90", intents=intents_of(7))


@case("report", r".*:sender:s1 (blocked_until|bucket_ms|rate_at)", r"{s0}:timers")
async def report_throttled(queue: Queue, raw: Any) -> Call:
    assert raw
    _, [claim, *_] = await started(queue)
    await queue.report("w1", claim, intents=intents_of(0))
    facts = facts_of(State.PENDING, 0)
    return lambda: queue.report("w1", claim, facts=facts, record=b"\x90", throttled_ms=5000)


@case("report")
async def report_until_the_breaker_opens(queue: Queue, raw: Any) -> Call:
    assert raw
    _, [claim, *_] = await started(queue)
    await queue.report("w1", claim, intents=intents_of(*range(30)))
    facts = facts_of(State.FAILED, *range(30), reason=0x8000 | 8)
    return lambda: queue.report("w1", claim, facts=facts, record=b"\x90")


@case("close")
async def close_with_a_rest(queue: Queue, raw: Any) -> Call:
    assert raw
    _, [claim, *_] = await started(queue)
    await queue.report("w1", claim, intents=intents_of(*range(4)))
    facts = (
        facts_of(State.SENT, 0) + facts_of(State.RETRY, 1, due_s=60) + facts_of(State.PENDING, 2)
    )
    return lambda: queue.report("w1", claim, facts=facts, record=b"\x90", latency_ms=100, done=True)


@case("close")
async def close_the_last(queue: Queue, raw: Any) -> Call:
    assert raw
    _, [claim] = await started(queue, 3)
    facts = facts_of(State.SENT, 0, 1, 2)
    return lambda: queue.report("w1", claim, facts=facts, record=b"\x90", done=True)


@case("close")
async def close_after_a_cancel(queue: Queue, raw: Any) -> Call:
    assert raw
    job, [claim] = await started(queue, 3)
    await queue.control(job, "cancel", by="u1")
    return lambda: queue.report("w1", claim, done=True)


# `cap` counts the slots before the dead leave: it is right at the next tick.
TICK = (rf"{SHARD}gate (gated_at|calm_until|flushed_at|cap)", rf"{SHARD}workers")


@case("tick", *TICK)
async def tick_that_reaps(queue: Queue, raw: Any) -> Call:
    await add_sender(queue)
    await submit(queue, 120)
    await queue.tick(0, "dead", slots=4)
    await take(queue, "dead")
    await raw.zadd(f"{SHARD}workers", {"dead": 1})

    async def tick() -> None:
        await open_gate(raw)
        await queue.tick(0, "w1", slots=4)

    return tick


async def open_gate(raw: Any) -> None:
    """Let the next tick do all it may do: else one within 500 ms is shut out by the one before."""
    await raw.hset(f"{SHARD}gate", mapping={"gated_at": 0, "flushed_at": 0})


@case("leave")
async def leave(queue: Queue, raw: Any) -> Call:
    assert raw
    await started(queue)
    await queue.tick(0, "w1", slots=4)
    return lambda: queue.leave(0, "w1")


# -- jobs ------------------------------------------------------------------------------------


def staged(count: int) -> tuple[JobSpec, list[bytes]]:
    chunks = [
        msgspec.msgpack.encode(Chunk([15550000000 + i for i in range(first, first + 50)]))
        for first in range(0, count, 50)
    ]
    job = Ids().job_id(0)
    return JobSpec(job, "s1", "u1", count, 50, count, count, MESSAGE, [], created_ms=1), chunks


@case("stage")
async def stage(queue: Queue, raw: Any) -> Call:
    assert raw
    spec, chunks = staged(100)
    return lambda: queue.stage(spec.id, 0, chunks)


@case("submit")
async def submit_job(queue: Queue, raw: Any) -> Call:
    assert raw
    await add_sender(queue)
    spec, chunks = staged(100)
    await queue.stage(spec.id, 0, chunks)
    return lambda: queue.submit(spec)


@case("restore")
async def restore(queue: Queue, raw: Any) -> Call:
    assert raw
    await add_sender(queue)
    spec, chunks = staged(100)
    await queue.stage(spec.id, 0, chunks)
    states = bytes([1 << 3 | State.SENT, 1 << 3 | State.UNKNOWN]) + bytes(98)
    return lambda: queue.restore(spec, states, 2, {"sent": 1, "unknown": 1})


@case("reserve")
async def reserve(queue: Queue, raw: Any) -> Call:
    assert raw
    await add_sender(queue)
    job = await submit(queue, 200, reserved=50, step=50)
    return lambda: queue.reserve(job, 150)


@case("archived")
async def archived(queue: Queue, raw: Any) -> Call:
    assert raw
    job, [claim] = await started(queue, 3)
    facts = facts_of(State.SENT, 0, 1, 2)
    await queue.report("w1", claim, facts=facts, record=b"\x90", done=True)
    return lambda: queue.archived(job, 99)


@case("totals")
async def totals(queue: Queue, raw: Any) -> Call:
    assert raw
    job, _ = await started(queue)
    return lambda: queue.totals(job, 3, 2, 1, 0)


@case("trips")
async def trips_until_the_breaker_opens(queue: Queue, raw: Any) -> Call:
    assert raw
    job, [claim, *_] = await started(queue)
    facts = facts_of(State.SENT, *range(40))
    await queue.report("w1", claim, facts=facts, record=b"\x90")
    return lambda: queue.trips(job, 50, 40)


async def controlled(queue: Queue, *before: str) -> str:
    """Return a job with claims out, some of it not released, after some actions."""
    await add_sender(queue, rate=100)
    job = await submit(queue, 300)
    await take(queue)
    for action in before:
        await queue.control(job, action, by="u1")
    return job


@case("control")
async def control_pause(queue: Queue, raw: Any) -> Call:
    assert raw
    job = await controlled(queue)
    return lambda: queue.control(job, "pause", by="u1", reason="r")


@case("control")
async def control_resume(queue: Queue, raw: Any) -> Call:
    assert raw
    job = await controlled(queue, "pause")
    return lambda: queue.control(job, "resume", by="u1")


@case("control")
async def control_cancel(queue: Queue, raw: Any) -> Call:
    assert raw
    job = await controlled(queue)
    return lambda: queue.control(job, "cancel", by="u1")


@case("control", r".*:job:job_\w+ expires_ms")
async def control_expire(queue: Queue, raw: Any) -> Call:
    assert raw
    job = await controlled(queue)
    return lambda: queue.control(job, "expire", by="u1")


@case("control")
async def control_rate(queue: Queue, raw: Any) -> Call:
    assert raw
    job = await controlled(queue, "pause")
    return lambda: queue.control(job, "rate", by="u1", value="7")


@case("control")
async def control_priority(queue: Queue, raw: Any) -> Call:
    assert raw
    job = await controlled(queue, "pause")
    return lambda: queue.control(job, "priority", by="u1", value="16")


@case("control")
async def control_times(queue: Queue, raw: Any) -> Call:
    assert raw
    job = await controlled(queue, "pause")
    value = f"0 {Clock().now_ms() + 60_000}"
    return lambda: queue.control(job, "times", by="u1", value=value)


# -- senders, shards -------------------------------------------------------------------------


@case("sender")
async def sender_is_new(queue: Queue, raw: Any) -> Call:
    assert raw
    await submit(queue, 100)
    return lambda: add_sender(queue)


@case("sender")
async def sender_is_paused(queue: Queue, raw: Any) -> Call:
    assert raw
    await started(queue)
    return lambda: queue.sender(
        0, "s1", version=2, rate=5, burst=0, paused=True, why="operator", blocked_until_ms=0
    )


@case("hold")
async def hold(queue: Queue, raw: Any) -> Call:
    assert raw
    await started(queue)
    await queue.tick(0, "w1", slots=4)
    return lambda: queue.hold(0, "another")


@case("switch")
async def switch_off_for_good(queue: Queue, raw: Any) -> Call:
    assert raw
    await started(queue)
    return lambda: queue.switch(0, "", 1)


@case("switch", rf"{SHARD}off")
async def switch_off_by_a_process(queue: Queue, raw: Any) -> Call:
    assert raw
    await started(queue)
    return lambda: queue.switch(0, "p1", 60_000)


@case("switch")
async def switch_on(queue: Queue, raw: Any) -> Call:
    assert raw
    await add_sender(queue)
    await queue.switch(0, "p1", 60_000)
    await submit(queue, 100)
    return lambda: queue.switch(0, "p1", 0)


# -- visitors --------------------------------------------------------------------------------


def visit(queue: Queue, name: str, names: list[str], *args: str | int) -> Call:
    script = Script(f"visitor_{name}", shebang=not IS_FAKE)
    return lambda: queue.visit(script, names, [*args])


SESSION, USER = ["{v}:session:h"], ["{v}:user:u"]
LOGIN, QUOTA = ["{v}:login:a", "{v}:login:i"], ["{v}:quota:a", "{v}:quota:b"]


@case("visitor_open", r"\{v\}:session:h until")
async def visitor_open(queue: Queue, raw: Any) -> Call:
    assert raw
    return visit(queue, "open", [*SESSION, *USER], "h", "u", 600, 6000)


@case("visitor_look")
async def visitor_look_at_an_ended_one(queue: Queue, raw: Any) -> Call:
    await visit(queue, "open", [*SESSION, *USER], "h", "u", 600, 6000)()
    await raw.hset(SESSION[0], "until", 1)
    return visit(queue, "look", SESSION, 600)


@case("visitor_close")
async def visitor_close(queue: Queue, raw: Any) -> Call:
    assert raw
    await visit(queue, "open", [*SESSION, *USER], "h", "u", 600, 6000)()
    return visit(queue, "close", USER, "", "")


@case("visitor_login")
async def visitor_login_that_went_well(queue: Queue, raw: Any) -> Call:
    assert raw
    await visit(queue, "login", LOGIN, "0", 5, 300, 20)()
    return visit(queue, "login", LOGIN, "1", 5, 300, 20)


@case("visitor_quota")
async def visitor_quota(queue: Queue, raw: Any) -> Call:
    assert raw
    return visit(queue, "quota", QUOTA, "m", 3600, 10, 10)


@case("visitor_refund")
async def visitor_refund(queue: Queue, raw: Any) -> Call:
    assert raw
    await visit(queue, "quota", QUOTA, "m", 3600, 10, 10)()
    return visit(queue, "refund", QUOTA, "m")


@case("visitor_streams", r"\{v\}:streams p")
async def visitor_streams(queue: Queue, raw: Any) -> Call:
    assert raw
    return visit(queue, "streams", ["{v}:streams"], "p", "1 2 3")


# -- tests -----------------------------------------------------------------------------------


def test_every_script_is_run_twice() -> None:
    assert sorted({each.script for each in CASES.values()}) == SCRIPTS


@pytest.mark.parametrize("name", sorted(CASES))
async def test_a_script_run_twice_leaves_what_it_left_once(
    queue: Queue, raw: Any, name: str
) -> None:
    made = CASES[name]
    call = await made.made(queue, raw)
    before = await dump(raw)
    await call()
    assert await dump(raw) != before, "it did nothing, so that twice proves nothing"
    once = await dump(raw, made.stamps)
    await call()
    twice = await dump(raw, made.stamps)
    differ = {key for key in once | twice if once.get(key) != twice.get(key)}
    assert not {key: (once.get(key), twice.get(key)) for key in differ}


async def test_a_failed_login_counts_each_time_it_is_told(queue: Queue, raw: Any) -> None:
    # Its header says so: a lost reply counts a failure twice, which is the safe side.
    call = visit(queue, "login", LOGIN, "0", 5, 300, 20)
    await call()
    await call()
    assert await raw.hget(LOGIN[0], "n") == b"2"


async def stale(queue: Queue, raw: Any) -> tuple[str, Claim, Claim]:
    """Return a job, a claim as a dead worker has it, and the same as its new owner has it."""
    await add_sender(queue)
    job = await submit(queue, 50)
    await queue.tick(0, "dead", slots=4)
    [(old, _)] = await take(queue, "dead")
    await queue.report("dead", old, intents=intents_of(0, 1, 2))
    await raw.zadd(f"{SHARD}workers", {"dead": 1})
    await open_gate(raw)
    assert (await queue.tick(0, "w2", slots=4)).reaped == ["dead"]
    [(new, _)] = await take(queue, "w2")
    assert new.entry != old.entry
    return job, old, new


FACTS_ONLY = ("job:<id>", "job:<id>:states", "sender:s1", "outcomes", "changed", "minute:<n>")


def changed_families(before: dict[str, object], after: dict[str, object]) -> set[str]:
    differ = {key for key in before | after if before.get(key) != after.get(key)}
    short = (re.sub(r"job_\w+", "<id>", key.removeprefix(SHARD)) for key in differ)
    return {re.sub(r"^minute:\d+", "minute:<n>", key) for key in short}


async def test_a_stale_claim_may_not_begin(queue: Queue, raw: Any) -> None:
    _, old, _ = await stale(queue, raw)
    before = await dump(raw)
    assert await queue.begin("dead", [old]) == [Refused("lost")]
    assert await dump(raw) == before


@pytest.mark.parametrize("done", [False, True])
async def test_a_stale_claim_tells_facts_and_nothing_else(
    queue: Queue, raw: Any, *, done: bool
) -> None:
    job, old, new = await stale(queue, raw)
    before = await dump(raw)
    rest = {"done": True, "latency_ms": 900} if done else {"intents": intents_of(5, 6)}
    lowered = facts_of(State.PENDING, 0) + facts_of(State.RETRY, 1, due_s=9)
    nothing = await queue.report("dead", old, facts=lowered, record=b"\x90", **rest)
    assert (nothing.is_owner, nothing.applied) == (False, 0)
    assert await dump(raw) == before, "a stale claim noted, lowered, closed or gave back"

    facts = lowered + facts_of(State.SENT, 2, 3)
    told = await queue.report("dead", old, facts=facts, record=b"\x90", **rest)
    assert (told.is_owner, told.applied) == (False, 2)
    once = await dump(raw)
    assert changed_families(before, once) <= {*FACTS_ONLY}
    states = [state_of(byte) for byte in await queue.states(job)]
    assert states[:4] == [State.INTENT, State.INTENT, State.SENT, State.SENT]
    assert set(states[4:]) == {State.PENDING}
    again = await queue.report("dead", old, facts=facts, record=b"\x90", **rest)
    assert again.applied == 0
    assert await dump(raw) == once
    # The owner has lost nothing by it.
    assert (await queue.report("w2", new, intents=intents_of(7))).is_owner


async def test_a_stale_entry_in_hand_moves_nothing(queue: Queue, raw: Any) -> None:
    _, old, new = await stale(queue, raw)
    await open_gate(raw)
    await queue.tick(0, "w2", slots=4, entries=[new.entry])
    await open_gate(raw)
    before = await dump(raw, TICK)
    ticked = await queue.tick(0, "w2", slots=4, entries=[old.entry, new.entry], jobs=[old.job])
    assert (ticked.requeued, ticked.stop) == (0, [])
    assert await dump(raw, TICK) == before
