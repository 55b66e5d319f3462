"""`drumbeat health`: 0 when the process is well, else 1 and why."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from api.cli.health import problem_of
from api.cli.main import app
from shared.clock import Clock
from shared.management import Check, serve
from shared.settings import Secret
from tests.integration.test_management_port import free_port, ill, well


@asynccontextmanager
async def listening(host: str, port: int, live: Check, ready: Check) -> AsyncGenerator[None]:
    async with serve(
        host,
        port,
        registry=CollectorRegistry(),
        clock=Clock(),
        live={"loop": live},
        ready={"redis": ready},
        token=Secret("t"),
    ):
        yield


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    found = free_port()
    monkeypatch.setenv("METRICS_PORT", str(found))
    return found


async def asked(*words: str) -> object:
    return await asyncio.to_thread(app, ["health", *words])


async def test_a_process_that_lives_may_not_be_ready(
    port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async with listening("127.0.0.1", port, well, ill):
        assert await asked() == 0
        assert capsys.readouterr().out == "alive\n"
        assert await asked("--ready") == 1
        assert capsys.readouterr().err == "drumbeat: not well: redis\n"


async def test_who_listens_everywhere_is_asked_nearby(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METRICS_HOST", "0.0.0.0")  # noqa: S104 - as in a container
    async with listening("0.0.0.0", port, ill, well):  # noqa: S104 - likewise
        assert await asked("--ready") == 0
        monkeypatch.setenv("METRICS_PORT", "0")
        assert await asked("--port", str(port)) == 1
    assert capsys.readouterr().err == "drumbeat: not well: loop\n"


async def test_nobody_and_nothing_are_told_apart(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asked() == 1
    assert f"nobody answers on port {port}" in capsys.readouterr().err
    monkeypatch.setenv("METRICS_PORT", "0")
    assert await asked() == 1
    assert "METRICS_PORT is 0" in capsys.readouterr().err
    # Docker keeps 2 for itself: a variable that cannot be read is 1 here.
    monkeypatch.setenv("METRICS_PORT", "none")
    assert await asked() == 1
    assert "METRICS_PORT" in capsys.readouterr().err


def test_a_stranger_on_the_port_is_none_of_ours() -> None:
    for status, body in ((404, None), (200, None), (200, []), (200, {"hello": "world"})):
        assert "none of ours" in problem_of("/livez", 9464, status, body)
    assert problem_of("/livez", 9464, 200, {"status": "ok"}) == ""
    assert problem_of("/livez", 9464, 503, {"status": "failed"}) == "not well: livez"


async def test_it_needs_no_other_module_of_ours(port: int) -> None:
    # It is asked every ten seconds in every container: half a second of imports would be felt.
    async with listening("127.0.0.1", port, well, well):
        words = "import sys; from api.cli.main import main; print(main(), *sys.modules)"
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", words, "health", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await child.communicate()
    said, *modules = out.decode().split("\n")[1].split()
    assert said == "0"
    assert not {"aiohttp", "asyncpg", "redis", "structlog"} & set(modules)
