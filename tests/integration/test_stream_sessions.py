"""An open stream keeps its session: only SESSION_MAX_S, logging out and revocation end it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from api.client import Parser
from api.sessions import digest
from shared.settings import Settings
from tests.conftest import replaced
from tests.integration.desk import Api, opened, session_of

Eventually = Callable[..., Awaitable[object]]
# A second of the tests is a quarter of an hour of the defaults.
SCALE = 900
IDLE_S = 1800 // SCALE
HEARTBEAT_S = 15 / SCALE


@asynccontextmanager
async def api_with(settings: Settings, max_s: int) -> AsyncIterator[Api]:
    scaled = replaced(
        settings, session_idle_s=IDLE_S, session_max_s=max_s, sse_heartbeat_s=HEARTBEAT_S
    )
    async with AsyncExitStack() as stack:
        api = await opened(scaled, stack)
        reading = asyncio.create_task(api.made.hub.run())
        stack.callback(reading.cancel)
        yield api


async def idle_time_passes(api: Api, eventually: Eventually) -> None:
    """Wait until a session that begins now, and is not used, has idled."""
    token, _ = await api.made.visitors.open(api.ann)
    name = f"{{v}}:session:{digest(token)}"
    visitors = api.made.queue.visitors

    async def is_gone() -> bool:
        return not await visitors.exists(name)

    assert not await is_gone()
    await eventually(is_gone, within_s=IDLE_S + 10)


async def test_who_follows_a_job_of_an_hour_sees_its_end(
    settings: Settings, eventually: Eventually
) -> None:
    async with api_with(settings, 43_200) as api:
        job = (await (await api.send()).json())["jobId"]
        session = await session_of(api, "ann")
        async with api.client.get(f"/realtime/bulk/{job}", headers=session) as stream:
            assert stream.status == 200
            for _ in range(2):
                await idle_time_passes(api, eventually)
            # With her key: nothing but the stream has used the session.
            await api.ask("ann", "POST", f"/api/bulk/jobs/{job}/cancel")
            async with asyncio.timeout(10):
                told = Parser().feed(await stream.content.read())
        assert '"type":"end"' in told[-1].data
        assert not [event for event in told if event.name == "revoked"]
        api.client.session.cookie_jar.clear()
        assert (await api.client.get("/api/session", headers=session)).status == 200


@pytest.mark.parametrize("ending", ["max", "logout", "disabled"])
async def test_what_ends_a_session_ends_its_stream(settings: Settings, ending: str) -> None:
    async with api_with(settings, IDLE_S if ending == "max" else 43_200) as api:
        job = (await (await api.send()).json())["jobId"]
        session = await session_of(api, "ann")
        async with api.client.get(f"/realtime/bulk/{job}", headers=session) as stream:
            if ending == "logout":
                assert (await api.client.delete("/api/session", headers=session)).status == 204
            if ending == "disabled":
                path = f"/api/users/{api.ann}"
                answer = await api.ask("root", "PATCH", path, json={"disabled": True})
                assert answer.status == 200
            async with asyncio.timeout(10):
                told = Parser().feed(await stream.content.read())
        assert told[-1].name == "revoked"
        api.client.session.cookie_jar.clear()
        assert (await api.client.get("/api/session", headers=session)).status == 401
