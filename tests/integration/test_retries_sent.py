"""A retry and a second message by whole processes: what was sent once is not sent again."""

from __future__ import annotations

import csv
import io
from collections import Counter
from typing import Any

import pytest

from api.client import Client
from shared.errors import RequestError
from tests.e2e.stack import KEY, Eventually, Stack

PICTURE = {
    "kind": "image",
    "image": {"link": "https://cdn.example.com/a.png", "caption": "Hi {{name}}"},
}
SORRY = {"kind": "text", "text": {"body": "Sorry, {{name}}"}}
# By the sandbox's families of +1555… numbers: 8000 is always refused for now.
TRYING = ["+15550008000", "+15550018000"]


async def over(client: Client, job: str, eventually: Eventually) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        found = await client.job(job)
        return found if found["state"] == "completed" else None

    found: dict[str, Any] = await eventually(look, within_s=40, every_s=0.1)
    return found


@pytest.mark.slow
async def test_a_retry_sends_to_those_who_failed_and_to_nobody_else(
    stack: Stack, eventually: Eventually
) -> None:
    await stack.add_key()
    _, origin = await stack.add_api(eventually, BULK_RETRY_BASE_MS="10")
    await stack.add_workers(1, eventually, BULK_RETRY_BASE_MS="10")
    good = [f"+3933300000{n:02d}" for n in range(20)]
    rows = [{"to": to, "vars": {"name": f"N{n}"}} for n, to in enumerate([*good, *TRYING])]
    async with Client(origin, KEY) as client:
        body = {"recipients": rows, "message": PICTURE, "sender": "fast"}
        job = (await client.submit(body))["jobId"]
        done = await over(client, job, eventually)
        assert (done["progress"]["sent"], done["progress"]["failed"]) == (20, 2)

        async def retried() -> dict[str, Any] | None:
            try:
                made: dict[str, Any] = await client.ask(
                    "POST", f"/api/bulk/jobs/{job}/retry", {"scope": "failed"}
                )
            except RequestError as error:
                # Its last rows may still be on their way to PostgreSQL.
                if error.word != "state_conflict":
                    raise
                return None
            return made

        child = await eventually(retried, within_s=20, every_s=0.2)
        assert (child["parent"], child["intake"]["accepted"]) == (job, 2)
        await over(client, child["jobId"], eventually)
        # The child's failures are still the parent's: they may be retried, or told something else.
        source = {"job": job, "outcome": "sent"}
        other = {"recipients_from": source, "message": SORRY, "sender": "fast"}
        told = (await client.submit(other))["jobId"]
        await over(client, told, eventually)

        async def exported() -> list[dict[str, str]] | None:
            path = f"{origin}/api/bulk/jobs/{told}/recipients.csv"
            async with client.session.get(path) as response:
                table = [*csv.DictReader(io.StringIO(await response.text(), newline=""))]
            return table if all(row["outcome"] == "sent" for row in table) else None

        table = await eventually(exported, within_s=20, every_s=0.2)
        assert [row["to"] for row in table] == good
    seen = Counter(line.to for line in stack.lines())
    assert {to: seen[to] for to in good} == dict.fromkeys(good, 2)
    assert {seen[to] for to in TRYING} == {8}
    of_child = {line.to for line in stack.lines() if child["jobId"] in line.opaque}
    assert of_child == set(TRYING)
