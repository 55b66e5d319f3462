"""One recipient in eight is refused: tried again or given up, and nobody else waits for it."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from shared.clock import Clock
from tests.e2e.stack import Eventually, Line, Stack
from tests.integration.test_worker import numbers

# The sandbox's families by the last four digits of +1555…: refused for good, once, twice, always.
FINAL, ONCE, TWICE, ALWAYS = 8026, 6100, 6200, 8000
RETRIES, BASE_S = 3, 0.5  # the defaults
LATENCY_S = 0.02
# A claim's recipients go in the order they are due: one that is due again waits at most for the
# rest of its claim, fifty at five at once; and two busy cores are late.
LATE_S = 50 * LATENCY_S / 5 + 0.2


def family(last: int, count: int) -> list[int]:
    return [15550000000 + 10_000 * i + last for i in range(count)]


def mixed(count: int, seed: int) -> list[int]:
    """Return `count` recipients, 5 % refused for good, 5 % once or twice, 2 % always."""
    few = count // 40
    bad = [
        *family(FINAL, 2 * few),
        *family(ONCE, few),
        *family(TWICE, few),
        *family(ALWAYS, count // 50),
    ]
    phones = [*numbers(count - len(bad), 393331000000), *bad]
    random.Random(seed).shuffle(phones)  # noqa: S311 - of a test
    return phones


def is_good(line: Line) -> bool:
    return line.to.startswith("+39")


async def timed(stack: Stack, eventually: Eventually, phones: list[int], sender: str) -> float:
    """Send to `phones`; return how long after the submission the last good one was asked for."""
    before, start_s = len(stack.lines()), Clock().monotonic()
    job = await stack.submit(phones, sender=sender)
    await eventually(lambda: stack.is_over(job), within_s=60)
    status = await stack.status(job)
    refused = {last: sum(p % 10_000 == last and p < 2 * 10**10 for p in phones)
               for last in (FINAL, ALWAYS)}  # fmt: skip
    assert status.tally.failed == sum(refused.values())
    assert status.tally.sent == len(phones) - status.tally.failed
    await stack.check(job, eventually)
    return max(x.t_mono for x in stack.lines()[before:] if is_good(x)) - start_s


def gaps_of(lines: list[Line]) -> dict[int, list[float]]:
    """Return the seconds between an attempt's request and the next one's, by the attempt."""
    asked = defaultdict(list)
    for line in lines:
        asked[line.to].append(line.t_mono)
    gaps = defaultdict(list)
    for times in asked.values():
        for attempt, (a, b) in enumerate(pairwise(times), start=1):
            gaps[attempt].append(b - a)
    return gaps


def check_gaps(gaps: dict[int, list[float]]) -> None:
    """Hold the waits between attempts against the back-off; only where the machine has time."""
    assert sorted(gaps) == [1, 2, 3]
    for attempt, waits in gaps.items():
        most_s = BASE_S * 2 ** (attempt - 1)
        low, high = min(waits) - LATENCY_S, max(waits) - LATENCY_S
        quarters = [0, 0, 0, 0]
        for wait in waits:
            quarters[min(3, int(4 * max(0.0, wait - LATENCY_S) / most_s))] += 1
        print(  # noqa: T201
            f"  after attempt {attempt}: {low:.3f} to {high:.3f} s of {most_s}, quarters {quarters}"
        )
        assert low >= -0.01
        assert high <= most_s + LATE_S
        # Drawn from all of it, not from a narrow part.
        assert high - low > most_s / 3
        if attempt == 1:
            assert min(quarters) >= len(waits) // 20


async def refuse(
    stack: Stack, eventually: Eventually, count: int, sender: str
) -> tuple[float, float]:
    """Run `count` clean, then `count` with refusals; return both times."""
    await stack.configure(latency_ms=1000 * LATENCY_S, latency_p99_ms=1000 * LATENCY_S)
    await stack.add_workers(2, eventually)
    clean_s = await timed(stack, eventually, numbers(count, 393551000000), sender)
    before = len(stack.lines())
    mixed_s = await timed(stack, eventually, mixed(count, 1), sender)
    lines = stack.lines()[before:]
    print(  # noqa: T201 - the figures of the run
        f"\n{sender}: the last good one after {clean_s:.2f} s clean, {mixed_s:.2f} s with refusals"
    )
    requests = Counter(line.to for line in lines)
    for last, most in ((FINAL, 1), (ONCE, 2), (TWICE, 3), (ALWAYS, 1 + RETRIES)):
        of_family = {n for to, n in requests.items() if not to.startswith("+39")
                     and int(to[-4:]) == last}  # fmt: skip
        assert of_family == {most}
    assert {requests[x.to] for x in lines if is_good(x)} == {1}
    assert max(stack.accepted().values()) == 1
    if sender == "snd_fast":
        check_gaps(gaps_of(lines))
    return clean_s, mixed_s


@pytest.mark.slow
@pytest.mark.parametrize("sender", ["snd_fast", "snd_main"])
async def test_two_thousand_with_refusals_keep_nobody_waiting(
    stack: Stack, eventually: Eventually, sender: str
) -> None:
    clean_s, mixed_s = await refuse(stack, eventually, 2000, sender)
    assert mixed_s <= 1.2 * clean_s + BASE_S * 2 ** (RETRIES - 1)


async def test_refusals_are_tried_again_at_spread_moments(
    stack: Stack, eventually: Eventually
) -> None:
    await refuse(stack, eventually, 800, "snd_fast")
