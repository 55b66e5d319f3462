"""The guide's connection statistics: a line every minute while somebody follows."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from shared.embedded.children import Child
from tests.e2e.stack import KEY, Eventually, Stack


def told(api: Child) -> list[dict[str, Any]]:
    """Return the lines of `sse.stats` that an API process has written."""
    lines = api.log.read_text().splitlines()
    return [json.loads(line) for line in lines if '"sse.stats"' in line]


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_follower_of_130_seconds_leaves_two_lines_with_his_connection(
    stack: Stack, eventually: Eventually
) -> None:
    await stack.add_key()
    api, origin = await stack.add_api(eventually)
    job = await stack.submit([15550000001])  # no worker runs: it is followed for as long as asked
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(origin, headers=headers) as http,
        http.get(f"/realtime/bulk/{job}", timeout=aiohttp.ClientTimeout(None)) as answer,
    ):
        assert answer.status == 200
        await eventually(
            lambda: len([x for x in told(api) if x["connections"] == 1]) == 2, within_s=130
        )
