"""What a worker does on its own when Graph cannot be reached."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from shared import settings as settings_module
from shared.clock import Clock
from shared.metrics import WorkerMetrics
from shared.models import Ticked
from shared.queue import Queue
from tests.conftest import SECRET
from worker.tick import Pulse


class Watch(Clock):
    """A clock that stands still until it is moved."""

    at_s = 100.0

    def monotonic(self) -> float:
        return self.at_s


async def pulse_of(watch: Watch) -> tuple[Queue, Pulse]:
    environ = {
        "REDIS_URL": "redis://127.0.0.1:1",
        "DATABASE_URL": "postgresql://127.0.0.1:1/x",
        "BULK_SECRET_KEY": SECRET,
    }
    settings = settings_module.load(environ, None)
    queue = await Queue.open(settings)
    return queue, Pulse(queue, "w", settings, watch, WorkerMetrics(CollectorRegistry()))


async def test_a_park_of_the_endpoint_doubles_until_an_answer_comes() -> None:
    watch = Watch()
    queue, pulse = await pulse_of(watch)
    held = []
    for _ in range(7):
        pulse.park_endpoint(1.0, 30.0)
        held.append(pulse.unreachable_until_s - watch.at_s)
        # Those that were in the air meet the same, and do not count.
        pulse.park_endpoint(1.0, 30.0)
        watch.at_s = pulse.unreachable_until_s + 0.1
    assert [round(each, 6) for each in held] == [1, 2, 4, 8, 16, 30, 30]
    pulse.reached()
    assert pulse.unreachable_until_s == 0
    pulse.park_endpoint(1.0, 30.0)
    assert round(pulse.unreachable_until_s - watch.at_s, 6) == 1
    await queue.close()


async def test_what_begin_says_counts_when_it_is_newer_than_the_tick() -> None:
    watch = Watch()
    queue, pulse = await pulse_of(watch)
    off = Ticked(
        wiped=False, now_ms=1, run="r", held_ms=0, off=True, next_timer_ms=0, stop=["job_1"],
        reaped=[], requeued=[],
    )  # fmt: skip
    pulse._apply(0, off, watch.at_s)
    assert not pulse.may_start(0, "job_1")
    # Asked before the tick was answered: the hold may have come between.
    pulse.let_go(0, "job_1", watch.at_s - 0.01)
    assert not pulse.may_start(0, "job_1")
    pulse.let_go(0, "job_1", watch.at_s + 0.01)
    assert pulse.may_start(0, "job_1")
    await queue.close()
