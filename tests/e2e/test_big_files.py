"""A file of fifty thousand rows, three hundred of them bad, from upload to export."""

from __future__ import annotations

import csv
import io
import time
from typing import Any

import aiohttp
import pytest

from tests.e2e.stack import KEY, Eventually, Stack

ROWS, BAD, WITHIN_S = 50_000, 300, 3.0
HEADERS = {"Authorization": f"Bearer {KEY}"}
REASONS = {"x": "bad_format", "15550000001": "no_country_code", "+1": "bad_format"}


def people() -> tuple[str, dict[int, str]]:
    """Return the file, and the reasons of its bad rows by the file's own row numbers."""
    words, wrong, lines = list(REASONS), {}, ["phone,ref,first_name"]
    for index in range(ROWS):
        # The first row of people is the file's second.
        phone, row = f"+49151{index:08d}", index + 2
        if index % (ROWS // BAD) == 7 and len(wrong) < BAD:
            phone = words[len(wrong) % len(words)]
            wrong[row] = REASONS[phone]
        lines.append(f"{phone},crm-{index},Ann")
    return "\n".join(lines), wrong


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_three_hundred_bad_rows_of_fifty_thousand_are_told_and_the_rest_is_sent(
    stack: Stack, eventually: Eventually
) -> None:
    await stack.add_key()
    _, origin = await stack.add_api(eventually)
    await stack.add_workers(2, eventually)
    text, wrong = people()
    async with aiohttp.ClientSession(origin, headers=HEADERS) as http:

        async def ask(method: str, path: str, **rest: Any) -> Any:
            async with http.request(method, path, **rest) as answer:
                assert answer.status < 300, await answer.text()
                is_json = answer.content_type == "application/json"
                return await answer.json() if is_json else await answer.text()

        began = time.monotonic()
        kind = {"Content-Type": "text/csv"}
        upload = await ask(
            "POST", "/api/bulk/uploads", data=io.BytesIO(text.encode()), headers=kind
        )
        told = table(await ask("GET", f"/api/bulk/uploads/{upload['id']}/problems.csv"))
        took_s = time.monotonic() - began
        assert (upload["rows"], upload["valid"], upload["invalid"]) == (ROWS, ROWS - BAD, BAD)
        assert {int(row["row"]): row["code"] for row in told} == wrong
        hi = {"kind": "text", "text": {"body": "Hi {{first_name}}"}}
        body = {"upload_id": upload["id"], "message": hi, "sender": "main", "on_invalid": "skip"}
        job = await ask("POST", "/api/bulk/send", json=body)
        assert (job["intake"]["accepted"], job["intake"]["invalid"]) == (ROWS - BAD, BAD)

        async def is_over() -> bool:
            # The table is the archive's, which follows what is sent.
            path = f"{job['links']['recipients']}?outcome=pending&limit=1"
            return not (await ask("GET", path))["data"]

        await eventually(is_over, within_s=200, every_s=1)
        rows = table(await ask("GET", f"{job['links']['recipients']}.csv"))
    print(f"\nall {BAD} bad rows of {ROWS} told after {took_s:.2f} s")  # noqa: T201
    # Sent or told: each row of the file is in one of the two.
    refs = [row["ref"] for row in rows] + [f"crm-{row - 2}" for row in wrong]
    assert sorted(refs) == sorted(f"crm-{index}" for index in range(ROWS))
    assert {row["outcome"] for row in rows} == {"sent"}
    assert set(stack.accepted().values()) == {1}
    assert took_s <= WITHIN_S
