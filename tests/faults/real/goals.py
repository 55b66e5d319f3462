"""Which goal figures run here, at which size, on which system."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Final, NamedTuple

from tests.faults.real import clocks, disks, door, network, stores, topologies, workers
from tests.faults.real.rig import Rig, Shape, Through

Act = Callable[[Rig, Random, int], Awaitable[dict[str, float]]]


class Goal(NamedTuple):
    """A goal figure of the reliability contract.

    Attributes:
        title: what is done, as the table says it.
        act: one run; returns figures, among them `faults`, or raises `Violated`.
        gate, night: runs of the two sizes.
        together: how many runs share one system before everything is examined.
        through: whose connections go through proxies.
        shape: of Redis, when one server is not enough.
        latency_ms: of the pretended Graph.
        extra: variables of every process.
    """

    title: str
    act: Act
    gate: int
    night: int
    together: int
    through: Through = ""
    shape: Shape = ""
    latency_ms: int = 50
    extra: dict[str, str] = {}  # noqa: RUF012 - never changed


GOALS: Final[dict[str, Goal]] = {
    "G4": Goal("kill -9 of 1 of 3 workers", workers.kills, 27, 270, 9),
    "G5": Goal("kill -9 of the API during submit", door.api_kills, 50, 500, 25),
    "G6": Goal("Valkey killed, or frozen for lease + 2 s", stores.redis_kills, 20, 200, 7),
    "G6w": Goal("Valkey wiped while sending", stores.wipe, 1, 10, 1),
    "G7": Goal("power cut: append-only file cut", stores.power_cuts, 10, 100, 1),
    "G8": Goal("PostgreSQL killed, frozen, away", stores.postgres_outages, 10, 100, 4),
    "G9": Goal("SIGSTOP of workers for lease + 2 s", workers.zombies, 10, 100, 5),
    "G10": Goal(
        "fault proxy between each pair",
        network.cell,
        60,
        300,
        6,
        "processes",
        extra={"GRAPH_TIMEOUT_S": "5", "WORKER_GRACE_S": "10"},
    ),
    "G12": Goal("8 MB of memory, full while sending", stores.full, 1, 10, 1),
    "G13": Goal("a full disk, everysec and always by turns", disks.full_disk, 2, 10, 1),
    "G14": Goal("one process's clock jumps an hour or a day", clocks.jumps, 6, 30, 1),
    "G15": Goal(
        "fail-over to a replica 0.8 s behind",
        stores.failovers,
        2,
        20,
        1,
        "all",
        extra={"WORKER_LEASE_MS": "5000"},
    ),
    "G15s": Goal(
        "Sentinel's fail-over, the link alive or cut",
        topologies.sentinel,
        2,
        20,
        1,
        shape="sentinel",
    ),
    "G16": Goal(
        "Cluster: a slot moved, a master lost", topologies.cluster, 1, 10, 1, shape="cluster"
    ),
    "G25": Goal(
        "SIGTERM under load, answers in 1 s",
        workers.drains,
        10,
        100,
        5,
        latency_ms=1000,
        extra={"WORKER_SLOTS": "32"},
    ),
}
