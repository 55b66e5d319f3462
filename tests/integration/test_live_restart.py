"""Followers at two API processes: one is killed, and no number is lost or told twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import aiohttp
import pytest

from api import passwords
from api.client import Client
from shared.archive import Archive, SenderRow
from shared.embedded.children import Child
from shared.ids import Ids
from shared.queue import Queue

Eventually = Callable[..., Awaitable[Any]]
PASSWORD = "correct horse battery staple"  # noqa: S105 - a test's


class Processes(Protocol):
    """What conftest's fixture offers."""

    def api(self, **extra: str) -> tuple[Child, str]: ...


async def is_ready(origin: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{origin}/readyz") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


@pytest.mark.timeout(60)
async def test_a_follower_goes_on_at_the_other_process(
    archive: Archive, queue: Queue, processes: Processes, eventually: Eventually
) -> None:
    ids = Ids()
    secret = await passwords.hash_password(PASSWORD)
    await archive.add_user(str(ids.user_id()), "ana@example.com", secret, "admin")
    sender = SenderRow(ids.object_id("snd"), "main", "1", b"x", is_default=True)
    await archive.add_sender(sender)
    await queue.give_born(0, "b1")
    # Nothing is released to a paused sender, so that a cancel ends the job at once.
    await queue.sender(0, sender.id, version=9, rate=0, burst=0, paused=True, why="")
    children, origins = zip(*[processes.api(SSE_INTERVAL_MS="50") for _ in range(2)], strict=True)
    for origin in origins:
        await eventually(lambda origin=origin: is_ready(origin), 20)
    # Each begins at another process, so that the kill cuts one of them off.
    async with Client(list(origins)) as one, Client(list(reversed(origins))) as other:
        await one.login("ana@example.com", PASSWORD)
        await other.login("ana@example.com", PASSWORD)
        body = {"kind": "text", "text": {"body": "hello"}}
        made = await one.submit({"recipients": ["+15550000001"], "message": body})
        job = made["jobId"]
        seen: dict[Client, list[tuple[str, dict[str, Any]]]] = {one: [], other: []}

        async def follow(client: Client) -> None:
            async for pair in client.watch(job):
                seen[client].append(pair)

        def have_all(is_it: Callable[[str], bool]) -> bool:
            return all(pairs and is_it(pairs[-1][1]["state"]) for pairs in seen.values())

        following = asyncio.gather(follow(one), follow(other))
        await eventually(lambda: have_all(lambda state: state == "queued"))
        await queue.control(job, "pause", by="u1")
        await eventually(lambda: have_all(lambda state: state == "paused"))
        await children[0].kill()
        await queue.control(job, "resume", by="u1")
        await eventually(lambda: have_all(lambda state: state != "paused"), 10)
        await queue.control(job, "cancel", by="u1")
        await asyncio.wait_for(following, 10)
    for pairs in seen.values():
        assert pairs[-1][1]["type"] == "end"
        numbers = [tuple(map(int, event_id.split("-"))) for event_id, _ in pairs]
        assert numbers == sorted(set(numbers))
        assert not any(data["reset"] for _, data in pairs)
