"""The original guide's console snippets, typed into a real browser's console after log-in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio

from shared.embedded.postgres import Postgres
from shared.embedded.valkey import Valkey
from shared.ids import Ids
from tests.browser.chromium import Page
from tests.integration.test_up_and_demo import Folder, Up

pytestmark = pytest.mark.browser
Eventually = Callable[..., Awaitable[Any]]

SEND = """\
fetch('/api/bulk/send', {method: 'POST', headers: {'Content-Type': 'application/json'},
  body: JSON.stringify({userId: '<your-user-id>', recipients: ['+1234567890'],
    message: {kind: 'text', text: {body: 'Test bulk message'}}})}).then(r => r.json()).then(console.log)
"""  # noqa: E501 - letter for letter
FOLLOW = """\
const eventSource = new EventSource('/realtime/bulk/<job-id-here>');
eventSource.onmessage = (event) => { console.log('Progress:', JSON.parse(event.data)); };
"""
TEMPLATE = """\
{"userId": "user-uuid", "recipients": ["+15550000001", "+15550000002"],
 "message": {"kind": "template", "template": {"name": "order_update", "language_code": "en_US",
   "components": [{"type": "body", "parameters": [{"type": "text", "text": "John Doe"}]}]}}}
"""
SEND_TEMPLATE = f"""\
fetch('/api/bulk/send', {{method: 'POST', headers: {{'Content-Type': 'application/json'}},
  body: JSON.stringify({TEMPLATE})}}).then(r => r.json()).then(console.log)
"""


async def log_in(page: Page, up: Up, eventually: Eventually) -> None:
    """Log in as a person does, at the page."""
    await page.goto(f"{up.origin}/login")
    await eventually(lambda: page.is_shown("#login-form"))
    await page.fill("[name=email]", "admin@localhost")
    await page.fill("[name=password]", up.password)
    await page.click("#login-form button")
    await eventually(lambda: page.is_shown("#send-form"))


async def accepted(page: Page, snippet: str, eventually: Eventually) -> str:
    """Type a request; return the id of the job that the console shows."""
    before = len(await page.logged())
    await page.type(snippet)

    async def shown() -> Any:
        lines = (await page.logged())[before:]
        return lines[0][0] if lines else None

    made = await eventually(shown)
    assert made.get("jobId"), made
    return str(made["jobId"])


async def followed(page: Page, job: str, eventually: Eventually) -> list[dict[str, Any]]:
    """Type the snippet that follows; return its events once the browser has given up for good."""
    before, path = len(await page.logged()), f"/realtime/bulk/{job}"
    asked = page.requests.count(path)
    await page.type(FOLLOW.replace("<job-id-here>", job))

    async def is_closed() -> bool:
        return bool(await page.type("eventSource.readyState") == 2)

    await eventually(is_closed, within_s=30)
    assert page.requests.count(path) - asked == 2, "one connection and exactly one reconnect"
    answers = [status for where, status in page.answers if where == path][asked:]
    assert answers == [200, 204]
    lines = (await page.logged())[before:]
    assert {line[0] for line in lines} == {"Progress:"}
    return [line[1] for line in lines]


async def test_the_snippets_send_follow_and_stop_after_the_end_for_good(
    page: Page, folder: Folder, valkey: Valkey, postgres: Postgres, eventually: Eventually
) -> None:
    client = redis.asyncio.Redis.from_url(valkey.url)
    await client.flushall()
    schema = f"t{Ids().object_id('sup')[4:]}"
    up = await folder.up(
        eventually, REDIS_URL=valkey.url, DATABASE_URL=postgres.url, DATABASE_SCHEMA=schema,
        JOB_TTL_S="1", BULK_BATCH_SIZE="1", BULK_PAUSE_MS="500",
    )  # fmt: skip
    await log_in(page, up, eventually)
    first = await accepted(page, SEND.replace("<your-user-id>", up.user_id), eventually)
    events = await followed(page, first, eventually)
    assert (events[-1]["type"], events[-1]["progress"]["sent"]) == ("end", 1)
    snippet = SEND_TEMPLATE.replace("user-uuid", up.user_id)
    job = await accepted(page, snippet, eventually)
    events = await followed(page, job, eventually)
    assert [event["type"] for event in events][-1] == "end"
    assert [event["type"] for event in events].count("end") == 1
    done = [event["progress"]["done"] for event in events]
    assert (done, done[-1]) == (sorted(done), 2)

    async def is_expired() -> bool:
        return not await client.keys(f"*{job}*")

    await eventually(is_expired, within_s=20)
    (end,) = await followed(page, job, eventually)
    assert (end["type"], end["progress"]["sent"]) == ("end", 2)
    assert page.faults == []
    await client.aclose()
