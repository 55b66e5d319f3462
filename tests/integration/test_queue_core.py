"""The queue's core on a real Valkey: each step once, and again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import fakeredis
import msgspec
import pytest
import redis.asyncio

from shared import settings as settings_module
from shared.clock import Clock
from shared.errors import QueueError, SettingsError
from shared.ids import Ids
from shared.models import (
    Chunk,
    Claim,
    Fact,
    Go,
    Intent,
    JobSpec,
    Reason,
    Refused,
    State,
    Wait,
    state_of,
)
from shared.queue import Queue
from shared.settings import Settings
from tests.conftest import IS_FAKE, configured, replaced

Eventually = Callable[..., Awaitable[Any]]

SECRET = "0123456789abcdef0123456789abcdef"  # noqa: S105 - a test's
MESSAGE = b'{"kind":"text","text":{"body":"hello"}}'


def settings_for(url: str) -> Settings:
    environ = {
        "REDIS_URL": url,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1/none",
        "BULK_SECRET_KEY": SECRET,
        "WORKER_BLOCK_MS": "50",
        "WORKER_LEASE_MS": "2000",
    }
    return settings_module.load(environ, None)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return "" if IS_FAKE else request.getfixturevalue("valkey").url


@pytest.fixture
async def queue(url: str) -> AsyncIterator[Queue]:
    """The door on Valkey; on fakeredis where no server may run (`make test-fast`)."""
    if IS_FAKE:
        server = fakeredis.FakeServer(version=(7, 4))
        clients = [fakeredis.FakeAsyncRedis(server=server) for _ in range(3)]
        settings = settings_for("redis://127.0.0.1:1")
        opened = Queue(settings, [clients[0]], [clients[1]], clients[2], shebang=False)
    else:
        async with redis.asyncio.Redis.from_url(url) as client:
            await client.flushall()
        opened = await Queue.open(settings_for(url))
    await opened.give_born(0, "b1")
    await opened.prepare(0)
    yield opened
    await opened.close()


async def add_sender(queue: Queue, name: str = "s1", rate: float = 0.0) -> None:
    await queue.sender(0, name, version=1, rate=rate, burst=0, paused=False, why="")


async def submit(
    queue: Queue, count: int = 120, *, sender: str = "s1", chunk_size: int = 50, **more: object
) -> str:
    job = Ids().job_id(0)
    phones = [15550000000 + i for i in range(count)]
    chunks = [
        msgspec.msgpack.encode(Chunk(phones[i : i + chunk_size]))
        for i in range(0, count, chunk_size)
    ]
    await queue.stage(job, 0, chunks)
    values: dict[str, object] = {"reserved": count, "step": count, "created_ms": 1, **more}
    spec = JobSpec(job, sender, "u1", count, chunk_size, message=MESSAGE, vars=[], **values)  # type: ignore[arg-type]
    made = await queue.submit(spec)
    assert made.kind == "made"
    return job


async def take(queue: Queue, worker: str = "w1", count: int = 64) -> list[tuple[Claim, Go]]:
    claims = await queue.claim(0, worker, count, 50)
    begun = await queue.begin(worker, claims)
    return [(c, b) for c, b in zip(claims, begun, strict=True) if isinstance(b, Go)]


async def finish(queue: Queue, claim: Claim, go: Go, worker: str = "w1") -> None:
    indices = claim.indices(len(go.chunk.phones))
    await queue.report(worker, claim, intents=b"".join(Intent(i, 1).pack() for i in indices))
    facts = b"".join(Fact(i, State.SENT, 1).pack() for i in indices)
    await queue.report(worker, claim, facts=facts, record=b"\x90", latency_ms=100, done=True)


async def test_a_job_goes_from_submit_to_its_end_and_is_counted_once(queue: Queue) -> None:
    await add_sender(queue)
    job = await submit(queue)
    claims = await take(queue)
    assert [c.size for c, _ in claims] == [50, 50, 20]
    for claim, go in claims:
        await finish(queue, claim, go)
        await finish(queue, claim, go)
    status = (await queue.statuses([job]))[0]
    assert status is not None
    assert (status.state, status.tally.sent, status.tally.total) == ("completed", 120, 120)
    assert status.is_ended
    notes = await queue.read_events(0, "0-0", 50)
    assert [n.is_end for n in notes if n.job == job][-1]
    assert notes[-1].id == status.event
    entries = await queue.read_outcomes(0, "a1", 200, 50)
    facts = [e for e in entries if e.kind == "facts"]
    assert sum(len(e.facts) // 9 for e in facts) == 120
    assert [e.job_state for e in entries if e.kind == "state"] == ["queued", "running", "completed"]
    await queue.ack_outcomes(0, [e.entry for e in entries])
    await queue.archived(job, entries[-1].version)
    assert (await queue.stats(0, [])).ready == 0


async def test_a_chunk_is_not_cut_for_a_piece_of_one(queue: Queue) -> None:
    await add_sender(queue, rate=1000)
    for _ in range(20):  # until the mean is what is told
        await submit(queue, 1)
        for claim, _ in await take(queue):
            # 5 requests at once, 104 ms each: 48 in a second.
            facts = Fact(0, State.SENT, 1).pack()
            await queue.report("w1", claim, facts=facts, record=b"\x90", latency_ms=104, done=True)
    await submit(queue, 120)
    assert [claim.size for claim, _ in await take(queue)] == [50, 50, 20]


async def test_submitting_twice_makes_one_job(queue: Queue) -> None:
    await add_sender(queue)
    job = await submit(queue, 10)
    spec = JobSpec(job, "s1", "u1", 10, 50, 10, 10, MESSAGE, [])
    assert (await queue.submit(spec)).kind == "exists"
    missing = JobSpec(Ids().job_id(0), "s1", "u1", 10, 50, 10, 10, MESSAGE, [])
    refused = await queue.submit(missing)
    assert (refused.kind, refused.first_missing) == ("missing", 0)


async def test_a_sender_that_was_never_pushed_releases_nothing(queue: Queue) -> None:
    await submit(queue, 10, sender="stranger")
    assert await take(queue) == []
    await add_sender(queue, "stranger")
    assert len(await take(queue)) == 1


async def test_a_delayed_fact_never_lowers_a_newer_intent(queue: Queue) -> None:
    await add_sender(queue)
    job = await submit(queue, 1)
    [(claim, _)] = await take(queue)
    await queue.report("w1", claim, intents=Intent(0, 1).pack())
    refused = Fact(0, State.RETRY, 1, 20).pack()
    await queue.report("w1", claim, facts=refused, intents=Intent(0, 2, in_place=True).pack())
    assert (await queue.report("w1", claim, facts=refused)).applied == 0
    assert (await queue.states(job)) == bytes([2 << 3 | State.INTENT])


async def test_what_is_handed_back_comes_again_and_uses_no_attempt(queue: Queue) -> None:
    await add_sender(queue)
    job = await submit(queue, 3)
    [(claim, _)] = await take(queue)
    await queue.report("w1", claim, intents=b"".join(Intent(i, 1).pack() for i in range(3)))
    facts = [Fact(0, State.SENT, 1), Fact(1, State.PENDING, 1), Fact(2, State.RETRY, 1, 20, 600)]
    await queue.report(
        "w1", claim, facts=b"".join(f.pack() for f in facts), record=b"\x90", done=True
    )
    [(again, go)] = await take(queue)
    assert again.indices(3) == [1]
    assert go.states[1] == 0
    status = (await queue.statuses([job]))[0]
    assert status is not None
    assert (status.tally.sent, status.tally.retrying, status.tally.queued) == (1, 1, 1)


async def left_by_the_dead(queue: Queue, eventually: Eventually) -> Claim:
    """Let a worker note its first recipient and die; return its claim once others may have it."""
    await queue.tick(0, "dead", slots=4)
    [(claim, _)] = await take(queue, "dead")
    await queue.report("dead", claim, intents=Intent(0, 1).pack())

    async def reaped() -> bool:
        return "dead" in (await queue.tick(0, "w2", slots=4)).reaped

    await eventually(reaped, within_s=8)
    return claim


async def test_a_dead_worker_is_reaped_and_its_entry_is_fenced(
    queue: Queue, eventually: Eventually
) -> None:
    await add_sender(queue)
    await submit(queue, 2)
    claim = await left_by_the_dead(queue, eventually)
    [(again, go)] = await take(queue, "w2")
    assert again.delivery == 2
    assert state_of(go.states[0]) == State.INTENT
    stale = await queue.report("dead", claim, intents=Intent(1, 1).pack(), done=True)
    assert not stale.is_owner
    late = await queue.report("dead", claim, facts=Fact(0, State.SENT, 1).pack(), record=b"\x90")
    assert late.applied == 1


async def test_what_the_dead_noted_and_nobody_began_again_is_unknown_when_the_job_is_cancelled(
    queue: Queue, eventually: Eventually
) -> None:
    """Who takes a claim over too late for its turn gives it back with its intents."""
    await add_sender(queue, rate=100)
    job = await submit(queue, 2)
    await left_by_the_dead(queue, eventually)
    await queue._commands[0].hset("{s0}:sender:s1", "bucket_ms", Clock().now_ms() + 60_000)
    [refused] = await queue.begin("w2", await queue.claim(0, "w2", 64, 50))
    assert refused == Refused("back")
    await queue.control(job, "cancel", by="u1")
    [status] = await queue.statuses([job])
    assert status is not None
    assert (status.state, status.tally.in_flight) == ("cancelled", 0)
    assert [state_of(byte) for byte in await queue.states(job)] == [State.UNKNOWN, State.CANCELLED]


async def test_who_was_forgotten_before_he_read_is_reaped_too(
    queue: Queue, eventually: Callable[..., Awaitable[object]]
) -> None:
    """A worker frozen between the look at its lease and its read has no sign when it reads."""
    await add_sender(queue)
    await submit(queue, 2)
    await queue.tick(0, "w2", slots=4)
    await take(queue, "frozen")

    async def reaped() -> bool:
        return "frozen" in (await queue.tick(0, "w2", slots=4)).reaped

    await eventually(reaped, within_s=8)
    [(again, _)] = await take(queue, "w2")
    assert again.delivery == 2


async def test_a_group_that_is_gone_is_made_again_by_whoever_ticks(queue: Queue) -> None:
    """A worker whose slots are full, or whose lease has run out, reads no claims."""
    await add_sender(queue)
    await submit(queue, 2)
    await queue.tick(0, "w1", slots=4)
    await queue._commands[0].xgroup_destroy("{s0}:ready", "workers")
    with pytest.raises(QueueError):
        await queue.tick(0, "w1", slots=4)
    await queue.tick(0, "w1", slots=4)
    [(claim, _)] = await take(queue)
    assert claim.size == 2


async def test_a_pause_releases_nothing_more_and_a_cancel_ends_the_rest(queue: Queue) -> None:
    await add_sender(queue, rate=50)
    job = await submit(queue, 500)
    claims = await take(queue)
    assert claims
    assert (await queue.control(job, "pause", by="u1")).state == "paused"
    assert (await queue.control(job, "pause")).kind == "same"
    ticked = await queue.tick(0, "w1", slots=4, entries=[c.entry for c, _ in claims], jobs=[job])
    assert ticked.stop == [job]
    refused = await queue.report("w1", claims[0][0], intents=Intent(0, 1).pack())
    assert refused.job_state == "paused"
    assert (await queue.control(job, "resume")).state == "running"
    assert (await queue.control(job, "cancel", by="u1")).state == "cancelling"
    for claim, _ in claims:
        await queue.report("w1", claim, done=True)
    for claim, _ in await take(queue):
        await queue.report("w1", claim, done=True)
    status = (await queue.statuses([job]))[0]
    assert status is not None
    assert (status.state, status.tally.cancelled) == ("cancelled", 500)
    assert set(await queue.states(job)) == {State.CANCELLED}


async def test_ten_recipients_behind_many_are_released_at_once(queue: Queue) -> None:
    await add_sender(queue, rate=80)
    await submit(queue, 5000)
    first = await take(queue)
    small = await submit(queue, 10)
    for claim, go in first:
        await finish(queue, claim, go)
    clock, found, start = Clock(), False, Clock().monotonic()
    while not found and clock.monotonic() - start < 5:
        for claim, go in await take(queue):
            found = found or claim.job == small
            await finish(queue, claim, go)
        await queue.tick(0, "w1", slots=4)
    assert found


async def test_a_deadline_skips_what_is_left(
    queue: Queue, eventually: Callable[..., Awaitable[object]]
) -> None:
    await add_sender(queue, rate=10)
    job = await submit(queue, 100, expires_ms=Clock().now_ms() + 300)

    async def is_over() -> bool:
        await queue.tick(0, "w1", slots=4)
        for claim, _ in await take(queue):
            await queue.report("w1", claim, done=True)
        status = (await queue.statuses([job]))[0]
        return status is not None and status.state == "completed"

    await eventually(is_over, within_s=5)
    status = (await queue.statuses([job]))[0]
    assert status is not None
    assert status.tally.skipped == 100
    assert status.reasons == {Reason.EXPIRED: 100}


async def test_a_late_claim_pays_again_or_goes_back(queue: Queue, eventually: Eventually) -> None:
    await add_sender(queue, rate=100)
    await submit(queue, 300)
    claims = await queue.claim(0, "w1", 64, 50)
    assert len(claims) >= 2
    # All of them are late: more than the 500 ms that a bucket may be ahead.
    last_ms = max(claim.start_ms for claim in claims) + 600
    await eventually(lambda: Clock().now_ms() > last_ms)
    begun = await queue.begin("w1", claims)
    starts = [b.start_ms for b in begun if isinstance(b, Go)]
    assert starts == sorted(starts)
    assert all(
        s >= b.now_ms - 251 for s, b in zip(starts, begun, strict=False) if isinstance(b, Go)
    )
    assert len(starts) < len(claims) or starts[-1] > starts[0]
    assert all(isinstance(b, Go) or (isinstance(b, Refused) and b.why == "back") for b in begun)


async def test_a_shard_without_born_says_wiped(queue: Queue) -> None:
    await queue.visitors.flushall()
    assert (await queue.tick(0, "w1", slots=1)).wiped
    await queue.prepare(0)
    await queue.give_born(0, "b2")
    assert not (await queue.tick(0, "w1", slots=1)).wiped


@pytest.mark.redis
async def test_another_run_id_holds_the_shard_until_workers_have_told(queue: Queue) -> None:
    await add_sender(queue)
    await submit(queue, 1)
    run = (await queue.tick(0, "w1", slots=1)).run
    assert run
    claims = await queue.claim(0, "w1", 1, 50)
    await queue.hold(0, "another")
    assert isinstance((await queue.begin("w1", claims))[0], Wait)
    held = await queue.tick(0, "w1", slots=1, told=run, entries=[c.entry for c in claims])
    assert held.held_ms > 0
    free = await queue.tick(0, "w1", slots=1, told="another", entries=[c.entry for c in claims])
    assert free.held_ms == 0
    assert isinstance((await queue.begin("w1", claims))[0], Go)


async def test_leaving_puts_everything_back(queue: Queue) -> None:
    await add_sender(queue)
    await submit(queue, 100)
    await queue.tick(0, "w1", slots=4)
    assert len(await queue.claim(0, "w1", 64, 50)) == 2
    assert await queue.leave(0, "w1")
    assert len(await take(queue, "w2")) == 2
    assert {c["name"] for c in await queue.visitors.xinfo_consumers("{s0}:ready", "workers")} == {
        b"w2"
    }


async def test_restoring_a_job_sends_only_what_is_pending(queue: Queue) -> None:
    await add_sender(queue)
    job = Ids().job_id(0)
    await queue.stage(job, 0, [msgspec.msgpack.encode(Chunk([15550000000 + i for i in range(4)]))])
    spec = JobSpec(job, "s1", "u1", 4, 50, 4, 4, MESSAGE, [], created_ms=1)
    states = bytes([1 << 3 | State.SENT, 1 << 3 | State.UNKNOWN, 0, 0])
    made = await queue.restore(spec, states, 0, {"sent": 1, "unknown": 1})
    assert made.kind == "made"
    [(claim, go)] = await take(queue)
    assert go.states == states
    facts = b"".join(Fact(i, State.SENT, 1).pack() for i in (2, 3))
    await queue.report("w1", claim, facts=facts, record=b"\x90", done=True)
    status = (await queue.statuses([job]))[0]
    assert status is not None
    assert (status.state, status.tally.sent, status.tally.unknown) == ("completed", 3, 1)


@pytest.mark.redis
async def test_a_server_that_may_lose_jobs_is_refused(queue: Queue) -> None:
    await queue.require_durable()
    url = str(queue.settings.redis_url)
    async with configured(url, "maxmemory-policy", "allkeys-lru"):
        with pytest.raises(SettingsError, match="noeviction"):
            await queue.require_durable()


async def test_an_expired_job_takes_no_intents_and_says_so(
    queue: Queue, eventually: Eventually
) -> None:
    await add_sender(queue)
    deadline = Clock().now_ms() + 400
    job = await submit(queue, 2, expires_ms=deadline)
    [(claim, _)] = await take(queue)
    await eventually(lambda: Clock().now_ms() > deadline + 50)
    told = await queue.report("w1", claim, intents=Intent(0, 1).pack())
    assert told.job_state == "expired"
    assert await queue.states(job) == bytes(2)
    await queue.report("w1", claim, done=True)
    assert set(await queue.states(job)) == {State.SKIPPED}


async def test_a_burst_longer_than_half_a_second_starts_at_once(queue: Queue) -> None:
    """Its first claim is released with a start that has passed; that does not make it late."""
    await queue.sender(0, "s1", version=1, rate=20.0, burst=20.0, paused=False, why="")
    await submit(queue, 40)
    begun = await take(queue, count=1)
    assert len(begun) == 1
    claim, go = begun[0]
    assert go.now_ms - go.start_ms > 500
    assert claim.size == 12


async def test_the_hold_waits_for_a_worker_that_lives_and_ends_for_one_that_does_not(
    queue: Queue, eventually: Callable[..., Awaitable[Any]]
) -> None:
    """After a fail-over a worker may need more than a lease: it restores jobs, then tells."""
    queue.settings = replaced(queue.settings, worker_lease_ms=300)

    async def tick(worker: str, told: str = "r1") -> int:
        return (await queue.tick(0, worker, slots=1, told=told)).held_ms

    await queue.hold(0, "r1")
    for worker in ("w1", "w2"):
        await tick(worker)
    await queue.hold(0, "r2")
    clock = Clock()
    end = clock.monotonic() + 0.6
    while clock.monotonic() < end:  # two leases: w1 has told at once, w2 is still at it
        assert await tick("w1", "r2") > 0
        assert await tick("w2") > 0
    await eventually(lambda: _is_free(tick("w1", "r2")), within_s=2)  # w2 gives no sign any more
    await queue.hold(0, "r3")
    assert await tick("w1", "r2") > 0
    assert await tick("w1", "r3") == 0


async def _is_free(held_ms: Awaitable[int]) -> bool:
    return await held_ms == 0
