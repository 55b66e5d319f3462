"""Streams of whole processes: resume across a killed API, the table of ids, stopping, revoking."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from api.client import Client, Event, LostError, Parser
from shared.archive import Archive, KeyRow, SenderRow
from shared.clock import Clock
from shared.ids import Ids
from tests.conftest import ROOT, Processes

pytestmark = pytest.mark.usefixtures("settings")
KEY_ID = "0123456789"
KEY = f"drb_{KEY_ID}_{'k' * 43}"
HEADERS = {"Authorization": f"Bearer {KEY}", "Accept": "text/event-stream"}
SENDER = SenderRow("snd_" + "0" * 26, "main", "100000000000001", b"x", is_default=True)
Eventually = Callable[..., Awaitable[Any]]


@pytest.fixture
async def user(archive: Archive) -> str:
    user_id = str(Ids().user_id())
    await archive.add_user(user_id, "ann@example.org", "x", "user")
    digest = hashlib.sha256(KEY.encode()).digest()
    key = KeyRow(KEY_ID, user_id, "t", digest, ["read", "send"], KEY[-4:], 0, False, "user", False)  # noqa: FBT003 - a row's columns
    await archive.add_key(key)
    return user_id


@pytest.fixture
def fast(processes: Processes) -> Processes:
    processes.environ |= {
        "WHATSAPP_PHONE_NUMBER_ID": "100000000000001",
        "WHATSAPP_ACCESS_TOKEN": "sandbox-token",
        "SSE_INTERVAL_MS": "50",
        "SSE_HEARTBEAT_S": "0.3",
        "BULK_SUBMITS_PER_HOUR_IP": "0",
        "BULK_PAUSE_MS": "250",
    }
    return processes


async def ready(url: str, eventually: Eventually) -> None:
    async def is_ready() -> bool:
        try:
            async with Client(url) as client:
                return bool(await client.ask("GET", "/readyz"))
        except LostError:
            return False

    await eventually(is_ready, within_s=20, every_s=0.1)


def body(count: int) -> dict[str, Any]:
    message = {"kind": "text", "text": {"body": "one\n\ndata: two", "preview_url": False}}
    return {
        "recipients": [f"+1555{n:07}" for n in range(2000000, 2000000 + count)],
        "message": message,
    }


async def test_a_jobs_page_brings_all_it_needs(fast: Processes, eventually: Eventually) -> None:
    _, origin = fast.api()
    await ready(origin, eventually)
    async with Client(origin) as client:
        async with client.session.get(f"{origin}/jobs/{Ids().job_id(0)}") as response:
            page = await response.text()
            assert "script-src 'self'" in response.headers["Content-Security-Policy"]
        for name in re.findall(r"/static/[^\"]+", page):
            async with client.session.get(origin + name) as response:
                assert response.status == 200
                assert "immutable" in response.headers["Cache-Control"]


class Stream:
    """One raw connection and what came over it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.raw = b""

    async def until(self, predicate: Callable[[list[Event]], bool], within_s: float = 3) -> Any:
        async with asyncio.timeout(within_s):
            while not predicate(self.events):
                piece = await self.response.content.readany()
                if not piece:
                    raise AssertionError(f"closed after {self.raw!r}")
                self.raw += piece
        told = [event.data for event in self.events if event.data]
        return json.loads(told[-1]) if told else None

    @property
    def events(self) -> list[Event]:
        return Parser().feed(self.raw)


def has_data(events: list[Event]) -> bool:
    return any(event.data for event in events)


async def test_what_a_connection_gets_first_and_how_it_ends(
    fast: Processes, user: str, archive: Archive, eventually: Eventually
) -> None:
    fast.environ["SSE_PER_USER"] = "12"
    child, url = fast.api()
    await ready(url, eventually)
    # No worker runs: the job stays as it was submitted, and nobody makes the sender.
    await archive.add_sender(SENDER)
    other = Ids().job_id(0)
    async with aiohttp.ClientSession(url) as http, Client(url, KEY) as client:
        job = (await client.submit(body(3)))["jobId"]
        path = f"/realtime/bulk/{job}"

        async def status(method: str, where: str, **headers: str) -> int:
            async with http.request(method, where, headers={**HEADERS, **headers}) as response:
                return response.status

        assert await status("HEAD", path) == 405
        assert await status("GET", path, Accept="text/html") == 406
        assert await status("GET", path, Accept="text/event-stream;q=0") == 406
        assert await status("GET", path, Authorization="Bearer no") == 401
        assert await status("GET", f"/realtime/bulk/{other}") == 404
        assert await status("GET", f"/realtime/bulk?jobs={job},{other}") == 404

        async with http.get(path, headers=HEADERS) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            assert response.headers["Cache-Control"] == "no-store, no-transform"
            assert response.headers["X-Accel-Buffering"] == "no"
            assert "Content-Encoding" not in response.headers
            stream = Stream(response)
            event = await stream.until(has_data)
            assert stream.raw.startswith(b"retry: 2000\n: ok\n\n")
            assert (event["type"], event["jobId"], event["reset"]) == ("snapshot", job, False)
            newest = stream.events[-1].id
            await stream.until(lambda _: b": hb" in stream.raw)
        ms = int(newest.split("-")[0])
        for given, is_reset in (
            (f"{ms - 1}-0", False),
            (f"{ms + 10**9}-0", True),
            ("garbage", True),
            ("x" * 4096, True),
        ):
            async with http.get(path, headers={**HEADERS, "Last-Event-ID": given}) as response:
                event = await Stream(response).until(has_data)
                assert (event["type"], event["reset"]) == ("snapshot", is_reset), given[:20]
        # The header wins over the query, and the newest id is owed nothing but what follows.
        async with http.get(
            f"{path}?lastEventId=1-0&x=y", headers={**HEADERS, "Last-Event-ID": newest}
        ) as response:
            stream = Stream(response)
            await stream.until(lambda _: b": hb" in stream.raw)
            assert not has_data(stream.events)
            await client.control(job, "pause", "lunch")
            event = await stream.until(has_data)
            assert (event["type"], event["state"]) == ("progress", "paused")
            assert event["wait"]["reason"] == "paused"

        await eventually(lambda: status_of_full(http, path), every_s=0.7)
        # Whoever left is found by the next heartbeat.
        await eventually(lambda: status_of_free(http, path), within_s=5)

        async with http.get(f"/realtime/bulk?jobs={job}", headers=HEADERS) as response:
            stream = Stream(response)
            await stream.until(has_data)
            begun = Clock().monotonic()
            child.send(signal.SIGTERM)
            await stream.until(lambda events: events[-1].name == "bye")
            assert 500 <= stream.events[-1].retry_ms <= 3000
            assert await response.content.read() == b""
            assert Clock().monotonic() - begun < 2

        _, url = fast.api()
        await ready(url, eventually)
        async with http.get(f"{url}{path}", headers=HEADERS) as response:
            stream = Stream(response)
            await stream.until(has_data)
            await archive.revoke_key(KEY_ID)
            await stream.until(lambda events: events[-1].name == "revoked")
            assert await response.content.read() == b""
        # Every process knows of it within a second.
        await eventually(lambda: is_refused(http, f"{url}{path}"), within_s=1.5, every_s=0.1)
    assert user


async def status_of_full(http: aiohttp.ClientSession, path: str) -> bool:
    """Tell whether twelve streams fit and one more does not; closed ones are found by heartbeat."""
    held = [await http.get(path, headers=HEADERS) for _ in range(13)]
    found = [response.status for response in held]
    retry = held[-1].headers.get("Retry-After")
    for response in held:
        response.close()
    return found == [200] * 12 + [429] and retry is not None


async def is_refused(http: aiohttp.ClientSession, url: str) -> bool:
    async with http.get(url, headers=HEADERS) as response:
        return response.status == 401


async def status_of_free(http: aiohttp.ClientSession, path: str) -> bool:
    async with http.get(path, headers=HEADERS) as response:
        return response.status == 200


async def test_a_file_is_sent_and_followed_from_the_command_line(
    fast: Processes, user: str, archive: Archive, eventually: Eventually
) -> None:
    _, graph, _ = fast.sandbox("--rate", "1000")
    fast.environ["GRAPH_BASE_URL"] = graph
    _, url = fast.api()
    fast.worker()
    await ready(url, eventually)
    await eventually(archive.default_sender, within_s=10)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DRUMBEAT_URL": url, "DRUMBEAT_API_KEY": KEY}

    async def drumbeat(*words: str, stdin: str = "") -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "api.cli.main", *words, env=env, cwd=fast.folder,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate(stdin.encode())
        return process.returncode, out.decode(), err.decode()

    table = "Phone;First name\n+15552000001;Ann\n+15552000002;Bob\n"
    text = ("--text", "Hello {{first_name}}")
    code, out, err = await drumbeat("send", "-", *text, "--yes", "--watch", "--strict", stdin=table)
    assert code == 0, err
    job = out.split("\n")[0]
    assert "completed" in out
    assert "2/2" in out
    code, out, err = await drumbeat("jobs", "show", job, "--json")
    assert json.loads(out)["progress"]["sent"] == 2
    assert (await drumbeat("jobs", "list", "--quiet"))[1] == f"{job}\n"
    code, out, err = await drumbeat("jobs", "pause", job)
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    assert (await drumbeat("send", "-", *text, stdin=table))[0] == 1
    assert (await drumbeat("stats"))[0] == 1
    bad = "phone\n+15552000001\nAnn\n"
    code, _, err = await drumbeat("send", "-", "--text", "x", "--yes", stdin=bad)
    assert code == 1
    assert "/recipients/1" in err
    env["DRUMBEAT_URL"] = "http://127.0.0.1:1"
    assert (await drumbeat("jobs", "list"))[0] == 3
    assert user


async def test_a_finished_job_is_known_by_postgresql_alone(
    fast: Processes, user: str, archive: Archive, eventually: Eventually
) -> None:
    _, graph, _ = fast.sandbox("--rate", "1000")
    fast.environ |= {"GRAPH_BASE_URL": graph, "JOB_TTL_S": "1"}
    _, url = fast.api()
    worker = fast.worker()
    await ready(url, eventually)
    await eventually(archive.default_sender, within_s=10)
    async with Client(url, KEY) as client:
        job = (await client.submit(body(20)))["jobId"]
        async with asyncio.timeout(20):
            seen = [pair async for pair in client.watch(job)]
        end = seen[-1][0]

        async def is_archived() -> bool:
            row = await archive.job(job, None)
            return row is not None and row.end_event == end

        await eventually(is_archived, within_s=10)
        await worker.stop()
        await Clock().sleep(2.2)
        again = [pair async for pair in client.watch(job)]
        assert [(i, e["type"], e["progress"]["sent"]) for i, e in again] == [(end, "end", 20)]
        assert [pair async for pair in client.watch(job, end)] == []
    assert user
