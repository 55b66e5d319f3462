"""`drumbeat check`, `disable` and `enable` against real stores, the sandbox and an API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from api.cli import check as looked
from api.cli.main import app
from shared.archive import Archive, SenderRow
from shared.embedded.children import is_open
from shared.errors import RequestError
from shared.sealing import Sealing
from shared.settings import Settings
from tests.conftest import Processes
from tests.integration.desk import Api

Eventually = Callable[..., Awaitable[Any]]
TOKEN = "EAAG-canary"  # noqa: S105 - of a test


async def test_check_finds_what_is_wrong_and_says_what_to_do(
    environ: dict[str, str],
    settings: Settings,
    archive: Archive,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    eventually: Eventually,
) -> None:
    _, origin, _ = processes.sandbox()
    await eventually(lambda: is_open(int(origin.rsplit(":", 1)[1])), within_s=20)
    for name, value in {**environ, "GRAPH_BASE_URL": origin}.items():
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
