"""Run the real faults, several systems side by side, and print one table.

`python -m tests.faults.real` is the gate, `--night` the night; `--only G4,G9` some of it. A lane is
a process with servers of its own that takes sessions, one a line, from the parent.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, NamedTuple

import msgspec

from shared.clock import Clock
from tests.conftest import ROOT
from tests.faults.real.goals import GOALS, Goal
from tests.faults.real.rig import NotHere, Rig, Run, Violated
from tests.faults.real.table import again, table


class Session(NamedTuple):
    """Runs of one goal that share a system: (index, seed) of each."""

    goal: str
    runs: list[tuple[int, int]]


def sessions(asked: argparse.Namespace) -> Iterator[Session]:
    """Yield what is to be done, long sessions of one goal beside those of others."""
    names = asked.only.split(",") if asked.only else list(GOALS)
    if asked.index is not None:
        yield Session(names[0], [(asked.index, asked.seed)])
        return
    for name in names:
        goal = GOALS[name]
        count = asked.runs or (goal.night if asked.night else goal.gate)
        runs = [(i, asked.seed + i) for i in range(count)]
        for at in range(0, count, goal.together):
            yield Session(name, runs[at : at + goal.together])


# -- a lane --------------------------------------------------------------------------------


async def lane(results: Path, *, keep: bool) -> None:
    """Take sessions from standard input until it ends; append each run to the results."""
    # That PostgreSQL is away is no news here.
    logging.getLogger("asyncpg.pool").setLevel(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="drumbeat-faults-"))
    rig = Rig(folder)
    await rig.open()
    loop = asyncio.get_running_loop()
    is_clean = True
    try:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            session = msgspec.json.decode(line, type=Session)
            done = await play(rig, session)
            is_clean = is_clean and not any(run.violations for run in done)
            with results.open("ab") as file:
                file.writelines(msgspec.json.encode(run) + b"\n" for run in done)
            sys.stdout.write("done\n")
            sys.stdout.flush()
    finally:
        await rig.close()
        if is_clean and not keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            sys.stderr.write(f"logs and ledgers are kept in {folder}\n")


async def play(rig: Rig, session: Session) -> list[Run]:
    """Make a session's runs; after one that failed the rest begins on an empty system."""
    goal, clock = GOALS[session.goal], Clock()
    done: list[Run] = []
    since = 0
    is_fresh = False
    for index, seed in session.runs:
        run = Run(session.goal, index, seed)
        done.append(run)
        began_s = clock.monotonic()
        if not is_fresh:
            since = len(done) - 1
        await once(rig, goal, run, is_fresh=is_fresh)
        is_fresh = True
        run.took_s = clock.monotonic() - began_s
        if run.violations:
            is_fresh = False
            say(run)
        elif run is done[-1] and index == session.runs[-1][0]:
            await settle(rig, done[since:])
    return done


async def once(rig: Rig, goal: Goal, run: Run, *, is_fresh: bool) -> None:
    """Make one run and write down what came of it."""
    try:
        if not is_fresh:
            await rig.fresh(
                latency_ms=goal.latency_ms, through=goal.through, shape=goal.shape, **goal.extra
            )
        before = rig.leases_lost()
        figures = await goal.act(rig, Random(run.seed), run.index)  # noqa: S311 - of a test
        run.faults = int(figures.pop("faults", 1))
        run.figures = {**figures, "leases lost": rig.leases_lost() - before}
    except Violated as violated:
        run.violations = [str(violated)]
    except NotHere as missing:
        run.skipped = str(missing)
    except Exception as error:  # noqa: BLE001 - whatever broke it, the others must be made
        found = [x for x in leaves(error) if isinstance(x, Violated)]
        run.violations = [str(x) for x in found] or [f"{type(error).__name__}: {error}"]
        if not found:
            traceback.print_exception(error)


def leaves(error: BaseException) -> list[BaseException]:
    """Return what a group of errors is made of."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]


async def settle(rig: Rig, runs: list[Run]) -> None:
    """Examine a whole system at the end of its session; its last run answers for it."""
    try:
        found = await rig.verdict()
    except Exception as error:  # noqa: BLE001 - as above
        found = [f"{type(error).__name__}: {error}"]
    if found:
        seeds = ", ".join(str(run.seed) for run in runs)
        runs[-1].violations += [f"{sentence} (session of the seeds {seeds})" for sentence in found]
        say(runs[-1])


def say(run: Run) -> None:
    """Tell of a violation at once."""
    for sentence in run.violations:
        sys.stderr.write(f"{run.goal} violated: {sentence}\n    again: {again(run)}\n")
    sys.stderr.flush()


# -- the parent ----------------------------------------------------------------------------


async def drive(work: deque[Session], results: Path, *, keep: bool) -> None:
    """Give one lane work until there is none."""
    words = [sys.executable, "-m", "tests.faults.real", "--lane", str(results)]
    process = await asyncio.create_subprocess_exec(
        *words,
        *(["--keep"] if keep else []),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    while work and process.returncode is None:
        session = work.popleft()
        process.stdin.write(msgspec.json.encode(session) + b"\n")
        await process.stdin.drain()
        if not await process.stdout.readline():
            lost = [
                Run(session.goal, index, seed, violations=["the lane broke"])
                for index, seed in session.runs
            ]
            with results.open("ab") as file:
                file.writelines(msgspec.json.encode(run) + b"\n" for run in lost)
            break
    process.stdin.close()
    await process.wait()


async def parent(asked: argparse.Namespace) -> int:
    """Run everything, print the table, return the exit status."""
    began_s = Clock().monotonic()
    results: Path = asked.results or Path(tempfile.mkstemp(suffix=".jsonl", prefix="faults-")[1])
    results.write_bytes(b"")
    work = deque(sessions(asked))
    lanes = min(asked.side_by_side, len(work))
    sys.stderr.write(f"seed {asked.seed} · {len(work)} sessions on {lanes} systems · {results}\n")
    while work:
        await asyncio.gather(*(drive(work, results, keep=asked.keep) for _ in range(lanes)))
    runs = [msgspec.json.decode(line, type=Run) for line in results.read_bytes().splitlines()]
    took_s = Clock().monotonic() - began_s
    sys.stdout.write(f"{table(runs)}\n\nseed {asked.seed} · {took_s:.0f} s\n")
    return 1 if any(run.violations for run in runs) else 0


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="tests.faults.real", description=__doc__)
    add: Any = parser.add_argument
    add("--only", default="", help="goals, comma list; all without it")
    add("--night", action="store_true", help="the sizes of the night")
    add("--runs", type=int, default=0, help="so many runs of each goal")
    add("--index", type=int, help="just this run of the one goal")
    add("--seed", type=int, default=0, help="of the first run; drawn without it")
    add("--side-by-side", type=int, default=4, help="systems at once")
    add("--results", type=Path, help="file that each run is appended to")
    add("--keep", action="store_true", help="keep logs and ledgers of good runs too")
    add("--lane", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.seed = asked.seed or SystemRandom().randrange(1, 10**6)
    return asked


def main() -> int:
    """Be a lane or the parent."""
    asked = arguments()
    if asked.lane is not None:
        asyncio.run(lane(asked.lane, keep=asked.keep))
        return 0
    return asyncio.run(parent(asked))


if __name__ == "__main__":
    sys.exit(main())
