"""What the rounds of the benchmarks come to: medians, ratios, limits. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

THIN: Final = "Drumbeat"
AIOHTTP: Final = "Drumbeat, aiohttp"
ALONE: Final = "client alone"
ALONE_AIOHTTP: Final = "client alone, aiohttp"
BULLMQ: Final = "BullMQ"
SAQ: Final = "saq"
SAQ_CHUNK: Final = "saq, 50 + gather"
ARQ: Final = "arq"
TASKIQ: Final = "taskiq"
STREAQ: Final = "streaq"
ONE_JOB: Final = "1 job of 50,000"
MANY_JOBS: Final = "1,000 jobs of 50"
MANY_SENDERS: Final = "1,000 senders"  # a job of 50 each
OURS: Final = frozenset({THIN, AIOHTTP})

# What a change must not make worse than this; None of the ratios is one, they tell.
LIMITS: Final = {"lost": 0.0, "duplicates": 0.0, "accept_50000_s": 0.5}
BYTES_MAX: Final = 30.0  # of Redis per queued recipient


class Round(msgspec.Struct, omit_defaults=True):
    """One measurement of one contender.

    Attributes:
        contender: who; in the parts that vary something, with what (`8 workers`).
        turn: which of the interleaved rounds, from 0.
        figures: name → value, the unit last in the name; None = never.
        not_run: why there are none, '' when there are.
        is_stored: taken from an earlier run, see `recovery.STORED`.
    """

    contender: str
    turn: int
    figures: dict[str, float | None] = {}
    not_run: str = ""
    is_stored: bool = False


class Part(msgspec.Struct):
    """All rounds of one part, and what it was asked for."""

    date: str
    asked: dict[str, int]
    rounds: list[Round]


class Results(msgspec.Struct):
    """`results.json`.

    Attributes:
        date: of the newest part.
        machine: what it ran on.
        versions: of the peers and servers.
        ratios: the keys of `ratios`; None: the part has not been run.
    """

    date: str = ""
    machine: dict[str, str] = {}
    versions: dict[str, str] = {}
    ratios: dict[str, float | None] = {}
    parts: dict[str, Part] = {}


def per_thousand(before: float, after: float, count: int) -> float:
    """Return what a thousand of `count` took.

    >>> per_thousand(1.0, 1.5, 10_000)
    0.05
    """
    return round((after - before) * 1000 / count, 6)


def share_at(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of all do not exceed, by nearest rank.

    >>> share_at([3.0, 1.0, 2.0, 4.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def values(rounds: Sequence[Round], contender: str, name: str) -> dict[int, float]:
    """Return a contender's figure by turn; what is not there, or never came, is left out."""
    return {
        each.turn: value
        for each in rounds
        if each.contender == contender and (value := each.figures.get(name)) is not None
    }


def median(rounds: Sequence[Round], contender: str, name: str) -> float | None:
    """Return the median of a contender's figure over its rounds, None without any."""
    found = values(rounds, contender, name)
    return statistics.median(found.values()) if found else None


def ratio(rounds: Sequence[Round], ours: str, other: str, *names: str) -> float | None:
    """Return the median over the rounds of ours / theirs: a slow minute slows both of a round.

    Args:
        rounds: of one part.
        ours: contender above the line.
        other: contender below it.
        names: figures that are added up.
    """
    above = [values(rounds, ours, name) for name in names]
    below = [values(rounds, other, name) for name in names]
    turns = set.intersection(*(set(found) for found in [*above, *below]))
    pairs = [(sum(f[turn] for f in above), sum(f[turn] for f in below)) for turn in sorted(turns)]
    quotients = [a / b for a, b in pairs if b]
    return statistics.median(quotients) if quotients else None


def total(parts: dict[str, Part], name: str) -> float | None:
    """Return the sum of a figure over all rounds of ours, in whatever part; None without any."""
    found = [
        value
        for part in parts.values()
        for each in part.rounds
        if is_ours(each.contender) and (value := each.figures.get(name)) is not None
    ]
    return sum(found) if found else None


def workers(count: int) -> str:
    """Return the contender that so many workers are.

    >>> workers(1), workers(8)
    ('1 worker', '8 workers')
    """
    return f"{count} worker" + "s" * (count > 1)


def is_ours(contender: str) -> bool:
    """Tell whether Drumbeat was measured: alone in its part, or by name."""
    return contender in OURS or contender[:1].isdigit()


def ratios(parts: dict[str, Part]) -> dict[str, float | None]:
    """Return what `results.json` has under `ratios`, None for parts that have not been run."""

    def of(part: str) -> list[Round]:
        return parts[part].rounds if part in parts else []

    cpu, valkey = "worker_cpu_s_per_1000", "valkey_cpu_s_per_1000"
    worker, accept, costs = of("worker"), of("accept"), of("costs")
    found = {
        "worker_cpu_vs_bullmq": ratio(worker, THIN, BULLMQ, cpu),
        "worker_cpu_vs_saq": ratio(worker, THIN, SAQ, cpu),
        "worker_cpu_vs_saq_chunk": ratio(worker, THIN, SAQ_CHUNK, cpu),
        "worker_cpu_vs_client_alone": ratio(worker, THIN, ALONE, cpu),
        "valkey_cpu_vs_bullmq": ratio(worker, THIN, BULLMQ, valkey),
        "commands_per_message": median(of("commands"), THIN, "sent_per_message"),
        "core_at_1000_per_s": median(of("paced"), THIN, "core_at_1000_per_s"),
        "most_vs_bullmq": ratio(of("most"), THIN, BULLMQ, "rate"),
        "accept_50000_s": median(accept, THIN, "accept_s"),
        "accept_vs_bullmq": ratio(accept, THIN, BULLMQ, "accept_s"),
        "recovery_s": median(of("recovery"), THIN, "recovery_s"),
        "lost": total(parts, "lost"),
        "duplicates": total(parts, "duplicates"),
        "cost_1000_jobs_vs_1": ratio(costs, MANY_JOBS, ONE_JOB, cpu, valkey),
        "cost_1000_senders_vs_1": ratio(costs, MANY_SENDERS, MANY_JOBS, cpu, valkey),
        "sse_p99_s": median(of("live"), THIN, "p99_s"),
    }
    return {name: None if value is None else round(value, 4) for name, value in found.items()}


def faults(results: Results) -> list[str]:
    """Return a sentence for each limit that the results exceed."""
    queued = results.parts.get("queued")
    size = median(queued.rounds, THIN, "bytes_per_recipient") if queued else None
    measured = {**results.ratios, "bytes_per_recipient": size}
    limits = {**LIMITS, "bytes_per_recipient": BYTES_MAX}
    return [
        f"{name} is {value:g}, more than {limits[name]:g}"
        for name in limits
        if (value := measured.get(name)) is not None and value > limits[name]
    ]
