"""Start, wait for, stop and reap the processes that we start."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from shared.clock import Clock
from shared.errors import DrumbeatError

NOBODY: Final = 65534
_POLL_S: Final = 0.02
_TAIL: Final = 2000


class ChildError(DrumbeatError):
    """A process that we need did not start, or has no binary here."""

    code = "child_failed"


def free_port(wanted: int = 0) -> int:
    """Return `wanted` if it is free on 127.0.0.1, else a port that is."""
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", wanted))
        return int(probe.getsockname()[1])
    return free_port()


def is_open(port: int) -> bool:
    """Tell whether somebody listens on `port` of 127.0.0.1."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def fingerprint(pid: int) -> str:
    """Return a process's start time and command line, or '' when there is none."""
    folder = Path(f"/proc/{pid}")
    try:
        if Path("/proc/self").exists():
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] == "Z":
                return ""
            command = (
                (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            return f"{fields[19]} {command.strip()}"
        listing = ["/bin/ps", "-o", "lstart=,command=", "-p", str(pid)]
        return subprocess.run(listing, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603 - fixed words and a number
    except (OSError, IndexError):
        return ""


class Child:
    """One process of ours, with a pid file that outlives us.

    Args:
        name: of the pid file and the log.
        command: what to run; its first word is a path.
        folder: where `<name>.pid` and `<name>.log` go.
        env: the whole environment.
        as_nobody: run with uid 65534.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        env: Mapping[str, str],
        *,
        as_nobody: bool = False,
    ) -> None:
        """Start nothing yet."""
        self.name = name
        self.command = list(command)
        self.env = dict(env)
        self.log = folder / f"{name}.log"
        self._pid_file = folder / f"{name}.pid"
        self._as_nobody = as_nobody
        self._clock = Clock()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return the process id, 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def is_running(self) -> bool:
        """Tell whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Return its exit code; negative: the signal; None: it runs, or never did."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches us alone."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                self.command,
                stdin=subprocess.PIPE,  # its end tells the child that we are gone
                stdout=log,
                stderr=log,
                env=self.env,
                start_new_session=True,
                user=NOBODY if self._as_nobody else None,
                group=NOBODY if self._as_nobody else None,
                extra_groups=[] if self._as_nobody else None,
            )
        note = {"pid": self.pid, "is": fingerprint(self.pid)}
        self._pid_file.write_text(json.dumps(note))

    def send(self, number: int) -> None:
        """Send a signal if it still runs."""
        if self._process is not None and self.is_running:
            self._process.send_signal(number)

    async def wait(self, within_s: float) -> bool:
        """Wait until it has ended; return whether it did in time."""
        end = self._clock.monotonic() + within_s
        while self.is_running and self._clock.monotonic() < end:
            await self._clock.sleep(_POLL_S)
        return not self.is_running

    async def kill(self) -> None:
        """End it at once, as a power cut would."""
        self.send(signal.SIGKILL)
        await self.wait(5)
        self._forget()

    async def stop(self, within_s: float = 10, number: int = signal.SIGTERM) -> None:
        """Ask it to leave; after `within_s` make it."""
        self.send(number)
        if not await self.wait(within_s):
            self.send(signal.SIGKILL)
            await self.wait(5)
        self._forget()

    def tail(self) -> str:
        """Return the end of its log."""
        with contextlib.suppress(OSError):
            return self.log.read_bytes()[-_TAIL:].decode(errors="replace")
        return ""

    def _forget(self) -> None:
        self._pid_file.unlink(missing_ok=True)
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


async def reap(folder: Path) -> list[str]:
    """End what an earlier run left behind, known by pid, start time and command; return names."""
    clock = Clock()
    ended = []
    for path in sorted(folder.glob("*.pid")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            note = json.loads(path.read_text())
            pid, was = int(note["pid"]), str(note["is"])
            if was and fingerprint(pid) == was:
                ended.append(path.stem)
                # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for its clients.
                os.kill(pid, signal.SIGINT if path.stem == "postgres" else signal.SIGTERM)
                for _ in range(250):
                    if fingerprint(pid) != was:
                        break
                    await clock.sleep(_POLL_S)
                else:
                    os.kill(pid, signal.SIGKILL)
        path.unlink(missing_ok=True)
    return ended
