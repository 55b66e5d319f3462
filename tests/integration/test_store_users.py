"""A whole job on a Valkey user who may do no more than deploy/users.acl says."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio

from api.client import Client
from shared.embedded.valkey import Valkey
from shared.queue import Queue
from shared.settings import Settings
from tests.conftest import ROOT, replaced
from tests.e2e.stack import KEY, Eventually, Stack

DANGEROUS = ("KEYS *", "FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET maxmemory 1",
             "ACL LIST", "SHUTDOWN", "SAVE", "MONITOR", "REPLICAOF NO ONE", "SCAN 0", "SWAPDB 0 1",
             "GET elsewhere", "PUBLISH a b")  # fmt: skip


def rights() -> list[str]:
    """Return the words of deploy/users.acl behind the user's name."""
    text = (ROOT / "deploy" / "users.acl").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("user ")]
    return line.replace("PASSWORD", "pw").split()[2:]


@pytest.fixture
async def confined(valkey: Valkey) -> AsyncIterator[str]:
    """Make the user of deploy/users.acl under another name; yield his REDIS_URL."""
    words = rights()
    raw: Any = redis.asyncio.Redis.from_url(valkey.url)
    await raw.execute_command("ACL", "SETUSER", "confined", "reset", *words)
    await raw.execute_command("ACL", "LOG", "RESET")
    yield f"redis://confined:pw@{valkey.url.rpartition('@')[2].removeprefix('redis://')}"
    await raw.execute_command("ACL", "DELUSER", "confined")
    await raw.aclose()


def test_every_command_of_a_script_is_among_the_rights() -> None:
    texts = [path.read_text() for path in (ROOT / "shared" / "lua").rglob("*.lua")]
    used = {word.lower() for text in texts for word in re.findall(r"call\('([A-Z]+)'", text)}
    assert len(used) > 30
    assert {f"+{word}" for word in used} <= set(rights())


async def test_a_job_needs_no_more_rights_than_it_is_given(
    stack: Stack, confined: str, settings: Settings, eventually: Eventually
) -> None:
    strict = {"REDIS_URL": confined, "DURABILITY": "strict"}
    await stack.add_key()
    _, origin = await stack.add_api(eventually, **strict)
    await stack.add_workers(1, eventually, **strict)
    async with Client(origin, KEY) as client:
        numbers = [f"+1555{n:07d}" for n in range(120)]
        message = {"kind": "text", "text": {"body": "Hello", "preview_url": False}}
        wish = {"recipients": numbers, "message": message, "sender": "fast"}
        job = (await client.ask("POST", "/api/bulk/send", wish))["jobId"]
        other = (await client.ask("POST", "/api/bulk/send", {**wish, "sender": "one-1"}))["jobId"]
        for verb in ("pause", "resume", "cancel"):
            await client.ask("POST", f"/api/bulk/jobs/{other}/{verb}")
        for one in (job, other):
            await eventually(lambda one=one: stack.is_over(one), within_s=30)
    raw = stack.raw()
    assert await raw.execute_command("ACL", "LOG") == []
    queue = await Queue.open(replaced(settings, redis_url=confined))
    assert await queue.denied(0) == []
    await queue.close()
    await raw.aclose()


async def test_what_reads_or_wipes_everything_is_denied(confined: str, settings: Settings) -> None:
    assert settings.redis_url
    client: Any = redis.asyncio.Redis.from_url(confined)
    for command in DANGEROUS:
        with pytest.raises(redis.exceptions.NoPermissionError):
            await client.execute_command(*command.split())
    await client.aclose()
