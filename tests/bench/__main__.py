"""Measure, merge into `docs/performance/results.json`, write the page, the plots, the README.

`python -m tests.bench` runs all parts; `--only worker,accept` some of them, `--quick` smaller, and
`--long` what takes many minutes too. `--render` writes anew what is there. Exit 1: a limit of
`figures.LIMITS` is exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from shared.embedded import valkey
from shared.errors import DrumbeatError
from tests.bench import (
    accept,
    commands,
    costs,
    live,
    machine,
    memory,
    page,
    recovery,
    scaling,
    worker,
)
from tests.bench.contest import PEERS, STREAQ_PEER, ready
from tests.bench.figures import Part, Results, Round, faults, ratios
from tests.bench.peers.prepare import prepare
from tests.bench.rig import Asked, Rig, StalledError
from tests.conftest import ROOT

OUT: Final = ROOT / "docs" / "performance"
README: Final = ROOT / "README.md"
RESULTS: Final = "results.json"
PARTS: Final[dict[str, Callable[[Rig, Asked], AsyncIterator[Round]]]] = {
    "worker": worker.flat_out,
    "commands": commands.commands,
    "paced": worker.paced,
    "most": worker.most,
    "accept": accept.accepting,
    "queued": accept.queued,
    "recovery": recovery.recovering,
    "live": live.watched,
    "scaling": scaling.scaling,
    "costs": costs.costs,
    "memory": memory.after_many,
}
ROUNDS, MESSAGES = 4, 10_000
QUICK_ROUNDS, QUICK_MESSAGES = 1, 4_000


def say(line: str) -> None:
    """Print one line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def line_of(part: str, done: Round) -> str:
    """Return a round as one line."""
    words = [f"{name} {'never' if x is None else f'{x:g}'}" for name, x in done.figures.items()]
    return f"{part:<9}{done.turn:>2}  {done.contender:<22}{done.not_run or ' · '.join(words)}"


async def measure(rig: Rig, name: str, asked: Asked) -> Part:
    """Run one part; a part that breaks off keeps the rounds it has."""
    rounds: list[Round] = []
    try:
        async for done in PARTS[name](rig, asked):
            rounds.append(done)
            say(line_of(name, done))
    except (StalledError, DrumbeatError, OSError) as error:
        say(f"{name}: broke off: {error}")
    told = {"rounds": asked.rounds, "messages": asked.messages}
    return Part(now(), told, rounds)


def now() -> str:
    """Return the time, to the minute."""
    return datetime.now(UTC).isoformat(timespec="minutes")


def versions() -> dict[str, str]:
    """Return what the peers and the servers call themselves; those that cannot run are left out."""
    peers = {peer.package: ready(peer).version for peer in (*PEERS, STREAQ_PEER)}
    said = subprocess.run(
        [valkey.binary(), "--version"], capture_output=True, text=True, check=True
    )
    number = said.stdout.partition("v=")[2].partition(" ")[0]
    return {"Valkey": number} | {name: version for name, version in peers.items() if version}


def render(results: Results, out: Path) -> None:
    """Write the page, the plots and, unless it is a trial's, the README's block."""
    (out / "README.md").write_text(page.page(results), encoding="utf-8")
    if out == OUT:
        text = README.read_text(encoding="utf-8")
        README.write_text(page.with_block(text, page.block(results)), encoding="utf-8")
    plotter = prepare("matplotlib")
    if plotter.why:
        say(f"no plots: {plotter.why}")
        return
    program = str(Path(__file__).parent / "plots.py")
    subprocess.run([plotter.command[0], program, str(out / RESULTS), str(out)], check=True)


async def run(names: list[str], asked: Asked, out: Path) -> None:
    """Measure parts, keeping each as soon as it is there."""
    folder = Path(tempfile.mkdtemp(prefix="drumbeat-bench-"))
    rig = Rig(folder)
    try:
        await rig.open()
        for name in names:
            keep(name, await measure(rig, name, asked), out)
    finally:
        await rig.close()
        shutil.rmtree(folder, ignore_errors=True)


def read(out: Path) -> Results:
    """Return what was measured before."""
    if not (out / RESULTS).exists():
        return Results()
    return msgspec.json.decode((out / RESULTS).read_bytes(), type=Results)


def keep(name: str, part: Part, out: Path) -> None:
    """Merge a part into what was measured before; one without a round changes nothing."""
    if not part.rounds:
        return
    results = read(out)
    results.parts[name] = part
    results.parts = {each: results.parts[each] for each in PARTS if each in results.parts}
    results.date, results.machine = part.date, machine.description()
    results.versions = versions()
    save(results, out)


def save(results: Results, out: Path) -> None:
    """Write what was measured, and what it comes to by now."""
    results.ratios = ratios(results.parts)
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULTS).write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def main() -> int:
    """Measure what is asked for; return 1 when a limit is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--only", default="", help=f"parts, by comma: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=0, help=f"{ROUNDS}; quick: {QUICK_ROUNDS}")
    parser.add_argument("--messages", type=int, default=0, help=f"{MESSAGES} a measurement")
    parser.add_argument("--quick", action="store_true", help="within five minutes")
    parser.add_argument("--long", action="store_true", help="peers' recovery, 500,000 messages")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=OUT, help="another folder, for a trial")
    words = parser.parse_args()
    quick = [name for name in PARTS if name != "memory"]
    names = words.only.split(",") if words.only else quick if words.quick else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}")
    asked = Asked(
        words.rounds or (QUICK_ROUNDS if words.quick else ROUNDS),
        words.messages or (QUICK_MESSAGES if words.quick else MESSAGES),
        words.quick,
        words.long,
    )
    if not words.render:
        asyncio.run(run(names, asked, words.out))
    results = read(words.out)
    save(results, words.out)
    render(results, words.out)
    broken = faults(results)
    for sentence in broken:
        say(sentence)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
