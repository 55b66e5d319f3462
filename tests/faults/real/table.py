"""The one table at the end: goal, runs, faults, violations, figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tests.faults.real.goals import GOALS
from tests.faults.real.rig import Run


def again(run: Run) -> str:
    """Return the line that repeats a run.

    >>> again(Run("G4", 3, 17))
    '.venv/bin/python -m tests.faults.real --only G4 --index 3 --seed 17'
    """
    place = f"--only {run.goal} --index {run.index} --seed {run.seed}"
    return f".venv/bin/python -m tests.faults.real {place}"


def together(runs: Sequence[Run]) -> dict[str, float]:
    """Put figures together: `worst …` the highest, `least …` the lowest, all others summed.

    >>> together([Run("G4", 0, 1, figures={"unknown": 2, "worst s": 1.0}),
    ...           Run("G4", 1, 1, figures={"unknown": 3, "worst s": 0.5})])
    {'unknown': 5, 'worst s': 1.0}
    """
    values: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for name, value in run.figures.items():
            values[name].append(value)
    how = {"worst": max, "least": min}
    return {name: how.get(name.split()[0], sum)(found) for name, found in values.items()}


def table(runs: Sequence[Run]) -> str:
    """Return the table and, below it, what was violated and what did not run."""
    by_goal: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_goal[run.goal].append(run)
    rows = [("test", "runs", "N", "violations", "figures")]
    below = []
    for goal in sorted(by_goal, key=list(GOALS).index):
        ran = [run for run in by_goal[goal] if not run.skipped]
        bad = sum(len(run.violations) for run in ran)
        words = [f"{name} {value:.4g}" for name, value in together(ran).items()]
        count = str(sum(run.faults for run in ran))
        title = f"{goal} {GOALS[goal].title}"
        if ran:
            rows.append((title, str(len(ran)), count, str(bad), " · ".join(words)))
        missing = sorted({run.skipped for run in by_goal[goal] if run.skipped})
        rows += [(title, "-", "-", "-", f"not run: {why}") for why in missing]
        below += [
            f"{goal} violated: {sentence}\n    again: {again(run)}"
            for run in ran
            for sentence in run.violations
        ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row[:4], widths, strict=True)), row[4]])
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, *below])
