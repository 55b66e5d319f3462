"""Real servers once a run, emptied for each test; whole processes; `eventually`; the key check."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import redis.asyncio

from shared import keys
from shared import settings as settings_module
from shared.clock import Clock
from shared.embedded.children import Child, free_port
from shared.embedded.postgres import Postgres
from shared.embedded.valkey import Valkey
from shared.ids import Ids
from shared.settings import Settings

ROOT = Path(__file__).parent.parent
IS_FAKE = os.environ.get("DRUMBEAT_TESTS") == "fake"
IS_ALL = os.environ.get("DRUMBEAT_TESTS") == "all"
SECRET = "0123456789abcdef0123456789abcdef"  # noqa: S105 - a test's
SLOW_S = 120


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests of other targets out, unless they were asked for by name; give them time."""
    named = any("::" in word or word.endswith(".py") for word in config.args)
    for item in items:
        if item.get_closest_marker("slow") or item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.timeout(SLOW_S))
    if not (IS_ALL or named or config.option.markexpr):
        kinds = ("slow", "browser")
        others = [item for item in items if any(map(item.get_closest_marker, kinds))]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


async def _eventually(
    predicate: Callable[[], Any | Awaitable[Any]], within_s: float = 5.0, every_s: float = 0.02
) -> Any:
    """Return the predicate's first true value; fail with its last one when time is up."""
    clock = Clock()
    end = clock.monotonic() + within_s
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert clock.monotonic() < end, f"not within {within_s} s; last: {value!r}"
        await clock.sleep(every_s)


@pytest.fixture
def eventually() -> Callable[..., Awaitable[Any]]:
    return _eventually


@contextmanager
def open_folder(prefix: str) -> Iterator[Path]:
    """Make a folder that a PostgreSQL run as nobody may enter, as it may none of tmp_path's."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def configured(url: str, name: str, value: str) -> AsyncIterator[None]:
    """Let a Redis have another configuration, and what it had before afterwards."""
    async with redis.asyncio.Redis.from_url(url, decode_responses=True) as client:
        before = (await client.config_get(name))[name]
        await client.config_set(name, value)
        try:
            yield
        finally:
            await client.config_set(name, before)


class Servers:
    """One Valkey and one PostgreSQL, each started when first asked for."""

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        self.valkey = Valkey(folder / "valkey", fsync=fsync)
        self.postgres = Postgres(folder / "postgres", fsync=fsync)

    def redis_url(self) -> str:
        if self.valkey.child is None:
            asyncio.run(self.valkey.start())
        return self.valkey.url

    def database_url(self) -> str:
        if self.postgres.child is None:
            asyncio.run(self.postgres.start())
        return self.postgres.url

    def stop(self) -> None:
        asyncio.run(self.valkey.stop())
        asyncio.run(self.postgres.stop())


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """One pair a pytest process, so that xdist's processes do not empty each other's."""
    with open_folder("drumbeat-tests-") as folder:
        pair = Servers(folder)
        try:
            yield pair
        finally:
            pair.stop()


@pytest.fixture(scope="session")
def valkey(servers: Servers) -> Valkey:
    servers.redis_url()
    return servers.valkey


@pytest.fixture(scope="session")
def postgres(servers: Servers) -> Postgres:
    servers.database_url()
    return servers.postgres


@pytest.fixture(scope="session")
def schema() -> str:
    """One a pytest process, emptied for each test: to migrate takes fifty times as long."""
    return f"t{Ids().object_id('sup')[4:]}"


@pytest.fixture
def environ(valkey: Valkey, postgres: Postgres, schema: str) -> dict[str, str]:
    """Return what a process under test is told: the servers, the schema, free ports."""
    return {
        "REDIS_URL": valkey.url,
        "DATABASE_URL": postgres.url,
        "DATABASE_SCHEMA": schema,
        "BULK_SECRET_KEY": SECRET,
        "WORKER_BLOCK_MS": "50",
        "METRICS_PORT": "0",
        "API_REQUESTS_PER_MINUTE": "0",
    }


@pytest.fixture
async def settings(valkey: Valkey, environ: dict[str, str]) -> AsyncIterator[Settings]:
    """Settings on an emptied Valkey and an emptied, migrated schema; afterwards the key check."""
    client = redis.asyncio.Redis.from_url(valkey.url)
    await client.flushall()
    made = settings_module.load(environ, None)
    await import_module("shared.migrate").apply(made)
    await _empty(made)
    yield made
    # A new one: the test may have killed the server.
    await client.aclose()
    client = redis.asyncio.Redis.from_url(valkey.url)
    strays = [name async for name in client.scan_iter(count=1000) if await _is_stray(client, name)]
    await client.aclose()
    assert not strays, f"keys without a lifetime: {strays}"


async def _empty(made: Settings) -> None:
    connection = await asyncpg.connect(made.database_url)
    tables = await connection.fetch(
        "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) AS name FROM pg_tables"
        " WHERE schemaname = $1 AND tablename <> 'schema_migrations'",
        made.database_schema,
    )
    # Foreign keys would ask for an order.
    await connection.execute("SET session_replication_role = replica")
    # Not TRUNCATE, which makes new files: thirty times as slow where there is next to nothing.
    emptied = (f"DELETE FROM {table['name']}" for table in tables)  # noqa: S608 - quoted by PostgreSQL
    await connection.execute(";".join(emptied))
    await connection.close()


_KEPT = re.compile(
    "|".join(
        re.escape(family.pattern).replace("P\\ ", r"\{s\d+\}:").replace(re.escape("<id>"), "[^:]+")
        for family in keys.FAMILIES
        if family.lifetime.startswith("kept")
    )
)


async def _is_stray(client: redis.asyncio.Redis, name: bytes) -> bool:
    text = name.decode()
    if _KEPT.fullmatch(text) or await client.ttl(name) != -1:
        return False
    job = re.match(r"\{s\d+\}:job:[^:]+", text)
    # A job that has not ended, or that no archive has confirmed, lives for as long as it takes.
    return job is None or not await client.exists(job.group())


@pytest.fixture
async def queue(settings: Settings) -> AsyncIterator[Any]:
    opened = await import_module("shared.queue").Queue.open(settings)
    yield opened
    await opened.close()


@pytest.fixture
async def archive(settings: Settings) -> AsyncIterator[Any]:
    pool = await import_module("shared.connect").open_postgres(settings)
    yield import_module("shared.archive").Archive(pool)
    await pool.close()


class Processes:
    """Whole processes of ours, their logs in files; all are ended with the test."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.environ = dict(environ)
        self.all: list[Child] = []

    def start(self, module: str, *words: str, **extra: str) -> Child:
        """Start `python -m module words`; `extra` are more variables."""
        base = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        env = {
            **base,
            **self.environ,
            "PYTHONPATH": str(ROOT),
            "DRUMBEAT_EXIT_ON_EOF": "1",
            **extra,
        }
        name = f"{module}-{len(self.all)}"
        child = Child(name, [sys.executable, "-m", module, *words], self.folder, env)
        child.start()
        self.all.append(child)
        return child

    def api(self, **extra: str) -> tuple[Child, str]:
        """Start an API process; return it and its origin."""
        port = free_port()
        origin = f"http://127.0.0.1:{port}"
        extra = {"API_PORT": str(port), "PUBLIC_URL": origin, **extra}
        return self.start("api", **extra), origin

    def worker(self, **extra: str) -> Child:
        return self.start("worker", **extra)

    def sandbox(self, *words: str) -> tuple[Child, str, Path]:
        """Start the pretend Graph API; return it, its base URL and its ledger."""
        port, ledger = free_port(), self.folder / f"ledger-{len(self.all)}.jsonl"
        child = self.start("worker.sandbox", "--port", str(port), "--ledger", str(ledger), *words)
        return child, f"http://127.0.0.1:{port}", ledger

    async def stop(self) -> None:
        await asyncio.gather(*(child.stop() for child in self.all))


@pytest.fixture
async def processes(tmp_path: Path, environ: dict[str, str]) -> AsyncIterator[Processes]:
    made = Processes(tmp_path, environ)
    yield made
    for child in made.all:
        child.send(signal.SIGCONT)
    await made.stop()


def replaced(settings: Settings, **changes: Any) -> Settings:
    """Return settings with some fields changed."""
    return msgspec.structs.replace(settings, **changes)
