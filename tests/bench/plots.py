"""The pictures: `plots.py RESULTS FOLDER`; imports nothing of ours, runs where matplotlib is."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

OURS, THEIRS, SECOND = "#0b6e4f", "#9aa5b1", "#d9a441"
INCHES, DPI = 7.0, 110
Rows = dict[str, list[float]]


def medians(part: dict[str, Any], figure: str) -> dict[str, float]:
    rows: Rows = {}
    for each in part["rounds"]:
        value = each.get("figures", {}).get(figure)
        if value is not None:
            rows.setdefault(each["contender"], []).append(value)
    return {name: statistics.median(found) for name, found in rows.items()}


def colour(name: str) -> str:
    return OURS if name.startswith("Drumbeat") else THEIRS


def finish(folder: Path, name: str) -> None:
    plt.gca().spines[["top", "right"]].set_visible(False)
    plt.tight_layout()
    # Without the program's version the same figures make the same file.
    plt.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Software": None})
    plt.close()


def bars(values: dict[str, float], title: str, form: str) -> None:
    names = list(values)[::-1]
    plt.figure(figsize=(INCHES, 0.42 * len(names) + 1.0))
    drawn = plt.barh(names, [values[name] for name in names], color=[*map(colour, names)])
    plt.bar_label(drawn, fmt=form, padding=3)
    plt.margins(x=0.12)
    plt.title(title, loc="left", fontsize=11)


def worker(part: dict[str, Any]) -> None:
    cpu, valkey = medians(part, "worker_cpu_s_per_1000"), medians(part, "valkey_cpu_s_per_1000")
    names = list(cpu)[::-1]
    plt.figure(figsize=(INCHES, 0.42 * len(names) + 1.0))
    mine = [cpu[name] for name in names]
    plt.barh(names, mine, color=[*map(colour, names)], label="worker")
    plt.barh(names, [valkey.get(n, 0) for n in names], left=mine, color=SECOND, label="Valkey")
    for row, name in enumerate(names):
        total = cpu[name] + valkey.get(name, 0)
        plt.text(total, row, f"  {total:.3f}", va="center", fontsize=9)
    plt.margins(x=0.12)
    plt.title("CPU seconds per 1,000 messages: worker, Valkey (yellow)", loc="left", fontsize=11)


def paced(part: dict[str, Any]) -> None:
    bars(medians(part, "core_at_1000_per_s"), "Share of a core at 1,000 messages/s", "%.2f")


def queued(part: dict[str, Any]) -> None:
    bars(medians(part, "bytes_per_recipient"), "Bytes of Redis per queued recipient", "%.0f")


def recovery(part: dict[str, Any]) -> None:
    bars(medians(part, "recovery_s"), "Seconds until all is well after kill -9", "%.0f")


def scaling(part: dict[str, Any]) -> None:
    rates = medians(part, "rate")
    counts = [int(name.split()[0]) for name in rates]
    plt.figure(figsize=(INCHES, 3.2))
    plt.plot(counts, list(rates.values()), "o-", color=OURS, label="measured")
    first = next(iter(rates.values()))
    plt.plot(counts, [first * n / counts[0] for n in counts], "--", color=THEIRS, label="n times")
    plt.xticks(counts)
    plt.ylim(bottom=0)
    plt.legend(frameon=False)
    plt.title("Messages/s by number of workers, 100 ms", loc="left", fontsize=11)


def costs(part: dict[str, Any]) -> None:
    cpu, valkey = medians(part, "worker_cpu_s_per_1000"), medians(part, "valkey_cpu_s_per_1000")
    names = list(cpu)[::-1]
    plt.figure(figsize=(INCHES, 0.42 * len(names) + 1.0))
    mine = [cpu[name] for name in names]
    plt.barh(names, mine, color=OURS)
    plt.barh(names, [valkey.get(name, 0) for name in names], left=mine, color=SECOND)
    plt.title("CPU seconds per 1,000 messages: worker, Valkey (yellow)", loc="left", fontsize=11)


PLOTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "worker": worker,
    "paced": paced,
    "queued": queued,
    "recovery": recovery,
    "scaling": scaling,
    "costs": costs,
}


def main(results: Path, folder: Path) -> None:
    parts = json.loads(results.read_text())["parts"]
    for name, draw in PLOTS.items():
        if name in parts:
            draw(parts[name])
            finish(folder, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
