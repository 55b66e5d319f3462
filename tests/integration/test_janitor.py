"""What has outlived its time goes, what is promised stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from shared.connect import open_postgres
from shared.leftovers import Leftovers
from tests.integration.desk import Api, problem
from worker.janitor import Janitor

DAY_S = 86_400
PEOPLE = b"Phone\n+15550000001\n"
KEY = {"Idempotency-Key": "once"}


@pytest.fixture
async def pool(api: Api) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_postgres(api.made.settings)
    yield opened
    await opened.close()


async def put(api: Api, key: str) -> str:
    headers = {"Content-Type": "text/csv", "Idempotency-Key": key}
    response = await api.ask("ann", "POST", "/api/bulk/uploads", data=PEOPLE, headers=headers)
    assert response.status == 201, await response.text()
    return str((await response.json())["id"])


async def test_a_file_goes_when_its_time_is_over_though_nobody_uploads(
    api: Api, pool: asyncpg.Pool
) -> None:
    for number in range(3):
        await put(api, f"k{number}")
    kept = await put(api, "kept")
    await pool.execute("UPDATE uploads SET expires_ms = created_ms WHERE id <> $1", kept)
    await Janitor(Leftovers(pool), DAY_S).sweep(asyncio.Event())
    assert [row["id"] for row in await pool.fetch("SELECT id FROM uploads")] == [kept]


async def test_a_key_is_forgotten_after_its_time_and_not_before(
    api: Api, pool: asyncpg.Pool
) -> None:
    janitor, stop = Janitor(Leftovers(pool), DAY_S), asyncio.Event()
    first = await (await api.send(headers=KEY)).json()
    upload = await put(api, "file")
    await pool.execute("UPDATE bulk_jobs SET created_ms = created_ms - 86000 * 1000::bigint")
    await janitor.sweep(stop)
    assert (await (await api.send(headers=KEY)).json())["jobId"] == first["jobId"]
    await problem(await api.send(headers=KEY, name="x"), 422, "idempotency_mismatch")
    await pool.execute("UPDATE bulk_jobs SET created_ms = created_ms - 86400 * 1000::bigint")
    await pool.execute("UPDATE uploads SET created_ms = created_ms - 86400 * 1000::bigint")
    await janitor.sweep(stop)
    row = await pool.fetchrow("SELECT idempotency_key, request_hash, response FROM bulk_jobs")
    assert row is not None
    assert tuple(row) == (None, None, None)
    second = await api.send(headers=KEY, name="x")
    assert (second.status, "Idempotent-Replayed" in second.headers) == (202, False)
    # The job and the file themselves stay.
    path = f"/api/bulk/jobs/{first['jobId']}"
    assert (await api.ask("ann", "GET", path)).status == 200
    assert (await api.ask("ann", "GET", f"/api/bulk/uploads/{upload}")).status == 200
    assert await put(api, "file") != upload


async def test_two_sweep_more_than_one_takes_at_once(api: Api, pool: asyncpg.Pool) -> None:
    await put(api, "k")
    await pool.execute(
        "INSERT INTO uploads (id, owner, filename, format, first_row, rows, columns, counts,"
        " content, created_ms, expires_ms) SELECT 'upl_' || n, owner, filename, format, first_row,"
        " rows, columns, counts, content, created_ms, 1 FROM uploads, generate_series(1, 250) n"
    )
    janitors = [Janitor(Leftovers(pool), DAY_S) for _ in range(2)]
    await asyncio.gather(*(janitor.sweep(asyncio.Event()) for janitor in janitors))
    assert await pool.fetchval("SELECT count(*) FROM uploads") == 1
