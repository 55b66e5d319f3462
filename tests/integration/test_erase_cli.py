"""`drumbeat erase`: a number is nowhere any more, and every figure is as it was."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec
import pytest

from api.cli.erase import is_spelling, rows_without
from api.roster import Kept, without
from shared import keys
from shared.archive import Archive, unpack_blob
from shared.errors import ConflictError
from shared.models import State
from shared.office import AuditFilter, Office
from shared.phone import mark
from shared.settings import Settings
from tests.conftest import SECRET
from tests.integration.command import Run, refused
from tests.integration.desk import Api, come_to, end
from tests.integration.postbox import FIRST, Post, status
from tests.integration.test_api_retry import OTHER, ended, retry, sent
from tests.integration.test_api_uploads import kept as uploaded

PHONE = 15550000002
_encode = msgspec.msgpack.Encoder().encode


def test_a_recipient_leaves_a_chunk_and_nobody_else_moves() -> None:
    chunks = [
        _encode(Kept([1, 2], [["a"], ["b"]], ["r1", "r2"], [5, 6])),
        _encode(([3, 4], None)),
    ]
    left = [msgspec.msgpack.decode(raw, type=Kept) for raw in without(chunks, 2, [1, 2])]
    assert left == [Kept([1, 0], [["a"], [""]], ["r1", None], [5, 6]), Kept([0, 4])]
    assert without(chunks, 2, []) == chunks


@pytest.mark.parametrize(
    ("cell", "is_it"),
    [
        ("+4915112345678", True),
        ("4915112345678", True),
        ("+49 (151) 123-456-78", True),
        ("0151 12345678", True),
        ("tel:+4915112345678", True),
        ("+4315112345678", False),
        ("12345678", False),
        ("Ann", False),
        ("", False),
    ],
)
def test_a_number_is_known_however_it_is_written(cell: str, *, is_it: bool) -> None:
    assert is_spelling(cell, 4915112345678, ["DE"]) is is_it


def test_rows_with_a_number_are_empty_and_keep_their_places() -> None:
    rows: list[list[str] | None] = [["Ann", "(555) 000-0002"], None, ["Ben", "+15550000003"]]
    chunks, count = rows_without([_encode(rows), _encode([["", "x"]])], None, PHONE, "US")
    assert count == 1
    assert msgspec.msgpack.decode(chunks[0]) == [["", ""], None, ["Ben", "+15550000003"]]
    assert msgspec.msgpack.decode(chunks[1]) == [["", "x"]]
    assert rows_without(chunks, None, PHONE, None) == (chunks, 0)


async def everything(pool: asyncpg.Pool[Any]) -> str:
    """Return all that PostgreSQL holds as text, compressed parts opened."""
    tables = await pool.fetch(
        "SELECT tablename AS name FROM pg_tables WHERE schemaname = current_schema()"
    )
    found = []
    for table in tables:
        rows = await pool.fetch(f"SELECT t::text AS row FROM {table['name']} t")  # noqa: S608 - ours
        found += [row["row"] for row in rows]
    blobs = await pool.fetch("SELECT blob FROM bulk_jobs UNION ALL SELECT content FROM uploads")
    for row in blobs:
        found += [str(msgspec.msgpack.decode(raw)) for raw in unpack_blob(row["blob"])]
    return "\n".join(found)


async def erased(run: Run, *words: str) -> dict[str, int]:
    """Run the command; the API of the test writes its log to the same place."""
    said = await run("erase", *words, "--json")
    return dict(msgspec.json.decode(said.splitlines()[-1]))


async def test_a_number_and_what_stood_beside_it_are_nowhere(run: Run, api: Api) -> None:
    pool = api.made.archive._pool
    jobs = [await ended(api), await ended(api)]
    upload = await uploaded(api, "phone;name\n(555) 000-0002;N2\n+15550000003;N3\n")
    figures = [await api.made.archive.job(job, None) for job in jobs]
    count = "SELECT job_id, position, outcome, code, attempts, at FROM campaign_logs ORDER BY 1, 2"
    log = await pool.fetch(count)
    held = await everything(pool)
    assert "15550000002" in held
    assert "'N2'" in held
    done = await erased(run, "(555) 000-0002", "--region", "US")
    assert done == {"jobs": 2, "recipients": 2, "files": 1, "rows": 1, "lifted": 0, "kept": 0}
    held = await everything(pool)
    for gone in ("15550000002", "000-0002", "'N2'", "'r2'"):
        assert gone not in held
    assert "15550000003" in held
    assert [await api.made.archive.job(job, None) for job in jobs] == figures
    assert await pool.fetch(count) == log
    rows = await Office(pool).audit(AuditFilter(action="recipient.erase"), 0, 9)
    assert [(row.result, row.object) for row in rows] == [
        ("ok", mark(PHONE, SECRET.encode())), ("asked", mark(PHONE, SECRET.encode())),
    ]  # fmt: skip
    assert rows[0].reason == "2 places in 2 jobs, 1 rows of uploads"
    again = await erased(run, f"+{PHONE}")
    assert (again["recipients"], again["rows"]) == (0, 0)
    # What is left of the file is still good for a job.
    path = f"/api/bulk/uploads/{upload['id']}"
    assert (await api.ask("ann", "GET", path)).status == 200
    message = {"kind": "text", "text": {"body": "Hi {{name}}"}}
    response = await api.send(recipients=..., upload_id=upload["id"], message=message)
    assert (await response.json())["intake"]["accepted"] == 1


async def test_nobody_writes_to_who_was_erased(run: Run, api: Api) -> None:
    job = await ended(api)
    said = await run("erase", f"+{PHONE}")
    assert said.endswith("erased from 1 places in 1 jobs, and 0 rows of 0 uploads\n")
    path = f"/api/bulk/jobs/{job}/recipients"
    shown = (await (await api.ask("ann", "GET", path)).json())["data"]
    assert (shown[1]["to"], shown[1]["ref"], shown[1]["outcome"]) == ("", None, "failed")
    assert shown[2]["to"] == "+15550000003"
    exported = await (await api.ask("ann", "GET", f"{path}.csv")).text()
    assert "\r\n1,,,failed," in exported
    assert (await (await api.ask("ann", "GET", f"{path}?q=0")).json())["data"][0]["position"] == 0
    found = await (await api.ask("ann", "GET", f"/api/bulk/recipients?to=%2B{PHONE}")).json()
    assert found["data"] == []
    # He was the only one whom a retry would have taken.
    response = await retry(api, job)
    body = await response.json()
    assert response.status == 422
    assert any("1 left out: erased" in fault["detail"] for fault in body["errors"])
    where = {"job": job, "outcome": "failed"}
    response = await api.send(recipients=..., message=OTHER, recipients_from=where)
    body = await response.json()
    assert (response.status, body["intake"]["accepted"]) == (202, 2), body


async def test_as_long_as_a_job_needs_the_number_nothing_is_erased(run: Run, api: Api) -> None:
    done = await ended(api)
    job = await sent(api)
    why = await refused(run, "erase", f"+{PHONE}")
    assert job in why
    assert done not in why
    assert "drumbeat jobs cancel" in why
    assert str(PHONE) not in why
    assert str(PHONE) in await everything(api.made.archive._pool)
    log = await Office(api.made.archive._pool).audit(AuditFilter(action="recipient.erase"), 0, 9)
    assert [row.result for row in log] == ["failed", "asked"]
    # Cancelled is not enough: what became of the others is still on its way.
    await end(api, job, "cancelled")
    with pytest.raises(ConflictError):
        await run("erase", f"+{PHONE}")
    await come_to(api, job, *((position, State.CANCELLED, None) for position in range(6)))
    await run("erase", f"+{PHONE}")
    assert str(PHONE) not in await everything(api.made.archive._pool)


async def test_the_suppression_list_keeps_who_must_not_be_written_to(
    run: Run, archive: Archive
) -> None:
    pool = archive._pool
    await run("suppress", "add", f"+{PHONE}", "--reason", "Ann asked by letter")
    await run("suppress", "add", f"+{PHONE}", "--scope", "marketing")
    assert "2 entries of the suppression list keep the number" in await run("erase", f"+{PHONE}")
    await run("suppress", "remove", f"+{PHONE}")
    assert "2 entries of the suppression list keep" in await run("erase", f"+{PHONE}")
    await pool.execute("UPDATE suppressions SET lifted_at = now() - interval '31 days'")
    said = await run("erase", f"+{PHONE}")
    assert "2 lifted entries of the suppression list are blank" in said
    assert "keep the number" not in said
    held = await everything(pool)
    assert str(PHONE) not in held
    assert "Ann asked" not in held


async def test_what_is_no_number_is_refused(run: Run, settings: Settings) -> None:
    assert settings.bulk_secret_key
    for words in (("5550000002",), ("+0555",), (f"+{PHONE}", "--region", "XX"), ("",)):
        assert "5550000002" not in await refused(run, "erase", *words)


async def test_a_late_webhook_counts_and_brings_nothing_back(run: Run, post: Post) -> None:
    job = await post.job(State.SENT, State.UNKNOWN, State.SENT)
    await post.work()
    for phone in (FIRST, FIRST + 1):
        await run("erase", f"+{phone}")
    await post.said(
        status("wamid.late0", "delivered", of=(job, 0)),
        status("wamid.late1", "delivered", of=(job, 1)),
        status("wamid.again", "failed", 2, of=(job, 0), code=131050),
    )
    await post.work()
    await post.work()
    assert await post.figures(job) == [(0, 3, 2, 0, 0)] * 4
    for position in (0, 1):
        row = await post.row(job, position)
        assert (row["phone"], row["wamid"], row["wamid2"]) == (0, None, None)
        assert (row["outcome"], row["receipt"]) == ("sent", 3)
    # A failure that would put its recipient on the list finds nobody to put there.
    assert await post.archive.suppressions() == []
    assert (await post.row(job, 2))["phone"] == FIRST + 2


async def test_redis_holds_no_number_of_a_job_that_has_ended(post: Post) -> None:
    job = await post.job(State.SENT, State.FAILED, State.UNKNOWN)
    client: Any = post.queue.visitors
    packed = msgspec.msgpack.encode(FIRST)
    assert repr(packed)[2:-1] in repr(await client.xrange(keys.outcomes(0)))
    await post.work()
    async for name in client.scan_iter():
        kind = (await client.type(name)).decode()
        held = {
            "stream": client.xrange, "hash": client.hgetall, "string": client.get,
            "set": client.smembers,
        }.get(kind)  # fmt: skip
        text = repr(await held(name) if held else await client.zrange(name, 0, -1))
        assert repr(packed)[2:-1] not in text, name
        assert str(FIRST) not in text, name
    assert (await post.queue.statuses([job]))[0] is not None
