"""The verbs of `drumbeat`, and what every exit code means."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from importlib.metadata import version
from typing import Final

import cyclopts

from shared.errors import DrumbeatError, RequestError, SettingsError

OK: Final = 0
NO: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
BUG: Final = 70
INTERRUPTED: Final = 130

app = cyclopts.App(
    name="drumbeat",
    help="Bulk WhatsApp messages over Redis Streams.",
    # By itself cyclopts looks for a distribution called as our package, `api`.
    version=lambda: version("drumbeat"),
    version_flags=["--version"],
    result_action="return_value",
)
# By module: a verb costs what its own module costs, and a health check is asked for all day long.
_VERBS: Final = {
    "admin": ("key", "sender", "user"),
    "check": ("check",),
    "config": ("config",),
    "doctor": ("doctor",),
    "erase": ("erase",),
    "health": ("health",),
    "jobs": ("jobs", "send", "stats"),
    "local": ("demo", "up"),
    "pool": ("disable", "enable"),
    "purge": ("purge",),
    "suppress": ("suppress",),
    "trigger": ("trigger",),
}
for _module, _verbs in _VERBS.items():
    for _verb in _verbs:
        app.command(f"api.cli.{_module}:{_verb}", name=_verb)


def _become(module: str, words: tuple[str, ...] = ()) -> None:
    """Turn into `python -m module`, so that a container's signals arrive."""
    os.execv(sys.executable, [sys.executable, "-m", module, *words])  # noqa: S606 - our own module


@app.command
def api() -> None:
    """Run one API process in the foreground."""
    _become("api")


@app.command
def worker(*, slots: int | None = None) -> None:
    """Run one worker in the foreground.

    Args:
        slots: claims at once; WORKER_SLOTS.
    """
    _become("worker", () if slots is None else ("--slots", str(slots)))


@app.command
def sandbox(*words: str) -> None:
    """Run the pretend Graph API in the foreground; options go behind `--`."""
    _become("worker.sandbox", words)


@app.command
def migrate(*, check: bool = False) -> None:
    """Bring the database up to date.

    Args:
        check: change nothing; say whether it is.
    """
    _become("shared.migrate", ("--check",) if check else ())


def main() -> int:
    """Run one command; return its exit code. Never shows a traceback."""
    try:
        if sys.argv[1:2] in ([], ["-h"], ["--help"]):
            _load_all()
        result = app(sys.argv[1:])
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else USAGE
    except SettingsError as error:
        return _say(error, USAGE)
    except RequestError as error:
        return _say(error, NO)
    except (DrumbeatError, OSError) as error:
        return _say(error, UNREACHABLE)
    except Exception:  # noqa: BLE001 - the edge: a bug goes to a file, not to the reader
        with tempfile.NamedTemporaryFile(
            "w", prefix="drumbeat-", suffix=".txt", delete=False
        ) as file:
            file.write(traceback.format_exc())
        return _say(f"this is a bug of ours; its traces are in {file.name}", BUG)
    return result if isinstance(result, int) else OK


def _load_all() -> None:
    """Load every verb: what each does is shown by the list of all, and stands in its module."""
    for verb in app:
        app[verb]


def _say(error: object, code: int) -> int:
    sys.stderr.write(f"drumbeat: {error}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
