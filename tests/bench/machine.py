"""What the kernel and Valkey say: CPU seconds, memory, commands; and which machine this is."""

from __future__ import annotations

import os
import platform
import re
from collections import defaultdict
from pathlib import Path

import redis.asyncio

TICKS = os.sysconf("SC_CLK_TCK")
_IDLE = (3, 4)  # of the first line of /proc/stat: idle and iowait


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    children = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*"):
        try:
            children[int(_stat(int(path.name))[1])].append(int(path.name))
        except OSError:
            continue  # it has just ended
    found = [pid]
    for each in found:
        found += children[each]
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, its descendants and those of them that have ended."""
    used = 0
    for each in family(pid):
        try:
            used += sum(int(field) for field in _stat(each)[11:15])
        except OSError:
            continue
    return used / TICKS


def rss_mb(pid: int) -> float:
    """Return what the largest of a process and its descendants occupies."""
    sizes = [0.0]
    for each in family(pid):
        try:
            status = Path(f"/proc/{each}/status").read_text()
        except OSError:
            continue
        if found := re.search(r"^VmRSS:\s+(\d+)", status, re.MULTILINE):
            sizes.append(int(found[1]) / 1024)
    return round(max(sizes), 1)


def busy_s() -> float:
    """Return the CPU seconds this machine has spent on anything."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(x for i, x in enumerate(fields) if i not in _IDLE) / TICKS


async def told_by(client: redis.asyncio.Redis, section: str, name: str) -> int:
    """Return a number of Valkey's INFO."""
    return int((await client.info(section))[name])


def description() -> dict[str, str]:
    """Return what the figures depend on."""
    words = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", words, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "cores": str(os.cpu_count()),
        "processor": model[1] if model else platform.machine(),
        "memory": f"{int(memory[1]) / 2**20:.0f} GB" if memory else "",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
