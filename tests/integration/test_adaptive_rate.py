"""A sender's rate after throttles: cut once for each news, and back again by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.clock import Clock
from shared.embedded.valkey import Valkey
from shared.models import Claim, Reported
from shared.queue import Queue
from tests.integration.test_queue_core import add_sender, settings_for, submit, take

SENDER = "{s0}:sender:s1"
TOP, CEILING = 400.0, 100.0
BACK_S = 2 + 10 / 0.3  # until it is where it was cut


@pytest.fixture
async def queue(valkey: Valkey) -> AsyncIterator[Queue]:
    opened = await Queue.open(settings_for(valkey.url))
    await opened.visitors.flushall()
    await opened.give_born(0, "b1")
    await opened.prepare(0)
    yield opened
    await opened.close()


async def fields(queue: Queue) -> dict[str, float]:
    raw: dict[Any, Any] = await queue._commands[0].hgetall(SENDER)
    names = ("rate", "ceiling", "rate_at", "blocked_until", "last_cut", "cuts", "rate_now")
    return {name: float(raw.get(name.encode(), b"0")) for name in names}


@pytest.mark.parametrize(
    ("after_s", "rate"),
    [
        (0.0, 70.0),
        (1.0, 80.0),
        (2.0, 90.0),
        (12.0, 93.0),
        (BACK_S, 100.0),
        (BACK_S + 1, 105.0),
        (BACK_S + 20, 100 * 1.05**20),
        (BACK_S + 40, TOP),
        (601.0, TOP),
    ],
)
async def test_a_rate_that_was_cut_climbs_to_its_ceiling_and_then_beyond(
    queue: Queue, after_s: float, rate: float
) -> None:
    await add_sender(queue, rate=TOP)
    at_ms = Clock().now_ms() - round(1000 * after_s)
    changes: dict[Any, Any] = {"rate": 0.7 * CEILING, "ceiling": CEILING, "rate_at": at_ms}
    await queue._commands[0].hset(SENDER, mapping=changes)
    await submit(queue, 10)
    # Fractions of a second pass until it is released.
    assert rate - 0.1 <= (await fields(queue))["rate_now"] <= min(TOP, 1.05 * rate + 0.5)


async def throttle(queue: Queue, claim: Claim) -> Reported:
    return await queue.report("w1", claim, throttled_ms=0)


async def test_what_is_in_the_air_is_no_news_and_what_comes_after_the_silence_is(
    queue: Queue,
) -> None:
    await add_sender(queue, rate=TOP)
    await submit(queue, 10)
    [(claim, _), *_] = await take(queue)
    began_ms = Clock().now_ms()
    assert (await throttle(queue, claim)).is_cut
    first = await fields(queue)
    assert (first["ceiling"], first["rate"], first["cuts"]) == (TOP, 0.7 * TOP, 1)
    assert began_ms + 1000 <= first["blocked_until"] <= Clock().now_ms() + 1000
    assert not (await throttle(queue, claim)).is_cut
    same = await fields(queue)
    assert (same["rate"], same["ceiling"], same["cuts"]) == (first["rate"], TOP, 1)
    # The silence is over: 1.1 s have passed since the cut, and less than two.
    now_ms = Clock().now_ms()
    past: dict[Any, Any] = {"blocked_until": now_ms - 100, "last_cut": now_ms - 1100}
    await queue._commands[0].hset(SENDER, mapping={**past, "rate_at": now_ms - 100})
    assert (await throttle(queue, claim)).is_cut
    news = await fields(queue)
    assert 0.7 * TOP <= news["ceiling"] < 0.8 * TOP
    assert news["rate"] == pytest.approx(0.7 * news["ceiling"], abs=0.01)
    assert news["last_cut"] == now_ms - 1100 + 2000
    assert news["blocked_until"] >= max(news["last_cut"], now_ms + 1000)


async def test_a_clock_that_went_back_postpones_no_cut(queue: Queue) -> None:
    await add_sender(queue, rate=TOP)
    await submit(queue, 10)
    [(claim, _), *_] = await take(queue)
    await queue._commands[0].hset(SENDER, "last_cut", Clock().now_ms() + 3_600_000)
    assert (await throttle(queue, claim)).is_cut
    assert (await fields(queue))["blocked_until"] <= Clock().now_ms() + 1000
