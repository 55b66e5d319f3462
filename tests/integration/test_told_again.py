"""What a worker tells a server that has forgotten: a job it lost is restored first."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from shared.archive import Archive
from shared.clock import Clock
from shared.metrics import WorkerMetrics
from shared.models import Claim, Detail, Fact, Intent, JobSpec, State, state_of
from shared.queue import Queue
from shared.settings import Settings
from tests.integration.test_publisher import COUNT, MESSAGE, SIZE, Bench, Eventually
from worker.tick import Pulse


class Worker(Bench):
    """A worker in the middle of a claim: three are sent, two are in the air."""

    pulse: Pulse
    job: str
    claim: Claim

    @classmethod
    async def begin(cls, queue: Queue, archive: Archive, settings: Settings) -> Worker:
        made = cls(queue, archive, settings)
        await made.start()
        await queue.give_born(0, "b")
        # Each new connection tells the shard the real run id: have them all now.
        await asyncio.gather(*(queue.born(0) for _ in range(8)))
        metrics = WorkerMetrics(CollectorRegistry())
        made.pulse = Pulse(queue, "w1", settings, Clock(), metrics)
        made.pulse.bring_back = made.publisher.bring_back
        await made.senders.refresh()
        await made.pulse._tick(0)
        made.job = await made.accept(born="b", reserved=COUNT, created_ms=1)
        await queue.stage(made.job, 0, await archive.recipients(made.job))
        spec = JobSpec(
            made.job, "snd_main", made.owner, COUNT, SIZE, COUNT, COUNT, MESSAGE, [], created_ms=1
        )
        assert (await queue.submit(spec)).kind == "made"
        [made.claim, *_] = await queue.claim(0, "w1", 1, 50)
        await queue.begin("w1", [made.claim])
        made.pulse.take(made.claim)
        await queue.report(
            "w1", made.claim, intents=b"".join(Intent(i, 1).pack() for i in range(5))
        )
        made.pulse.in_the_air[made.claim.entry] = {3: 1, 4: 1}
        return made

    async def tell_three(self) -> None:
        """Report three as sent, as the executor does."""
        facts = b"".join(Fact(i, State.SENT, 1).pack() for i in range(3))
        details = [Detail(i, 15550000000 + i, 5, f"wamid.{i}") for i in range(3)]
        record = msgspec.msgpack.encode(details)
        self.pulse.remember(self.claim, facts, record)
        await self.queue.report("w1", self.claim, facts=facts, record=record)

    async def tally(self) -> Counter[State]:
        return Counter(map(state_of, await self.queue.states(self.job)))

    async def forget(self, *, all_of_it: bool) -> None:
        client: Any = self.queue._commands[0]
        if all_of_it:
            await client.flushall()
        else:
            await client.delete(*await client.keys("{s0}:job:*"), "{s0}:ready")
            await self.queue.prepare(0)


async def test_a_job_that_a_failover_lost_is_there_before_its_intents_are_told(
    queue: Queue, archive: Archive, settings: Settings, eventually: Eventually
) -> None:
    worker = await Worker.begin(queue, archive, settings)
    await worker.tell_three()
    await worker.forget(all_of_it=False)
    await queue.hold(0, "run-2")

    async def has_told() -> bool:
        await worker.pulse._tick(0)
        return worker.pulse._told[0] == "run-2"

    await eventually(has_told)
    tally = await worker.tally()
    # Nobody who is in the air may be sent to again.
    assert (tally[State.SENT], tally[State.INTENT]) == (3, 2)
    assert tally[State.PENDING] == COUNT - 5


async def test_without_postgresql_it_ticks_on_and_does_not_say_that_it_has_told(
    queue: Queue, archive: Archive, settings: Settings
) -> None:
    worker = await Worker.begin(queue, archive, settings)
    await worker.tell_three()
    await worker.forget(all_of_it=False)
    await queue.hold(0, "run-2")
    await archive._pool.close()
    for _ in range(5):
        await worker.pulse._tick(0)
    assert worker.pulse._told[0] not in ("", "run-2")
    assert (await queue.tick(0, "w2", slots=1)).held_ms > 0


async def test_what_was_told_of_a_wiped_job_is_told_to_the_rebuilt_one(
    queue: Queue, archive: Archive, settings: Settings, eventually: Eventually
) -> None:
    """It went past Redis to the archive, after the job had been rebuilt from what was logged."""
    worker = await Worker.begin(queue, archive, settings)
    await worker.forget(all_of_it=True)
    await queue.prepare(0)
    await worker.pulse._tick(0)
    await worker.tell_three()
    await worker.publisher.look(0)
    assert (await worker.tally())[State.UNKNOWN] == COUNT

    async def is_told() -> bool:
        await worker.pulse._tick(0)
        return (await worker.tally())[State.SENT] == 3

    await eventually(is_told)
    async with worker.writing():

        async def is_logged() -> bool:
            states = Counter(state for state, _ in (await archive.logged(worker.job)).values())
            return states == {State.SENT: 3, State.UNKNOWN: COUNT - 3}

        await eventually(is_logged)


async def test_what_a_dead_worker_had_logged_is_told_to_a_server_that_fell_back(
    queue: Queue, archive: Archive, settings: Settings, eventually: Eventually
) -> None:
    """It tells nothing again: PostgreSQL knows more than Redis, and says so."""
    worker = await Worker.begin(queue, archive, settings)
    before = await queue.states(worker.job)
    now_ms = Clock().now_ms()
    details = [Detail(i, 15550000000 + i, now_ms, f"wamid.{i}") for i in range(3)]
    facts = b"".join(Fact(i, State.SENT, 1).pack() for i in range(3))
    async with worker.writing():
        record = msgspec.msgpack.encode(details)
        await queue.report("w1", worker.claim, facts=facts, record=record)

        async def is_logged() -> bool:
            return len(await archive.logged(worker.job)) == 3

        await eventually(is_logged)
    client: Any = queue._commands[0]
    await client.set(f"{{s0}}:job:{worker.job}:states", before)
    assert (await worker.tally())[State.SENT] == 0
    await queue.hold(0, "run-2")

    async def has_told() -> bool:
        await worker.pulse._tick(0)
        return worker.pulse._told[0] == "run-2"

    await eventually(has_told)
    assert (await worker.tally())[State.SENT] == 3
