"""Which goal figures run here, at which size, on which system."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Final, NamedTuple

from tests.faults.real import workers
from tests.faults.real.rig import Rig

Act = Callable[[Rig, Random, int], Awaitable[dict[str, float]]]


class Goal(NamedTuple):
    """A goal figure of the reliability contract.

    Attributes:
        title: what is done, as the table says it.
        act: one run; returns figures, among them `faults`, or raises `Violated`.
        gate, night: runs of the two sizes.
        together: how many runs share one system before everything is examined.
        latency_ms: of the pretended Graph.
        extra: variables of every process.
    """

    title: str
    act: Act
    gate: int
    night: int
    together: int
    latency_ms: int = 50
    extra: dict[str, str] = {}  # noqa: RUF012 - never changed


GOALS: Final[dict[str, Goal]] = {
    "G4": Goal("kill -9 of 1 of 3 workers", workers.kills, 27, 270, 9),
    "G9": Goal("SIGSTOP of workers for lease + 2 s", workers.zombies, 10, 100, 5),
    "G25": Goal(
        "SIGTERM under load, answers in 1 s",
        workers.drains,
        10,
        100,
        5,
        1000,
        {"WORKER_SLOTS": "32"},
    ),
}
