"""What a worker does on its own when Graph cannot be reached."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from shared import settings as settings_module
from shared.clock import Clock
from shared.metrics import WorkerMetrics
from shared.queue import Queue
from tests.conftest import SECRET
from worker.tick import Pulse


class Watch(Clock):
    """A clock that stands still until it is moved."""

    at_s = 100.0

    def monotonic(self) -> float:
        return self.at_s


async def test_a_park_of_the_endpoint_doubles_until_an_answer_comes() -> None:
    environ = {
        "REDIS_URL": "redis://127.0.0.1:1",
        "DATABASE_URL": "postgresql://127.0.0.1:1/x",
        "BULK_SECRET_KEY": SECRET,
    }
    settings = settings_module.load(environ, None)
    queue, watch = await Queue.open(settings), Watch()
    pulse = Pulse(queue, "w", settings, watch, WorkerMetrics(CollectorRegistry()))
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
