"""Leave when the process that started us is gone: its end of our stdin closes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

_READ = 4096


def watch_stdin(stop: Callable[[], None]) -> None:
    """Call `stop` once, in the running loop, when stdin ends.

    Whoever calls has read DRUMBEAT_EXIT_ON_EOF; a process without a parent of ours must not do
    this, because a service's stdin is often `/dev/null`, which ends at once.
    """
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def readable() -> None:
        if not os.read(descriptor, _READ):
            loop.remove_reader(descriptor)
            stop()

    loop.add_reader(descriptor, readable)
