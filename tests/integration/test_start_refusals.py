"""What a process does not start with: exit 2, and the sentence names the way out."""

from __future__ import annotations

import asyncio
import sys

import asyncpg
import pytest

from shared.embedded.children import free_port
from shared.settings import Settings
from tests.conftest import ROOT, configured

PROCESSES = ("api", "worker")


async def refused(module: str, environ: dict[str, str], **changes: str) -> str:
    """Start a process that must not come up; return what it says."""
    env = {**environ, "API_PORT": str(free_port()), "PYTHONPATH": str(ROOT), **changes}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, env=env, cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            _, said = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
    assert child.returncode == 2, said
    text = said.decode()
    assert text.startswith(f"drumbeat {module}: ")
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("module", PROCESSES)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"BULK_SECRET_KEY": ""}, ("BULK_SECRET_KEY", "openssl rand -hex 32")),
        ({"BULK_SECRET_KEY": "x" * 31}, ("BULK_SECRET_KEY", "32 bytes")),
        ({"TRUSTED_PROXIES": "0.0.0.0/0"}, ("TRUSTED_PROXIES", "none of them all")),
        ({"TRUSTED_PROXIES": "::/0"}, ("TRUSTED_PROXIES", "none of them all")),
        ({"PUBLIC_URL": "http://drumbeat.example"}, ("PUBLIC_URL", "https://")),
        ({"GRAPH_BASE_URL": "http://graph.example"}, ("GRAPH_BASE_URL", "https://")),
        ({"DATABASE_SCHEMA": "nobody_made_it"}, ("DATABASE_SCHEMA", "`drumbeat migrate`")),
    ],
    ids=lambda part: "" if isinstance(part, tuple) else "-".join(part),
)
async def test_settings_that_are_not_safe_stop_the_start(
    settings: Settings,
    environ: dict[str, str],
    module: str,
    changes: dict[str, str],
    words: tuple[str, ...],
) -> None:
    assert settings.database_url  # migrated: nothing else is wrong
    said = await refused(module, environ, **changes)
    assert not [word for word in words if word not in said], said


@pytest.mark.parametrize("module", PROCESSES)
async def test_a_schema_older_than_the_code_stops_the_start(
    settings: Settings, environ: dict[str, str], module: str
) -> None:
    path = {"search_path": settings.database_schema}
    connection = await asyncpg.connect(settings.database_url, server_settings=path)
    newest = await connection.fetchval("SELECT max(version) FROM schema_migrations")
    await connection.execute("DELETE FROM schema_migrations WHERE version = $1", newest)
    try:
        said = await refused(module, environ)
    finally:
        await connection.execute("INSERT INTO schema_migrations VALUES ($1)", newest)
        await connection.close()
    assert newest in said
    assert "`drumbeat migrate`" in said


@pytest.mark.parametrize("module", PROCESSES)
@pytest.mark.parametrize(
    ("name", "value", "word"),
    [("maxmemory-policy", "allkeys-lru", "noeviction"), ("appendonly", "no", "appendonly")],
)
async def test_a_redis_that_may_lose_jobs_stops_the_start(
    settings: Settings, environ: dict[str, str], module: str, name: str, value: str, word: str
) -> None:
    async with configured(str(settings.redis_url), name, value):
        said = await refused(module, environ)
        assert word in said
        assert "ALLOW_VOLATILE" in said
