"""Run the whole enumeration on servers of its own and print one table; exit 1 on any violation.

`python -m tests.faults` is the gate, `--every 1 --doubles 7000 --examples 5000` the night, `--only
send,reap` or `--only machine` some of it. Every plan or story that fails is appended to
tests/regress/plans.txt, where it is run first.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from random import SystemRandom
from typing import Final

from tests.faults.enumerate import MACHINE, PLANS, kept_plans
from tests.faults.lane import Done, Piece, close_servers, one, open_servers, work
from tests.faults.scenarios import SCENARIOS

SHARE: Final = 4  # pieces a scenario's single faults are cut into
STORIES: Final = 200  # of the state machine in the gate: the same ones each time
STORIES_A_PIECE: Final = 100


def pieces(asked: argparse.Namespace, seed: int) -> Iterator[Piece]:
    """Yield what is to be done, the kept plans first."""
    names = asked.only.split(",") if asked.only else [*SCENARIOS, MACHINE]
    yield Piece("kept plans", "")
    if MACHINE in names:
        names.remove(MACHINE)
        first = seed if asked.seed is not None or asked.examples > STORIES else 0
        for i, at in enumerate(range(0, asked.examples, STORIES_A_PIECE)):
            count = min(STORIES_A_PIECE, asked.examples - at)
            yield Piece("L2 state machine", MACHINE, seed=first + i, examples=count)
    for name in names:
        for part in range(SHARE):
            yield Piece("G1 single faults", name, part, SHARE, seed=seed, every=asked.every)
    if "three" in names:
        yield Piece("G3 every await", "three")
    each = -(-asked.doubles // max(1, len(names)))
    for i, name in enumerate(names if each else []):
        yield Piece("G2 double faults", name, pairs=each, seed=seed + i)


def table(done: list[Done]) -> str:
    """Return one line a goal and scenario: test, N, violations, seconds."""
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for each in done:
        for key in ((each.piece.goal, each.piece.scenario), (each.piece.goal, "all")):
            sums[key][0] += each.runs
            sums[key][1] += len(each.failed)
            sums[key][2] += each.seconds
    lines = [f"{'test':<34}{'N':>8}{'violations':>12}{'seconds':>10}{'ms a run':>10}"]
    for (goal, scenario), (runs, bad, seconds) in sorted(sums.items()):
        pace = f"{1000 * seconds / max(1, runs):.1f}"
        lines.append(
            f"{f'{goal} {scenario}':<34}{runs:>8.0f}{bad:>12.0f}{seconds:>10.1f}{pace:>10}"
        )
    return "\n".join(lines)


def keep(failed: list[str]) -> None:
    """Append what failed and is not known yet to the plans that are run first."""
    known = set(kept_plans())
    with PLANS.open("a", encoding="utf-8") as file:
        for text in dict.fromkeys(failed):
            if text not in known:
                file.write(f"{text}\n")


def main() -> int:
    """Enumerate; return 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--only", default="", help="scenarios, by comma")
    parser.add_argument("--doubles", type=int, default=2100, help="sampled pairs of faults")
    parser.add_argument("--examples", type=int, default=STORIES, help="of the state machine")
    parser.add_argument("--every", type=int, default=4, help="one in n single faults")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with its servers")
    parser.add_argument("--seed", type=int, default=None, help="of faults, pairs, stories")
    parser.add_argument("--plan", default="", help="one plan or story, and what it comes to")
    asked = parser.parse_args()
    seed = SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    if asked.plan:
        open_servers()
        run = one(asked.plan)
        close_servers()
        print(run)  # noqa: T201 - what was asked for
        return int(bool(run.violations))
    print(f"seed {seed}")  # noqa: T201 - so that what was red can be drawn again
    done: list[Done] = []
    context = get_context("spawn")
    lanes = [
        ProcessPoolExecutor(1, mp_context=context, initializer=open_servers)
        for _ in range(asked.jobs)
    ]
    try:
        todo = list(pieces(asked, seed))
        futures = [lanes[i % len(lanes)].submit(work, piece) for i, piece in enumerate(todo)]
        for future in as_completed(futures):
            done.append(future.result())
            for text in done[-1].shown:
                print(text, flush=True)  # noqa: T201 - at once: the rest takes minutes
    finally:
        for lane in lanes:
            lane.submit(close_servers).result()
            lane.shutdown()
    print(table(done))  # noqa: T201 - the result
    failed = [text for each in done for text in each.failed]
    keep(failed)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
