"""`drumbeat up` and `demo` read what the servers read, and the README's four commands work."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import pytest
import redis.asyncio

from shared.embedded.postgres import Postgres
from shared.embedded.valkey import Valkey
from shared.ids import Ids
from tests.conftest import ROOT, open_folder

Eventually = Callable[..., Awaitable[Any]]
ENV_BLOCK = """\
GRAPH_API_VERSION=v22.0
BULK_BATCH_SIZE=50              # Messages per batch
BULK_CONCURRENCY=5              # Concurrent sends per batch  \n\
BULK_PAUSE_MS=1000              # Pause between batches (ms)
BULK_MAX_RETRIES=3              # Max retries for failed messages
BULK_RETRY_BASE_MS=500          # Base retry delay (ms)
BULK_HARD_CAP=50000             # Max recipients per job
"""
FOREIGN = """\
CREATE TABLE users (id int PRIMARY KEY, name text);
CREATE TABLE campaign_logs (id int PRIMARY KEY, campaign text);
CREATE TABLE schema_migrations (version text PRIMARY KEY);
INSERT INTO users VALUES (1, 'Ana');
INSERT INTO campaign_logs VALUES (7, 'autumn');
INSERT INTO schema_migrations VALUES ('20990101000000');
"""


class Up(NamedTuple):
    """A running `drumbeat up`, and what it printed."""

    folder: Path
    origin: str
    password: str
    user_id: str


class Folder:
    """A working directory with a `.env` of its own, in which commands of ours are run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._running: list[asyncio.subprocess.Process] = []

    async def run(self, *words: str, **extra: str) -> tuple[asyncio.subprocess.Process, Path]:
        """Start `drumbeat words` with nothing of ours in its environment but `extra`."""
        names = ("PATH", "HOME", "TMPDIR", "LANG")
        env = {name: os.environ[name] for name in names if name in os.environ}
        env |= {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", **extra}
        out = self.path / f"out-{len(self._running)}.log"
        with out.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "api.cli", *words, cwd=self.path, env=env,
                stdout=file, stderr=file,
            )  # fmt: skip
        self._running.append(process)
        return process, out

    async def up(self, eventually: Eventually, **extra: str) -> Up:
        process, out = await self.run("up", "--port", "0", "--workers", "1", **extra)
        await eventually(
            lambda: "/api/bulk/stats" in out.read_text() or process.returncode is not None,
            within_s=50,
        )
        text = out.read_text()
        found = [re.search(rf"{name}\s+(\S+)", text) for name in ("address", "password", "user id")]
        assert all(found), text
        return Up(self.path, *(match[1] for match in found if match))

    async def stop(self) -> None:
        for process in self._running:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                await asyncio.wait_for(process.wait(), 20)


@pytest.fixture
async def folder() -> AsyncIterator[Folder]:
    with open_folder("drumbeat-up-") as path:
        made = Folder(path)
        yield made
        await made.stop()


@pytest.fixture
async def foreign(postgres: Postgres) -> AsyncIterator[str]:
    """Return the address of a database whose `public` schema is another application's."""
    name = f"other_{Ids().object_id('sup')[4:]}"
    server = await asyncpg.connect(postgres.url)
    await server.execute(f"CREATE DATABASE {name}")
    address = f"{postgres.url.rpartition('/')[0]}/{name}"
    connection = await asyncpg.connect(address)
    await connection.execute(FOREIGN)
    await connection.close()
    yield address
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.close()


async def logged_in(http: aiohttp.ClientSession, up: Up) -> None:
    credentials = {"email": "admin@localhost", "password": up.password}
    async with http.post(f"{up.origin}/api/session", json=credentials) as answer:
        assert answer.status == 200, await answer.text()


async def test_up_sees_dotenv_as_the_servers_do_and_leaves_foreign_tables_alone(
    folder: Folder, foreign: str, valkey: Valkey, eventually: Eventually
) -> None:
    client = redis.asyncio.Redis.from_url(valkey.url)
    await client.flushall()
    block = ENV_BLOCK.replace("BULK_HARD_CAP=50000", "BULK_HARD_CAP=4")
    stores = f"REDIS_URL={valkey.url}\nDATABASE_URL={foreign}\nDRUMBEAT_HOME=here\n"
    (folder.path / ".env").write_text(block + stores)
    up = await folder.up(eventually, BULK_BATCH_SIZE="2")
    kept = {path.name for path in (folder.path / "here").iterdir()}
    assert not kept & {"valkey", "postgres"}
    text = {"kind": "text", "text": {"body": "Hello"}}
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(up.origin, cookie_jar=jar) as http:
        await logged_in(http, up)
        body = {"recipients": [f"+1555000000{n}" for n in range(5)], "message": text}
        async with http.post("/api/bulk/send", json=body) as answer:
            assert (await answer.json())["code"] == "too_many_recipients"
        body["recipients"] = body["recipients"][:4]
        async with http.post("/api/bulk/send", json=body) as answer:
            assert answer.status == 202
            job = (await answer.json())["jobId"]
        # The environment's 2 wins over the 50 of `.env`: 2 messages a second.
        assert int(await client.hget(f"{{s0}}:job:{job}", "chunk_size") or 0) == 2

        async def is_sent() -> bool:
            async with http.get(f"/api/bulk/jobs/{job}") as answer:
                return bool((await answer.json())["progress"]["sent"] == 4)

        await eventually(is_sent, within_s=20)
    await client.aclose()
    await folder.stop()
    connection = await asyncpg.connect(foreign)
    found = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert {row[0] for row in found} == {"users", "campaign_logs", "schema_migrations"}
    assert [tuple(row) for row in await connection.fetch("TABLE public.users")] == [(1, "Ana")]
    rows = await connection.fetch("TABLE public.campaign_logs")
    assert [tuple(row) for row in rows] == [(7, "autumn")]
    ours = await connection.fetchval("SELECT count(*) FROM drumbeat.campaign_logs")
    assert ours == 4
    # A sender `default` of one's own is not the sandbox's to give another token.
    mine = "UPDATE drumbeat.senders SET phone_number_id = '777', token_sealed = 'mine'"
    await connection.execute(mine)
    await folder.up(eventually)
    await folder.stop()
    row = await connection.fetchrow("SELECT phone_number_id, token_sealed FROM drumbeat.senders")
    await connection.close()
    assert tuple(row) == ("777", b"mine")


async def test_up_names_a_fault_in_dotenv_and_the_demo_does_not_run_switched_off(
    folder: Folder,
) -> None:
    (folder.path / ".env").write_text("BULK_BATCH_SIZE=none\n")
    process, out = await folder.run("up")
    assert await asyncio.wait_for(process.wait(), 30) == 2
    assert "BULK_BATCH_SIZE" in out.read_text()
    (folder.path / ".env").write_text("DISABLE_BULK_MESSAGING=true\n")
    process, out = await folder.run("demo")
    assert await asyncio.wait_for(process.wait(), 30) == 2
    assert "DISABLE_BULK_MESSAGING" in out.read_text()
    assert not (folder.path / ".demo").exists()


def printed_commands() -> list[str]:
    """Return the four commands of the README."""
    text = (ROOT / "README.md").read_text()
    block = text.partition("## Four commands to paste")[2].partition("```sh\n")[2]
    return [line for line in block.partition("```")[0].splitlines() if line]


async def typed(command: str, folder: Path) -> str:
    """Type a command into a shell; return what it printed."""
    process = await asyncio.create_subprocess_shell(
        command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, command
    return out.decode()


async def replayed(command: str, folder: Path) -> str:
    """Do what a curl of the README's few options does, where there is no curl."""
    program, *words = shlex.split(command)
    assert program == "curl"
    headers, data, url = {}, None, ""
    jar = aiohttp.CookieJar(unsafe=True)
    keep = None
    while words:
        word = words.pop(0)
        if word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        elif word == "-d":
            data = words.pop(0)
        elif word == "-b":
            jar.load(folder / f"{words.pop(0)}.replayed")
        elif word == "-c":
            keep = folder / f"{words.pop(0)}.replayed"
        elif word != "-N":
            assert word.startswith("http://"), f"an option nobody taught this test: {word}"
            url = word
    async with (
        aiohttp.ClientSession(cookie_jar=jar) as http,
        http.request("POST" if data else "GET", url, data=data, headers=headers) as answer,
    ):
        text = await answer.text()
    if keep is not None:
        jar.save(keep)
    return text


async def test_the_four_commands_of_the_readme_work_as_printed(
    folder: Folder, eventually: Eventually
) -> None:
    up = await folder.up(eventually)
    log_in, send, follow, stats = printed_commands()
    ways = [replayed, *([typed] if shutil.which("curl") else [])]
    for way in ways:

        async def paste(command: str, way: Any = way, **filled: str) -> str:
            for name, value in filled.items():
                assert f"<{name}>" in command
                command = command.replace(f"<{name}>", value)
            assert "http://localhost:3000/" in command
            command = command.replace("http://localhost:3000", up.origin)
            return str(await way(command, folder.path))

        me = json.loads(await paste(log_in, email="admin@localhost", password=up.password))
        assert me["userId"] == up.user_id
        made = json.loads(await paste(send))
        assert "jobId" in made, made
        assert (made["userId"], made["intake"]["accepted"]) == (up.user_id, 3)
        told = await paste(follow, jobId=made["jobId"])
        events = [json.loads(x) for x in re.findall(r"^data: (.+)$", told, re.MULTILINE)]
        assert (events[-1]["type"], events[-1]["progress"]["sent"]) == ("end", 3)
        assert json.loads(await paste(stats))["outcomes_today"]["sent"] >= 3
