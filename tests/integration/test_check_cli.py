"""`drumbeat check`, `disable` and `enable` against real stores, the sandbox and an API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncpg
import msgspec
import pytest

from api.cli import check as looked
from api.cli.main import app
from shared.archive import Archive, SenderRow
from shared.errors import RequestError
from shared.ids import Ids
from shared.migrate import steps
from shared.sealing import Sealing
from shared.settings import Settings
from tests.conftest import configured
from tests.integration.desk import Api

TOKEN = "a-canary"  # noqa: S105 - of a test


async def test_check_finds_what_is_wrong_and_says_what_to_do(
    environ: dict[str, str],
    settings: Settings,
    archive: Archive,
    graph: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {**environ, "GRAPH_BASE_URL": graph}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(looked, "_file_limit", lambda: 65_536)

    async def found() -> tuple[int, dict[str, list[dict[str, str]]]]:
        code = await asyncio.to_thread(app, ["check", "--json"])
        text = capsys.readouterr().out
        assert TOKEN not in text
        by: dict[str, list[dict[str, str]]] = {}
        for each in msgspec.json.decode(text):
            by.setdefault(each["what"], []).append(each)
        return int(code), by

    code, by = await found()
    assert code == 1
    assert "there is none" in by["sender"][0]["found"]
    assert by["postgres"][0]["level"] == "ok"
    assert by["clock"][0]["level"] == "ok"
    sealed = Sealing(settings.bulk_secret_key).seal(TOKEN)
    await archive.add_sender(SenderRow("snd_a", "main", "1001", sealed))
    code, by = await found()
    assert by["sender"] == [
        {
            "level": "ok",
            "what": "sender",
            "found": "main: Graph knows the number and takes the token",
            "remedy": "",
        }
    ]
    await archive.add_sender(SenderRow("snd_b", "dead", "1002", b"xxxxyyyyyyyyyyyyzzzz"))
    code, by = await found()
    assert (code, [each["level"] for each in by["sender"]]) == (1, ["fail", "ok"])
    monkeypatch.setenv("DATABASE_SCHEMA", "nobody_made_this")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    code, by = await found()
    assert code == 1
    assert "drumbeat migrate" in by["postgres"][0]["remedy"]
    assert by["redis"][0]["level"] == "fail"
    monkeypatch.setenv("BULK_BATCH_SIZE", "none")
    code, by = await found()
    assert (code, list(by)) == (1, ["settings"])
    assert "BULK_BATCH_SIZE" in by["settings"][0]["found"]


class Seeds:
    """What can be wrong, one at a time, each put right again."""

    def __init__(
        self, settings: Settings, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert settings.redis_url
        assert settings.database_url
        self._redis, self._database = str(settings.redis_url), str(settings.database_url)
        self._settings, self._archive = settings, archive
        self._monkeypatch = monkeypatch

    @asynccontextmanager
    async def variable(self, name: str, value: str) -> AsyncIterator[None]:
        with self._monkeypatch.context() as patch:
            patch.setenv(name, value)
            yield

    @asynccontextmanager
    async def old_schema(self, version: str) -> AsyncIterator[None]:
        connection = await asyncpg.connect(self._database)
        table = f"{self._settings.database_schema}.schema_migrations"
        await connection.execute(f"DELETE FROM {table} WHERE version = $1", version)  # noqa: S608 - a test's own
        try:
            yield
        finally:
            await connection.execute(f"INSERT INTO {table} VALUES ($1)", version)  # noqa: S608 - as above
            await connection.close()

    @asynccontextmanager
    async def newer_schema(self) -> AsyncIterator[None]:
        """As the next release leaves it: whoever goes back to this one must find nothing amiss."""
        connection = await asyncpg.connect(self._database)
        schema = self._settings.database_schema
        await connection.execute(
            f"INSERT INTO {schema}.schema_migrations VALUES ('9999');"  # noqa: S608 - a test's own
            f"CREATE TABLE {schema}.later (id int);"
            f"ALTER TABLE {schema}.senders ADD COLUMN later text NOT NULL DEFAULT ''"
        )
        try:
            yield
        finally:
            await connection.execute(
                f"DELETE FROM {schema}.schema_migrations WHERE version = '9999';"  # noqa: S608 - as above
                f"DROP TABLE {schema}.later; ALTER TABLE {schema}.senders DROP COLUMN later"
            )
            await connection.close()

    @asynccontextmanager
    async def poor_role(self) -> AsyncIterator[None]:
        """A role of its own that may do all but change a sender."""
        role, schema = f"poor_{Ids().object_id('sup')[4:]}", self._settings.database_schema
        connection = await asyncpg.connect(self._database)
        await connection.execute(
            f"CREATE ROLE {role} LOGIN PASSWORD 'pw'; GRANT USAGE ON SCHEMA {schema} TO {role};"
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role};"
            f"REVOKE UPDATE ON {schema}.senders FROM {role}"
        )
        where = self._database.rpartition("@")[2]
        try:
            async with self.variable("DATABASE_URL", f"postgresql://{role}:pw@{where}"):
                yield
        finally:
            await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
            await connection.close()

    @asynccontextmanager
    async def token(self, token: str) -> AsyncIterator[None]:
        sealing = Sealing(self._settings.bulk_secret_key)
        await self._archive.add_sender(SenderRow("snd_a", "main", "1001", sealing.seal(token)))
        try:
            yield
        finally:
            good = sealing.seal("good")
            await self._archive.add_sender(SenderRow("snd_a", "main", "1001", good))

    @asynccontextmanager
    async def real_token(self) -> AsyncIterator[None]:
        """One of Meta's, and a sandbox that must not hear of it."""
        callers: list[object] = []
        server = await asyncio.start_server(lambda *each: callers.append(each), "127.0.0.1", 0)
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, self.token("EAAG-of-meta"), self.variable("GRAPH_BASE_URL", address):
            yield
        assert callers == []


async def test_check_finds_each_of_eight_seeded_faults_alone(
    environ: dict[str, str],
    settings: Settings,
    archive: Archive,
    graph: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    live = {"GRAPH_BASE_URL": graph, "PUBLIC_URL": "https://bulk.example.org"}
    for name, value in {**environ, **live}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(looked, "_file_limit", lambda: 65_536)
    seeds = Seeds(settings, archive, monkeypatch)
    newest, url = steps()[-1][0], environ["REDIS_URL"]

    async def faults() -> list[tuple[str, str, str]]:
        code = await asyncio.to_thread(app, ["check", "--json"])
        found = msgspec.json.decode(capsys.readouterr().out)
        failed = [(x["what"], x["found"], x["remedy"]) for x in found if x["level"] == "fail"]
        assert code == bool(failed)
        return failed

    # What is wrong; where it is found, what is said of it, and what to do about it.
    table: list[tuple[AbstractAsyncContextManager[None], str, str, str]] = [
        (configured(url, "maxmemory-policy", "allkeys-lru"), "redis", "allkeys-lru", "noeviction"),
        (configured(url, "appendonly", "no"), "redis", "no append-only file", "appendonly yes"),
        (seeds.old_schema(newest), "postgres", f"lacks {newest}", "drumbeat migrate"),
        (seeds.poor_role(), "postgres", "UPDATE senders", "GRANT"),
        (seeds.token("revoked-by-meta"), "sender", "refuses the token (HTTP 401, code 190)",
         "drumbeat sender token main"),
        (seeds.variable("BULK_PAUS_MS", "500"), "settings", "did you mean BULK_PAUSE_MS", ""),
        (seeds.variable("PUBLIC_URL", "http://bulk.example.org"), "settings",
         "PUBLIC_URL: must begin with https://", ""),
        (seeds.real_token(), "sender", "GRAPH_BASE_URL is http://127.0.0.1:",
         "unset GRAPH_BASE_URL"),
    ]  # fmt: skip
    async with seeds.token("good"):
        assert await faults() == []
        async with seeds.newer_schema():
            assert await faults() == []
        for seed, what, found, remedy in table:
            async with seed:
                [(where, said, advice)] = await faults()
            assert (where, found in said, remedy in advice) == (what, True, True), said
        assert await faults() == []


async def test_disable_and_enable_ask_the_api(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = api.client.server
    monkeypatch.setenv("DRUMBEAT_URL", f"http://{server.host}:{server.port}")
    with pytest.raises(RequestError, match="DRUMBEAT_API_KEY"):
        await asyncio.to_thread(app, ["disable"])
    monkeypatch.setenv("DRUMBEAT_API_KEY", api.tokens["ann"])
    with pytest.raises(RequestError, match="admin"):
        await asyncio.to_thread(app, ["disable"])
    monkeypatch.setenv("DRUMBEAT_API_KEY", api.tokens["root"])
    assert await asyncio.to_thread(app, ["disable", "--reason", "wrong template"]) == 0
    assert "wrong template" in capsys.readouterr().out
    assert (await api.send()).status == 503
    assert await asyncio.to_thread(app, ["enable"]) == 0
    assert "sending is on" in capsys.readouterr().out
    assert (await api.send()).status == 202
    await api.made.queue.switch(0, "worker-elsewhere", 60_000)
    assert await asyncio.to_thread(app, ["enable", "--json"]) == 1
    assert "DISABLE_BULK_MESSAGING" in capsys.readouterr().out
