"""One lane of the enumeration: a process with its own servers, one piece after another."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from shared import settings as settings_module
from shared.clock import Clock
from shared.embedded.postgres import Postgres
from shared.embedded.valkey import Valkey
from tests.faults.enumerate import (
    Enumeration,
    Run,
    awaits,
    doubles,
    kept_plans,
    singles,
    variables,
)
from tests.faults.machine import explore

SHOWN_MAX: Final = 5  # failures of one piece, in full


class Piece(NamedTuple):
    """Some runs of one scenario: `part` of `parts` of its single faults, sampled pairs, stories."""

    goal: str
    scenario: str
    part: int = 0
    parts: int = 1
    pairs: int = 0
    seed: int = 0
    every: int = 1
    examples: int = 0


class Done(NamedTuple):
    """What a piece came to."""

    piece: Piece
    runs: int
    failed: list[str]
    shown: list[str]
    seconds: float


_made: list[Enumeration] = []
_closing: list[Callable[[], None]] = []


def open_servers() -> None:
    """Give this process a stage on servers of its own."""
    folder = Path(tempfile.mkdtemp(prefix="drumbeat-enumerate-"))
    folder.chmod(0o711)
    valkey = Valkey(folder / "valkey", fsync=False)
    postgres = Postgres(folder / "postgres", fsync=False)
    asyncio.run(valkey.start())
    asyncio.run(postgres.start())
    settings = settings_module.load(variables(valkey.url, postgres.url, "faults"), None)
    asyncio.run(import_module("shared.migrate").apply(settings))
    made = Enumeration(settings)
    made.__enter__()
    _made.append(made)

    def close() -> None:
        made.__exit__()
        asyncio.run(valkey.stop())
        asyncio.run(postgres.stop())
        shutil.rmtree(folder, ignore_errors=True)

    _closing.append(close)


def work(piece: Piece) -> Done:
    """Do a piece in this process."""
    made, clock = _made[0], Clock()
    began_s, runs, bad = clock.monotonic(), 0, []
    for run in _runs(made, piece):
        runs += 1
        if run.violations:
            bad.append(run)
    if piece.examples:
        bad = bad[-1:]  # the others are the way to the shortest
    failed = [run.text for run in bad]
    shown = [str(run) for run in bad[:SHOWN_MAX]]
    return Done(piece, runs, failed, shown, clock.monotonic() - began_s)


def _runs(made: Enumeration, piece: Piece) -> Iterator[Run]:
    if not piece.scenario:
        for text in kept_plans():
            yield made.replay(text)
    elif piece.examples:
        yield from explore(made, piece.examples, piece.seed)
    elif piece.goal.startswith("G3"):
        yield from awaits(made, piece.scenario)
    elif piece.pairs:
        chance = Random(piece.seed)  # noqa: S311 - repeatable
        yield from doubles(made, piece.scenario, piece.pairs, chance)
    else:
        clean = made.run(piece.scenario)
        yield clean
        plans = list(singles(clean.trace))
        # By chance, or some kinds would never meet some effects: eight kinds, every fourth.
        Random(piece.seed).shuffle(plans)  # noqa: S311 - repeatable
        for plan in plans[piece.part :: piece.parts * piece.every]:
            yield made.run(piece.scenario, plan)


def one(text: str) -> Run:
    """Run one plan or story in this process."""
    return _made[0].replay(text)


def close_servers() -> None:
    """End what `open_servers` began."""
    for close in _closing:
        close()
