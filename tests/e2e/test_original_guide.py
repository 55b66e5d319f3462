"""The original guide, letter for letter, against `drumbeat up`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import ROOT

ENV_BLOCK = """\
GRAPH_API_VERSION=v22.0
BULK_BATCH_SIZE=50              # Messages per batch
BULK_CONCURRENCY=5              # Concurrent sends per batch  
BULK_PAUSE_MS=1000              # Pause between batches (ms)
BULK_MAX_RETRIES=3              # Max retries for failed messages
BULK_RETRY_BASE_MS=500          # Base retry delay (ms)
BULK_HARD_CAP=50000             # Max recipients per job
"""  # noqa: W291 - the guide's own blanks
TEXT = {
    "recipients": ["+15550000001", "+15550000002", "+15550000003"],
    "message": {
        "kind": "text",
        "text": {"body": "Hello from Prime SMS!", "preview_url": False},
    },
}
TEMPLATE = {
    "recipients": ["+15550000001", "+15550000002"],
    "message": {
        "kind": "template",
        "template": {
            "name": "order_update",
            "language_code": "en_US",
            "components": [{"type": "body", "parameters": [{"type": "text", "text": "John Doe"}]}],
        },
    },
}


class Guide:
    """A running system and somebody logged in."""

    def __init__(self, origin: str, user: str, http: aiohttp.ClientSession) -> None:
        self.origin, self.user, self.http = origin, user, http

    async def send(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        async with self.http.post(f"{self.origin}/api/bulk/send", json=body) as answer:
            return answer.status, await answer.json(content_type=None)

    async def follow(
        self, job: str, last: str | None = None
    ) -> tuple[int, list[dict[str, Any]], str]:
        """Return the status, every event up to the end, and the last id."""
        headers = {"Last-Event-ID": last} if last else {}
        url = f"{self.origin}/realtime/bulk/{job}"
        async with self.http.get(url, headers=headers) as answer:
            text = await answer.text()
            ids = re.findall(r"^id: (.+)$", text, re.MULTILINE)
            data = [json.loads(x) for x in re.findall(r"^data: (.+)$", text, re.MULTILINE)]
            return answer.status, data, ids[-1] if ids else ""


@pytest.fixture
async def guide(eventually: Callable[..., Awaitable[Any]]) -> AsyncIterator[Guide]:
    home = Path(tempfile.mkdtemp(prefix="drumbeat-guide-"))
    home.chmod(0o711)
    (home / ".env").write_text(ENV_BLOCK)
    names = ("PATH", "HOME", "TMPDIR", "LANG")
    env = {name: os.environ[name] for name in names if name in os.environ}
    env |= {"PYTHONPATH": str(ROOT), "DRUMBEAT_HOME": str(home / "data"), "NO_COLOR": "1"}
    out = home / "out.log"
    with out.open("wb") as stream:
        up = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "api.cli", "up", "--port", "0", cwd=home, env=env,
            stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        await eventually(lambda: "/api/bulk/stats" in out.read_text(), within_s=50)
        text = out.read_text()
        origin = re.search(r"address\s+(http://\S+)", text)
        password = re.search(r"password\s+(\S+)", text)
        user = re.search(r"user id\s+(\S+)", text)
        assert origin
        assert password
        assert user
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookie_jar=jar) as http:
            credentials = {"email": "admin@localhost", "password": password[1]}
            async with http.post(f"{origin[1]}/api/session", json=credentials) as answer:
                assert answer.status == 200, await answer.text()
            yield Guide(origin[1], user[1], http)
    finally:
        up.send_signal(signal.SIGTERM)
        await asyncio.wait_for(up.wait(), 20)
        shutil.rmtree(home, ignore_errors=True)


async def test_the_guide_works_as_printed(guide: Guide) -> None:
    async with (
        aiohttp.ClientSession() as stranger,
        stranger.get(f"{guide.origin}/api/bulk/jobs") as answer,
    ):
        assert answer.status == 401
    for body in (
        TEXT,
        {**TEMPLATE, "userId": guide.user},
        {"userId": guide.user, **TEXT},
        TEMPLATE,
    ):
        status, made = await guide.send(body)
        assert status == 202, made
        assert made["userId"] == guide.user
        code, events, last = await guide.follow(made["jobId"])
        assert code == 200
        assert events[-1]["type"] == "end"
        assert events[-1]["progress"]["sent"] == len(body["recipients"])
        assert (await guide.follow(made["jobId"], last))[0] == 204
    for printed in ("user-uuid", "<your-user-id>"):
        status, problem = await guide.send({**TEXT, "userId": printed, "campaignId": "optional"})
        assert status == 422
        assert problem["errors"][0]["pointer"] == "/userId"
        assert "/api/session" in json.dumps(problem)
    status, made = await guide.send({**TEXT, "recipients": ["+1234567890"]})
    assert (status, made["intake"]["suspect"]) == (202, 1)
    async with guide.http.get(f"{guide.origin}/api/bulk/jobs") as answer:
        assert len((await answer.json())["data"]) == 5
    async with guide.http.get(f"{guide.origin}/api/bulk/stats") as answer:
        assert answer.status == 200
        assert "connections" in (await answer.json())["streams"]
