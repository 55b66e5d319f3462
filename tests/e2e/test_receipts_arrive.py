"""The whole way round: sent, said by the far side, seen by whoever asks; unknown ones settle."""

from __future__ import annotations

from typing import Any

import aiohttp

from api.client import Client
from shared.results import RECEIPTS
from tests.e2e.stack import KEY, Eventually, Stack

HOOKS = {
    "sent_ms": 50,
    "delivered_ms": 150,
    "read_ms": 300,
    "read_share": 1.0,
    "copies": 2,
    "shuffle_ms": 400,
}
# By the last four digits: its answer is lost, its delivery fails, or nothing is wrong.
LOST, UNDELIVERED, FINE = 15550005101, 15550009026, 15550000001


async def test_what_the_far_side_says_comes_back_to_the_job(
    stack: Stack, eventually: Eventually
) -> None:
    stack.processes.environ |= {"WHATSAPP_APP_SECRET": "s,old", "WHATSAPP_VERIFY_TOKEN": "agreed"}
    _, origin = await stack.add_api(eventually)
    words = ["--rate", "100000", "--latency", "20", "--no-fsync"]
    await stack.new_sandbox(eventually, *words, "--webhook", f"{origin}/webhooks/whatsapp")
    await hooks(stack)
    await stack.add_workers(2, eventually)
    await stack.add_key()
    phones = [LOST, UNDELIVERED, *range(FINE, FINE + 40)]
    job = await stack.submit(phones)

    async with Client(origin, KEY) as client:

        async def shown() -> dict[str, Any]:
            body = await client.ask("GET", f"/api/bulk/jobs/{job}")
            return dict(body["progress"])

        async def is_told() -> bool:
            p = await shown()
            return (p["sent"], p["read"], p["undelivered"]) == (42, 41, 1)

        await eventually(is_told, within_s=20, every_s=0.2)
        assert (await shown())["unknown"] == 0
        assert (await shown())["delivered"] == 41
        rows = (await client.ask("GET", f"/api/bulk/jobs/{job}/recipients?limit=2"))["data"]
    assert [(row["outcome"], row["receipt"], row["code"]) for row in rows] == [
        ("sent", RECEIPTS[4], None),
        ("sent", RECEIPTS[2], 131026),
    ]
    assert all(row["wamid"] for row in rows)
    # Settled after the end, it is announced once more: so the last event may be above the end's.
    status, row = await stack.status(job), await stack.archive.job(job, None)
    assert row is not None
    assert (row.sent, row.unknown, row.delivered, row.read, row.undelivered) == (42, 0, 41, 41, 1)
    assert (status.tally.sent, status.tally.unknown) == (42, 0)
    assert stack.accepted().total() == 42


async def hooks(stack: Stack) -> None:
    url = f"{stack.origin}/_sandbox/hooks"
    async with aiohttp.ClientSession() as http, http.patch(url, json=HOOKS) as answer:
        assert answer.status == 200, await answer.text()
