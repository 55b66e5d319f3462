"""The management port: who may read it, what it says, and that a taken port is named."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from shared.clock import Clock
from shared.errors import SettingsError
from shared.management import serve
from shared.metrics import ApiMetrics
from shared.settings import Secret, Settings
from tests.conftest import Processes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def well() -> None:
    return


async def ill() -> None:
    raise OSError("gone")


async def slow() -> None:
    await asyncio.Event().wait()


async def test_metrics_and_scale_ask_for_the_token_and_health_does_not() -> None:
    port, registry = free_port(), CollectorRegistry()
    metrics = ApiMetrics(registry)

    async def refresh() -> None:
        metrics.wanted_workers.set(3)

    async def scale() -> dict[str, float]:
        return {"wanted_workers": 3}

    async with (
        serve(
            "127.0.0.1",
            port,
            registry=registry,
            clock=Clock(),
            live={"loop": well},
            ready={"redis": well},
            token=Secret("t"),
            refresh=refresh,
            scale=scale,
        ),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        for path in ("/metrics", "/scale"):
            for wrong in ("Bearer x", "Bearer tt", "t", ""):
                async with client.get(path, headers={"Authorization": wrong}) as answer:
                    assert (answer.status, "Server" in answer.headers) == (401, False), wrong
        head = {"Authorization": "Bearer t"}
        async with client.get("/metrics", headers=head) as answer:
            assert "drumbeat_wanted_workers 3.0" in await answer.text()
        async with client.get("/scale", headers=head) as answer:
            assert await answer.json() == {"wanted_workers": 3}
        for path in ("/livez", "/readyz"):
            async with client.get(path) as answer:
                assert (answer.status, await answer.json()) == (200, {"status": "ok"})
        # Bytes that are no text are no token, and no fault of ours.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\xff\r\n\r\n")
        assert b" 401 " in await reader.readline()
        writer.close()


async def test_a_worker_is_scraped_with_its_stores_its_loop_and_what_runs(
    settings: Settings, processes: Processes, eventually: Callable[..., Awaitable[Any]]
) -> None:
    port = free_port()
    assert settings.redis_url
    worker = processes.worker(METRICS_PORT=str(port), GRAPH_BASE_URL="http://127.0.0.1:9")

    async def scraped() -> str:
        try:
            async with aiohttp.request("GET", f"http://127.0.0.1:{port}/metrics") as answer:
                assert answer.status == 200
                return await answer.text()
        except aiohttp.ClientConnectionError:
            return ""

    async def is_told() -> bool:
        text = await scraped()
        return (
            "drumbeat_redis_up 1.0" in text
            and "drumbeat_postgres_up 1.0" in text
            and "drumbeat_event_loop_lag_seconds_count 0.0" not in text
            and 'drumbeat_build_info{python="3.' in text
            and 'drumbeat_postgres_pool_connections{state="idle"}' in text
        )

    await eventually(is_told, within_s=20)
    assert worker.is_running


async def test_not_ready_names_what_failed_and_verbose_says_why() -> None:
    port = free_port()
    async with (
        serve(
            "127.0.0.1",
            port,
            registry=CollectorRegistry(),
            clock=Clock(),
            live={},
            ready={"redis": ill, "postgres": well, "hub": slow},
        ),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        async with client.get("/readyz") as answer:
            assert answer.status == 503
            assert await answer.json() == {"status": "failed", "failed": ["redis", "hub"]}
        async with client.get("/readyz?verbose=1") as answer:
            said = {check["name"]: check["problem"] for check in (await answer.json())["checks"]}
            assert said["redis"] == "OSError: gone"
            assert said["hub"].startswith("TimeoutError")


async def test_a_taken_port_says_so_and_names_the_variable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=r"METRICS_PORT.*taken"):
            async with serve(
                "127.0.0.1", port, registry=CollectorRegistry(), clock=Clock(), live={}, ready={}
            ):
                pass


async def test_port_zero_serves_nothing() -> None:
    async with serve(
        "127.0.0.1", 0, registry=CollectorRegistry(), clock=Clock(), live={}, ready={}
    ) as port:
        assert port == 0
