"""Install the peers by name from PyPI and npm, each in an environment of its own in `.bench`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from tests.conftest import ROOT

HOME: Final = ROOT / ".bench"
HERE: Final = Path(__file__).parent
# taskiq's Redis part and saq's are packages or extras of their own; the client is one for all.
_CLIENT: Final = ("aiohttp", "hiredis", "uvloop")
PYTHON: Final = {
    "arq": ("arq", *_CLIENT),
    "saq": ("saq[redis,hiredis]", *_CLIENT),
    "taskiq": ("taskiq", "taskiq-redis", *_CLIENT),
    "streaq": ("streaq", *_CLIENT),
    "matplotlib": ("matplotlib",),
    "py-spy": ("py-spy",),
}
NODE: Final = ("bullmq", "ioredis", "undici")
_INSTALL_S: Final = 600


class Prepared(NamedTuple):
    """How to start something that was installed, or why it was not.

    Attributes:
        command: its first words; none when it cannot run.
        version: of the package.
        why: '' when it can run.
    """

    command: tuple[str, ...]
    version: str = ""
    why: str = ""


def python_of(name: str) -> Path:
    """Return the interpreter of an environment, whether it is there or not."""
    return HOME / "venv" / name / "bin" / "python"


def prepare(name: str) -> Prepared:
    """Install one of `PYTHON`, or BullMQ, unless it is there; say why it cannot run if so."""
    try:
        return _node() if name == "bullmq" else _python(name)
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout or "").strip().splitlines()[-1:]
        return Prepared((), why=f"not installed: {''.join(last)[:200]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Prepared((), why=f"not installed: {error}")


def _call(*words: str, cwd: Path = HOME) -> str:
    cwd.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        words, cwd=cwd, check=True, capture_output=True, text=True, timeout=_INSTALL_S
    )
    return done.stdout


def _python(name: str) -> Prepared:
    python, done = python_of(name), HOME / "venv" / f"{name}.version"
    if not done.exists():
        _call(sys.executable, "-m", "venv", str(python.parents[1]))
        _call(str(python), "-m", "pip", "install", "--quiet", "--prefer-binary", *PYTHON[name])
        asking = f"import importlib.metadata as m; print(m.version({name!r}))"
        done.write_text(_call(str(python), "-c", asking))
    return Prepared((str(python), str(HERE / f"{name}_peer.py")), done.read_text().strip())


def _node() -> Prepared:
    node, home = shutil.which("node"), HOME / "bullmq"
    if node is None:
        return Prepared((), why="not installed: no node on PATH")
    package = home / "node_modules" / "bullmq" / "package.json"
    if not package.exists():
        _call("npm", "install", "--no-audit", "--no-fund", *NODE, cwd=home)
    version = json.loads(package.read_text())["version"]
    return Prepared((node, str(HERE / "bullmq_peer.js")), version)
