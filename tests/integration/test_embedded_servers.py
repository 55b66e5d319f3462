"""The embedded servers come back after a kill with what they held, where they were."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from shared.embedded.postgres import Postgres
from shared.embedded.valkey import Valkey

pytestmark = pytest.mark.redis


async def test_a_killed_valkey_holds_what_it_had_and_evicts_nothing(tmp_path: Path) -> None:
    server = Valkey(tmp_path / "v")
    await server.start()
    port = server.port
    async with redis.asyncio.Redis.from_url(server.url) as client:
        await client.config_set("appendfsync", "always")
        await client.set("a", 1)
        assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
        # It refuses before the system kills it.
        assert (await client.config_get("maxmemory"))["maxmemory"] == str(1 << 30)
    await server.kill()
    await server.start()
    async with redis.asyncio.Redis.from_url(server.url) as client:
        assert await client.get("a") == b"1"
    assert server.port == port
    await server.stop()


async def test_postgres_opens_no_parent_directory_and_refuses_a_wrong_password(
    tmp_path: Path,
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = Postgres(closed / "p", fsync=False)
    await server.start()
    connection = await asyncpg.connect(server.url)
    assert await connection.fetchval("select datlocale from pg_database limit 1") == "C.UTF-8"
    await connection.close()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(server.url.replace(server.password, "wrong"))
    await server.kill()
    await server.start()
    await server.stop()
    base = Path(json.loads((closed / "p" / "server.json").read_text())["base"])
    shutil.rmtree(base)  # of root it lies elsewhere
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
