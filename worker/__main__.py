"""`python -m worker [--slots N]`: one process of the pool, in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

import msgspec
import uvloop

from shared import logs
from shared import settings as settings_module
from shared.errors import DrumbeatError
from shared.lifeline import watch_stdin
from shared.settings import Settings
from worker.app import run


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then drain; at SIGHUP read the token of WHATSAPP_* again."""
    stop, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, again.set)
    if settings.drumbeat_exit_on_eof:
        watch_stdin(stop.set)
    await run(settings, stop, again=again)


def main() -> int:
    """Read the settings and run; 2 for wrong settings, 3 for a store that cannot be reached."""
    parser = argparse.ArgumentParser(prog="drumbeat worker")
    parser.add_argument("--slots", type=int, default=0, help="claims at once; WORKER_SLOTS")
    words = parser.parse_args()
    try:
        settings = settings_module.load()
        if words.slots:
            settings = msgspec.structs.replace(settings, worker_slots=words.slots)
        logs.setup(settings, "worker")
        uvloop.run(serve(settings))
    except DrumbeatError as error:
        sys.stderr.write(f"drumbeat worker: {error}\n")
        return 2 if error.code == "bad_settings" else 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
