"""A job's recipients, as a table and as files: who is shown, in which order, how they look."""

from __future__ import annotations

import asyncio
import csv
import io
from typing import Any

import pytest
from python_calamine import CalamineWorkbook

from api.exports import COLUMNS
from shared.models import State
from shared.results import RecipientFilter
from tests.integration.desk import NUMBERS, Api, come_to, problem


async def job_of(api: Api, count: int = 3, **fields: Any) -> str:
    rows = [{"to": f"+1555{n:07d}", "ref": f"crm-{n}"} for n in range(1, count + 1)]
    response = await api.send(**{"recipients": rows, **fields})
    body = await response.json()
    assert response.status == 202, body
    return str(body["jobId"])


async def page(api: Api, job: str, query: str = "", who: str = "ann") -> dict[str, Any]:
    response = await api.ask(who, "GET", f"/api/bulk/jobs/{job}/recipients{query}")
    body = await response.json()
    assert response.status == 200, body
    return dict(body)


def positions(body: dict[str, Any]) -> list[int]:
    return [row["position"] for row in body["data"]]


async def test_a_recipient_shows_what_became_of_it(api: Api) -> None:
    job = await job_of(api)
    at = 1_795_511_649_123
    await come_to(api, job, (0, State.SENT, None), (1, State.FAILED, 131026), at_ms=at)
    body = await page(api, job)
    assert body["as_of"].endswith("Z")
    assert body["data"][0] == {
        "position": 0, "to": "+15550000001", "ref": "crm-1", "outcome": "sent", "reason": None,
        "code": None, "error": None, "attempts": 1, "wamid": f"wamid.{job}.0",
        "sent_at": "2026-11-24T09:14:09.123Z", "receipt": None, "receipt_at": None,
    }  # fmt: skip
    assert body["data"][1]["reason"] == "graph"
    assert body["data"][1]["code"] == 131026
    assert "undeliverable" in body["data"][1]["error"].lower()
    assert (body["data"][2]["outcome"], body["data"][2]["attempts"]) == (None, 0)


async def test_filters_narrow_and_pages_have_no_repeat_and_no_gap(api: Api) -> None:
    job = await job_of(api, 120)
    await come_to(api, job, *((n, State.SENT, None) for n in range(0, 120, 2)))
    await come_to(api, job, (1, State.FAILED, 131026), (3, State.FAILED, 131049))
    for query, wanted in (
        ("outcome=failed", [1, 3]),
        ("code=131049", [3]),
        ("outcome=pending", list(range(5, 120, 2))),
        ("outcome=failed,sent", [0, 1, 2, 3, *range(4, 120, 2)]),
        ("q=crm-77", [76]),
        ("q=5550000120", [119]),
        ("q=CRM-7&outcome=sent", [6, 70, 72, 74, 76, 78]),
        ("receipt=read", []),
        ("", list(range(120))),
    ):
        seen: list[int] = []
        cursor = ""
        while True:
            body = await page(api, job, f"?limit=25&{query}{cursor}")
            assert len(body["data"]) <= 25
            seen += positions(body)
            if not body["has_more"]:
                break
            cursor = f"&cursor={body['next_cursor']}"
        assert seen == wanted, query
    other = f"/api/bulk/jobs/{job}/recipients?outcome=sent&limit=25{cursor}"
    await problem(await api.ask("ann", "GET", other), 422, "bad_cursor")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("outcome=delivered", "bad_filter"),
        ("outcome=sent'--", "bad_filter"),
        ("outcome=" + ",".join(["sent"] * 100), "bad_filter"),
        ("receipt=sent", "bad_filter"),
        ("code=abc", "bad_filter"),
        ("code=-1", "bad_filter"),
        ("code=" + ",".join(["1"] * 21), "bad_filter"),
        ("code=%D9%A1", "bad_filter"),
        ("q=" + "x" * 201, "bad_filter"),
        ("q=%00", "bad_filter"),
        ("limit=0", "validation_failed"),
        ("limit=101", "validation_failed"),
        ("sort=phone", "unknown_parameter"),
        ("q=a&q=b", "unknown_parameter"),
        ("cursor=x", "bad_cursor"),
    ],
)
async def test_a_table_refuses(api: Api, query: str, code: str) -> None:
    job = await job_of(api)
    await problem(
        await api.ask("ann", "GET", f"/api/bulk/jobs/{job}/recipients?{query}"), 422, code
    )
    if not query.startswith(("limit", "cursor")):
        path = f"/api/bulk/jobs/{job}/recipients.csv?{query}"
        await problem(await api.ask("ann", "GET", path), 422, code)


async def test_a_foreign_jobs_recipients_are_absent_and_an_admins_look_is_noted(api: Api) -> None:
    job = await job_of(api)
    for suffix in ("", ".csv", ".ndjson", ".xlsx"):
        for path in (job, "job_" + "0" * 28, "x"):
            response = await api.ask("ben", "GET", f"/api/bulk/jobs/{path}/recipients{suffix}")
            await problem(response, 404, "not_found")
        response = await api.ask("root", "GET", f"/api/bulk/jobs/{job}/recipients{suffix}")
        assert response.status == 200
    pool = api.made.archive._pool
    notes = await pool.fetch("SELECT action, reason FROM audit_log WHERE object = $1", job)
    found = {(note["action"], note["reason"]) for note in notes}
    assert found >= {("job.read", ""), ("job.export", "csv"), ("job.export", "xlsx")}


async def test_the_files_say_what_the_table_says(api: Api) -> None:
    rows = [{"to": NUMBERS[0], "ref": "=1+1"}, {"to": NUMBERS[1], "ref": 'a "b", <&> c'},
            {"to": NUMBERS[2], "ref": "@é\U0001f600"}]  # fmt: skip
    job = await job_of(api, recipients=rows)
    await come_to(api, job, (0, State.SENT, None), (1, State.FAILED, 131026))
    path = f"/api/bulk/jobs/{job}/recipients"
    response = await api.ask("ann", "GET", f"{path}.csv")
    assert response.headers["Content-Disposition"] == f'attachment; filename="{job}.csv"'
    table = list(csv.DictReader(io.StringIO(await response.text(), newline="")))
    assert [row["to"] for row in table] == NUMBERS
    assert [row["ref"] for row in table] == ["'=1+1", 'a "b", <&> c', "'@é\U0001f600"]
    assert [row["outcome"] for row in table] == ["sent", "failed", "pending"]
    response = await api.ask("ann", "GET", f"{path}.xlsx")
    book = CalamineWorkbook.from_filelike(io.BytesIO(await response.read()))
    sheet = book.get_sheet_by_index(0).to_python()
    assert tuple(sheet[0]) == COLUMNS
    assert [row[1:4] for row in sheet[1:]] == [
        [NUMBERS[0], "=1+1", "sent"], [NUMBERS[1], 'a "b", <&> c', "failed"],
        [NUMBERS[2], "@é\U0001f600", "pending"],
    ]  # fmt: skip
    response = await api.ask("ann", "GET", f"{path}.ndjson?outcome=failed")
    lines = (await response.text()).splitlines()
    body = await page(api, job, "?outcome=failed")
    assert [line for line in lines if NUMBERS[1] in line] == lines
    assert len(lines) == len(body["data"]) == 1
    head = await api.ask("ann", "HEAD", f"{path}.csv")
    assert (head.status, await head.read()) == (200, b"")


async def test_an_export_is_one_snapshot_while_the_job_goes_on(api: Api) -> None:
    job = await job_of(api, 6000)
    path = f"/api/bulk/jobs/{job}/recipients.csv?outcome=pending"
    what = RecipientFilter(outcomes=["pending"])
    async with api.made.results.snapshot(job, api.ann) as snapshot:
        assert snapshot is not None
        await come_to(api, job, *((n, State.SENT, None) for n in range(3000, 3050)))
        rows = await snapshot.window(3000, 3099, what, 100)
    assert len(rows) == 100
    lines = (await (await api.ask("ann", "GET", path)).text()).splitlines()
    assert len(lines) == 1 + 6000 - 50


async def test_a_client_that_leaves_gives_its_connection_back(
    api: Api, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = await job_of(api, 20_000)
    path = f"/api/bulk/jobs/{job}/recipients"
    token = api.tokens["ann"]
    server = api.client.server
    for suffix in ("csv", "xlsx", "ndjson") * 2:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(
            f"GET {path}.{suffix} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {token}\r\n\r\n".encode()
        )
        assert await reader.read(100)
        writer.transport.abort()

    def is_free() -> bool:
        return api.made.archive.pool_sizes()[0] == 0 and not api.made.exports.locked()

    await eventually(is_free)
    assert "http.failed" not in caplog.text
    response = await api.ask("ann", "GET", f"{path}.csv")
    assert len((await response.text()).splitlines()) == 20_001
