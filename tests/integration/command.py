"""The command line as an operator's terminal has it, on the test's own servers."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from api.cli.main import app
from shared.errors import RequestError

Run = Callable[..., Awaitable[str]]


@pytest.fixture
def run(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a command; return what it printed."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    async def run(*words: str, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        await asyncio.to_thread(app, list(words))
        return capsys.readouterr().out

    return run


async def refused(run: Run, *words: str, **rest: Any) -> str:
    """Run a command that must be refused; return why."""
    with pytest.raises(RequestError) as caught:
        await run(*words, **rest)
    return str(caught.value)
