"""`drumbeat doctor`: what `check` does not look at, against real stores and the sandbox."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec
import pytest
import redis.asyncio

from api.cli import check as looked
from api.cli.doctor import of_port, of_templates
from api.cli.main import app
from shared.archive import Archive, SenderRow
from shared.embedded.valkey import Valkey
from shared.queue import Queue
from shared.sealing import Sealing
from shared.settings import Settings
from tests.conftest import replaced

TOKEN = "a-canary"  # noqa: S105 - of a test


def test_a_port_is_free_ours_or_anothers() -> None:
    assert of_port("API_PORT", 0, is_free=True, is_ours=False).found == "API_PORT any is free"
    assert of_port("API_PORT", 3000, is_free=False, is_ours=True).level == "ok"
    taken = of_port("API_PORT", 3000, is_free=False, is_ours=False)
    assert (taken.level, taken.remedy) == ("fail", "set API_PORT to another")


def test_a_list_is_shown_or_one_is_told_why_not() -> None:
    assert of_templates("main", None, 0, None).level == "note"
    assert of_templates("main", "77", 200, None).level == "ok"
    refused = of_templates("main", "77", 403, 10)
    assert refused.level == "fail"
    assert "code 10" in refused.found
    assert "whatsapp_business_management" in refused.remedy


async def test_each_right_in_redis_is_tried_and_nothing_is_left_behind(
    settings: Settings, queue: Queue, valkey: Valkey
) -> None:
    assert await queue.denied(0) == []
    raw: Any = redis.asyncio.Redis.from_url(valkey.url)
    await raw.execute_command(
        "ACL", "SETUSER", "poor", "reset", "on", ">pw", "~*", "&*", "+@all", "-xadd", "-zcount"
    )
    try:
        where = valkey.url.rpartition("@")[2].removeprefix("redis://")
        url = f"redis://poor:pw@{where}"
        poor = await Queue.open(replaced(settings, redis_url=url))
        assert await poor.denied(0) == ["XADD", "ZCOUNT"]
        await poor.close()
        assert await raw.keys("*probe*") == []
    finally:
        await raw.execute_command("ACL", "DELUSER", "poor")
        await raw.aclose()


async def test_doctor_says_what_is_wrong_in_a_line_each(
    environ: dict[str, str],
    settings: Settings,
    archive: Archive,
    graph: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    more = {"GRAPH_BASE_URL": graph, "API_HOST": "127.0.0.1", "API_PORT": port}
    for name, value in {**environ, **more}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(looked, "_file_limit", lambda: 65_536)
    sealed = Sealing(settings.bulk_secret_key).seal(TOKEN)
    await archive.add_sender(SenderRow("snd_a", "main", "1001", sealed, waba_id="77"))
    await archive.add_sender(SenderRow("snd_b", "plain", "1002", sealed))

    async def found() -> tuple[int, list[tuple[str, str, str]]]:
        code = await asyncio.to_thread(app, ["doctor", "--json"])
        text = capsys.readouterr().out
        assert TOKEN not in text
        rows = msgspec.json.decode(text)
        return int(code), [(row["level"], row["what"], row["found"]) for row in rows]

    code, rows = await found()
    assert code == 1
    assert ("fail", "port", f"API_PORT {port} cannot be listened on") in rows
    assert ("ok", "redis acl", "every command we use is allowed") in rows
    assert ("ok", "templates", "main: Graph shows the list of its account") in rows
    assert ("note", "templates", "plain: not checked before sending") in rows
    taken.close()
    code, rows = await found()
    assert [row[2] for row in rows if row[0] == "fail"] == []
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    code, rows = await found()
    assert (code, [row[1] for row in rows if row[0] == "fail"]) == (1, ["redis"])
