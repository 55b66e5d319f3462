"""`python -m api`: one API process, in the foreground."""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop

from api.app import run
from shared import logs
from shared import settings as settings_module
from shared.errors import DrumbeatError
from shared.lifeline import watch_stdin
from shared.metrics import ours
from shared.settings import Settings


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; then drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.drumbeat_exit_on_eof:
        watch_stdin(stop.set)
    await run(settings, stop)


def main() -> int:
    """Read the settings and run; 2 for wrong settings, 3 for a store that cannot be reached."""
    try:
        settings = settings_module.load()
        logs.setup(settings, "api", version=ours())
        uvloop.run(serve(settings))
    except DrumbeatError as error:
        sys.stderr.write(f"drumbeat api: {error}\n")
        return 2 if error.code == "bad_settings" else 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
