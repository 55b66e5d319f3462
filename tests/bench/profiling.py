"""Where a worker's time goes: `python -m tests.bench.profiling` writes docs/performance/profile.md.

py-spy looks at one worker that sends 20,000 messages at 0 ms; where it cannot be installed or may
not look, cProfile runs the worker, whose own cost then lies on every call.
"""

from __future__ import annotations

import argparse
import asyncio
import pstats
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from shared.embedded.children import Child, free_port
from tests.bench import machine
from tests.bench.peers.prepare import HOME, prepare
from tests.bench.rig import DEFAULTS, Rig, StalledError, System, until
from tests.conftest import ROOT
from tests.e2e.stack import is_at_work

MESSAGES: Final = 20_000
RATE: Final = 400  # samples a second
SHOWN: Final = 40
OUT: Final = ROOT / "docs" / "performance" / "profile.md"
_FRAME: Final = re.compile(r"^.+ \((?P<package>[^/)]+)/[^)]+\)$")
_NO_PACKAGE: Final = "no package"


def self_times(stacks: str) -> list[tuple[str, float]]:
    """Return function → share of the samples in which it was the innermost, most first.

    Args:
        stacks: lines of `outer;inner count`, as flame graphs are drawn from.

    >>> self_times("a;b 3\\na 1")
    [('b', 0.75), ('a', 0.25)]
    """
    counts: Counter[str] = Counter()
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        counts[frames.rpartition(";")[2]] += int(count)
    whole = sum(counts.values())
    return [(name, count / whole) for name, count in counts.most_common()]


def by_library(times: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return the first folder of each function's file → share, most first.

    >>> by_library([("f (worker/a.py:1)", 0.5), ("g (worker/b.py:2)", 0.25), ("h (x.py)", 0.25)])
    [('worker', 0.75), ('no package', 0.25)]
    """
    shares: defaultdict[str, float] = defaultdict(float)
    for name, share in times:
        found = _FRAME.match(name)
        shares[found["package"] if found else _NO_PACKAGE] += share
    return sorted(shares.items(), key=lambda each: -each[1])


def page(times: list[tuple[str, float]], how: str, facts: str) -> str:
    """Return the profile as Markdown."""
    head = (
        "# Where a worker's time goes\n\n"
        f"Written by `make profile`: one worker, {MESSAGES:,} messages at 0 ms, everything on. "
        f"{how} Self time: what runs in C counts for the Python function that called it; "
        "`Runner.run` is the event loop itself.\n\n"
        f"{facts}\n\n"
    )
    places = "".join(f"| {name} | {share:.1%} |\n" for name, share in by_library(times)[:12])
    rows = "".join(f"| {share:.1%} | `{name}` |\n" for name, share in times[:SHOWN])
    return f"{head}| package | self |\n|---|--:|\n{places}\n| self | function |\n|--:|---|\n{rows}"


async def watched_by_py_spy(system: System, folder: Path) -> list[tuple[str, float]]:
    """Look at a worker from outside while it sends."""
    program = HOME / "venv" / "py-spy" / "bin" / "py-spy"
    await system.add_workers()
    jobs = await system.submit([MESSAGES])
    out = folder / "stacks.txt"
    words = ["record", "--pid", str(system.stack.workers[0].pid), "--rate", str(RATE)]
    words += ["--format", "raw", "--function", "--output", str(out), "--duration", "600"]
    spy = Child("py-spy", [str(program), *words], folder, {"PATH": "/usr/bin:/bin"})
    spy.start()
    try:
        await until(lambda: "Sampling" in spy.tail() or not spy.is_running, 20, "py-spy looks")
        await system.release()
        await system.far.has_seen(MESSAGES)
        await until(lambda: system.are_over(jobs), 60, "the job's end", 0.2)
    finally:
        await spy.stop(within_s=20, number=signal.SIGINT)
    if not out.exists():
        raise StalledError(f"py-spy may not look: {spy.tail()[-300:]}")
    return self_times(out.read_text())


async def run_by_cprofile(system: System, folder: Path) -> list[tuple[str, float]]:
    """Have cProfile run a worker while it sends."""
    out, stack = folder / "profile.bin", system.stack
    extra = {**DEFAULTS, "GRAPH_BASE_URL": system.far.origin, "METRICS_PORT": str(free_port())}
    words = ("-o", str(out), "-m", "worker")
    child = stack.processes.start("cProfile", *words, **extra)
    stack.workers.append(child)
    await until(lambda: is_at_work(stack, child), 60, "the worker ticks")
    await system.submit([MESSAGES])
    await system.release()
    await system.far.has_seen(MESSAGES)
    await child.stop(within_s=30)
    rows = pstats.Stats(str(out)).stats  # type: ignore[attr-defined]
    whole = sum(row[2] for row in rows.values())
    shares = [(f"{name} ({short(file)})", row[2] / whole) for (file, _, name), row in rows.items()]
    return sorted(shares, key=lambda each: -each[1])


def short(file: str) -> str:
    """Return a file's path from its package on.

    >>> short("/x/site-packages/redis/client.py")
    'redis/client.py'
    """
    inside = file.rpartition("site-packages/")[2].removeprefix(f"{ROOT}/")
    return inside.rpartition(f"python{sys.version_info[0]}.{sys.version_info[1]}/")[2]


async def profile(*, is_inside: bool) -> tuple[list[tuple[str, float]], str]:
    """Return the self times and how they were had."""
    folder = Path(tempfile.mkdtemp(prefix="drumbeat-profile-"))
    rig = Rig(folder)
    spy = prepare("py-spy")
    try:
        await rig.open()
        async with rig.far_side() as far:
            if not (is_inside or spy.why):
                async with rig.system(far) as system:
                    how = f"py-spy {spy.version}, {RATE} samples a second."
                    return await watched_by_py_spy(system, folder), how
            async with rig.system(far) as system:
                how = "cProfile, whose own cost lies on every call."
                return await run_by_cprofile(system, folder), how
    finally:
        await rig.close()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Profile and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profiling")
    parser.add_argument("--cprofile", action="store_true", help="not with py-spy")
    parser.add_argument("--out", type=Path, default=OUT)
    words = parser.parse_args()
    times, how = asyncio.run(profile(is_inside=words.cprofile))
    facts = " · ".join(f"{name} {value}" for name, value in machine.description().items() if value)
    date = datetime.now(UTC).date().isoformat()
    words.out.parent.mkdir(parents=True, exist_ok=True)
    words.out.write_text(page(times, how, f"{date} · {facts}"), encoding="utf-8")
    sys.stdout.write(f"{words.out}\n")


if __name__ == "__main__":
    main()
