"""What every test of the endpoints, and of whole processes, may ask for."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.embedded.children import is_open
from tests.conftest import Processes
from tests.e2e.stack import stack
from tests.integration.command import run
from tests.integration.desk import api
from tests.integration.postbox import post

__all__ = ["api", "post", "run", "stack"]


@pytest.fixture
async def graph(processes: Processes, eventually: Callable[..., Awaitable[Any]]) -> str:
    """Return the origin of a sandbox that answers."""
    _, origin, _ = processes.sandbox()
    await eventually(lambda: is_open(int(origin.rsplit(":", 1)[1])), within_s=20)
    return origin
