"""kill -9 of a worker at moments nobody chose: nobody lost, nobody twice, the others go on."""

from __future__ import annotations

import random

import pytest

from shared.clock import Clock
from shared.embedded.children import Child
from shared.models import State, state_of
from tests.e2e.stack import CONCURRENCY, WORKER, Eventually, Stack, held_by, is_at_work, sent
from tests.integration.test_worker import numbers

LEASE_S = int(WORKER["WORKER_LEASE_MS"]) / 1000


class Kill:
    """One kill -9: when it was, and what the worker held."""

    def __init__(self, at_s: float, claims: int, intents: int) -> None:
        self.at_s, self.claims, self.intents = at_s, claims, intents


async def kill(stack: Stack, child: Child) -> Kill:
    """Kill a worker, and read what it has left behind."""
    stack.workers.remove(child)
    at_s = Clock().monotonic()
    await child.kill()
    held = await held_by(stack, child)
    intents = 0
    for job, chunk, indices in held:
        states = await stack.queue.states(job)
        intents += sum(state_of(states[chunk * 50 + i]) == State.INTENT for i in indices)
    return Kill(at_s, len(held), intents)


async def two_at_work(stack: Stack) -> list[Child]:
    """Return the workers that have ticked; none of them unless there are two."""
    at_work = [child for child in stack.workers if await is_at_work(stack, child)]
    return at_work if len(at_work) > 1 else []


async def kill_five(stack: Stack, eventually: Eventually, count: int, seed: int) -> None:
    """Send to `count` through three workers, five of which die at random moments."""
    print(f"\nseed {seed}")  # noqa: T201 - repeats this run
    chance, clock = random.Random(seed), Clock()  # noqa: S311 - of a test
    await stack.add_workers(3, eventually)
    moments = sorted(chance.randrange(count // 20, count * 3 // 4) for _ in range(5))
    job = await stack.submit(numbers(count, 393331000000), sender="snd_fast")
    kills = []
    for moment in moments:

        async def has_come(moment: int = moment) -> bool:
            return await sent(stack, job) >= moment or await stack.is_over(job)

        await eventually(has_come, within_s=60)
        assert not await stack.is_over(job), "the job was over before its last kill"
        # The one in its place is not awaited, but somebody must be there who goes on.
        at_work: list[Child] = await eventually(lambda: two_at_work(stack), within_s=30)
        kills.append(await kill(stack, chance.choice(at_work)))
        stack.add_worker()
    await eventually(lambda: stack.is_over(job), within_s=60)
    ended_s = clock.monotonic()

    tally, accepted = (await stack.status(job)).tally, stack.accepted()
    claims, intents = sum(k.claims for k in kills), sum(k.intents for k in kills)
    recovered = len(accepted) - tally.sent
    print(  # noqa: T201 - the figures of the run
        f"sent {tally.sent} · unknown {tally.unknown}, {recovered} of them sent · {claims} claims "
        f"and {intents} intents were held · {ended_s - kills[-1].at_s:.1f} s after the last kill"
    )
    assert set(accepted.values()) == {1}, "somebody was messaged twice"
    assert tally.sent + tally.unknown == count, "somebody was lost"
    assert tally.sent <= len(accepted)
    assert claims, "no worker held anything when it died"
    assert tally.unknown <= intents <= 5 * CONCURRENCY * claims
    times = stack.times()
    for k in kills:
        # Until the lease is over nobody takes the dead one's claims: what comes is the others'.
        others = sum(1 for t in times if k.at_s + 0.5 <= t < k.at_s + 1.5)
        print(f"  {others} sends in the second after half a second; {k.claims} claims held")  # noqa: T201
        assert others >= 40, "the others stood still, at a tenth of the rate or less"
    await stack.check(job, eventually)


@pytest.mark.slow
async def test_five_kills_in_five_thousand_lose_nobody_and_repeat_nobody(
    stack: Stack, eventually: Eventually
) -> None:
    await kill_five(stack, eventually, 5000, random.SystemRandom().randrange(10**6))


async def test_the_claims_of_a_killed_worker_are_taken_over_though_nothing_else_goes_on(
    stack: Stack, eventually: Eventually
) -> None:
    await stack.add_workers(2, eventually)
    # Nobody is answered before the kill.
    await stack.configure(latency_ms=30_000, latency_p99_ms=30_000)
    job = await stack.submit(numbers(50, 393331000000))
    await eventually(lambda: len(stack.lines()) >= CONCURRENCY, within_s=10)
    holds = [await held_by(stack, child) for child in stack.workers]
    assert sorted(map(len, holds)) == [0, 1]
    await stack.configure(latency_ms=0)
    dead = await kill(stack, stack.workers[0 if holds[0] else 1])
    before = len(stack.lines())
    await eventually(lambda: stack.is_over(job), within_s=20)
    tally, after = (await stack.status(job)).tally, stack.lines()[before:]
    took_s = after[0].t_mono - dead.at_s
    print(f"\ntaken over {took_s:.2f} s after the kill, lease {LEASE_S} s")  # noqa: T201
    assert LEASE_S - 1 < took_s <= LEASE_S + 2
    assert (tally.sent, tally.unknown) == (50 - dead.intents, dead.intents)
    assert CONCURRENCY <= dead.intents <= 5 * CONCURRENCY
    assert set(stack.accepted().values()) == {1}
    await stack.check(job, eventually)
