"""Uploads: read in a child process, counted, mapped, sent from, forgotten."""

from __future__ import annotations

import asyncio
import csv
import io
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from api.roster import Kept
from api.spreadsheet import Spreadsheet
from shared.settings import Settings
from tests.integration.desk import Api, opened, problem

CSV = "text/csv"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
PEOPLE = (
    "Phone;First name;ref;City\r\n"
    "+15550000001;Ann;crm-1;Rome\r\n"
    "\r\n"
    "15550000002;Bo;crm-2;\r\n"
    "+15550000001;Twice;;\r\n"
    "+15550000003;Cy;;Bonn\r\n"
)
HI = {"kind": "text", "text": {"body": "Hi {{first_name}}"}}


async def put(api: Api, raw: bytes | str, who: str = "ann", kind: str = CSV, **rest: Any) -> Any:
    query = rest.pop("query", "")
    headers = {"Content-Type": kind, **rest.pop("headers", {})}
    data = raw.encode() if isinstance(raw, str) else raw
    return await api.ask(
        who, "POST", f"/api/bulk/uploads{query}", data=io.BytesIO(data), headers=headers
    )


async def kept(api: Api, raw: bytes | str = PEOPLE, **rest: Any) -> dict[str, Any]:
    response = await put(api, raw, **rest)
    body = await response.json()
    assert response.status == 201, body
    assert response.headers["Location"] == f"/api/bulk/uploads/{body['id']}"
    return dict(body)


async def send(api: Api, upload: str, who: str = "ann", **fields: Any) -> Any:
    return await api.send(who, **{"recipients": ..., "upload_id": upload, "message": HI, **fields})


async def test_a_file_is_read_counted_and_shown(api: Api) -> None:
    body = await kept(api, query="?filename=people.csv")
    assert body["columns"] == [
        {"name": "Phone", "guess": "to"}, {"name": "First name", "guess": None},
        {"name": "ref", "guess": "ref"}, {"name": "City", "guess": None},
    ]  # fmt: skip
    counts = [body[name] for name in ("rows", "valid", "invalid", "duplicates", "changed")]
    assert counts == [4, 2, 1, 1, 0]
    assert body["problems"] == [
        {
            "pointer": "/rows/4",
            "row": 4,
            "code": "no_country_code",
            "detail": "no leading +, no default_region",
        }
    ]
    assert (body["filename"], body["format"], body["phone_column"]) == (
        "people.csv",
        "csv",
        "Phone",
    )
    path = f"/api/bulk/uploads/{body['id']}"
    assert await (await api.ask("ann", "GET", path)).json() == body
    response = await api.ask("ann", "PATCH", path, json={"default_region": "US"})
    changed = await response.json()
    assert (changed["valid"], changed["changed"], changed["problems"]) == (3, 1, [])
    response = await api.ask("ann", "PATCH", path, json={"phone_column": "City"})
    assert (await response.json())["invalid"] == 4
    response = await api.ask("ann", "GET", f"{path}/problems.csv")
    table = list(csv.DictReader(io.StringIO(await response.text(), newline="")))
    assert [row["row"] for row in table] == ["2", "4", "5", "6"]
    assert "15550000002" not in str(table)
    assert (await api.ask("ann", "DELETE", path)).status == 204
    await problem(await api.ask("ann", "GET", path), 404, "not_found")
    await problem(await api.ask("ann", "DELETE", path), 404, "not_found")


async def test_a_job_takes_its_recipients_from_an_upload(api: Api) -> None:
    upload = (await kept(api))["id"]
    refused = await problem(await send(api, upload), 422, "invalid_recipients")
    assert refused["errors"][0]["row"] == 4
    response = await send(api, upload, on_invalid="skip")
    body = await response.json()
    assert response.status == 202, body
    assert body["intake"]["submitted"] == 4
    chunks = await api.made.archive.recipients(body["jobId"])
    found = msgspec.msgpack.decode(chunks[0], type=Kept)
    assert found == Kept([15550000001, 15550000003], [["Ann"], ["Cy"]], ["crm-1", None])
    columns = {"ref": "City", "vars": {"first_name": "ref"}}
    response = await send(api, upload, on_invalid="skip", columns=columns, default_region="US")
    body = await response.json()
    chunks = await api.made.archive.recipients(body["jobId"])
    found = msgspec.msgpack.decode(chunks[0], type=Kept)
    assert found.values == [["crm-1"], ["crm-2"], [""]]
    assert found.refs == ["Rome", None, "Bonn"]
    look = {"upload_id": upload, "message": HI, "default_region": "US"}
    response = await api.ask("ann", "POST", "/api/bulk/preflight", json=look)
    body = await response.json()
    assert (body["ok"], body["preview"][0]) == (True, {"row": 2, "text": "Hi Ann"})


async def test_an_export_is_an_upload(api: Api) -> None:
    job = (await (await api.send()).json())["jobId"]
    for suffix, kind in (("csv", CSV), ("ndjson", "application/x-ndjson"), ("xlsx", XLSX)):
        response = await api.ask("ann", "GET", f"/api/bulk/jobs/{job}/recipients.{suffix}")
        body = await kept(api, await response.read(), kind=kind)
        assert (body["valid"], body["invalid"], body["phone_column"]) == (3, 0, "to"), suffix


async def test_a_foreign_upload_is_absent(api: Api) -> None:
    upload = (await kept(api))["id"]
    path = f"/api/bulk/uploads/{upload}"
    routes: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("GET", "", {}),
        ("GET", "/problems.csv", {}),
        ("DELETE", "", {}),
        ("PATCH", "", {"json": {}}),
    )
    for method, tail, rest in routes:
        for where in (path, "/api/bulk/uploads/x", "/api/bulk/uploads/upl_" + "0" * 26):
            response = await api.ask("ben", method, where + tail, **rest)
            await problem(response, 404, "not_found")
    await problem(await send(api, upload, "ben"), 422, "upload_gone")
    assert (await api.ask("root", "GET", path)).status == 200
    assert (await api.ask("ann", "GET", path)).status == 200


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"upload_id": "x"}, "upload_gone", "/upload_id"),
        ({"upload_id": 1}, "validation_failed", "/upload_id"),
        ({"recipients": ["+15550000001"]}, "validation_failed", "/recipients"),
        ({"columns": {"to": "Nope"}}, "validation_failed", "/columns/to"),
        ({"columns": {"vars": {"first_name": "Nope"}}}, "validation_failed",
         "/columns/vars/first_name"),
        ({"columns": {"x": 1}}, "unknown_field", "/columns/x"),
        ({"columns": []}, "validation_failed", "/columns"),
        ({"message": {"kind": "text", "text": {"body": "{{town}}"}}}, "validation_failed",
         "/columns/vars/town"),
    ],
)  # fmt: skip
async def test_a_submission_from_an_upload_is_refused(
    api: Api, fields: dict[str, Any], code: str, pointer: str
) -> None:
    upload = (await kept(api))["id"]
    body = await problem(await send(api, upload, **fields), 422, code)
    assert body["errors"][0]["pointer"] == pointer
    response = await api.send(columns={"to": "Phone"})
    await problem(response, 422, "validation_failed")


@pytest.mark.parametrize(
    ("raw", "kind", "query", "status", "code"),
    [
        (b"", CSV, "", 400, "empty_body"),
        (b"\0\1", CSV, "", 422, "unreadable_file"),
        (b"\n", CSV, "", 422, "unreadable_file"),
        (b"x", XLSX, "", 422, "unreadable_file"),
        (b"Phone\n", "text/plain", "", 415, "unsupported_media_type"),
        (b"Phone\n", "multipart/form-data; boundary=x", "", 415, "unsupported_media_type"),
        (b"{}", "application/json", "", 415, "unsupported_media_type"),
        (b"Phone\n", "", "", 415, "unsupported_media_type"),
        (b"Phone\nx\n", CSV, "?phone_column=Nope", 422, "validation_failed"),
        (b"Phone\nx\n", CSV, "?default_region=XX", 422, "validation_failed"),
        (b"Phone\nx\n", CSV, "?filename=%00", 422, "validation_failed"),
        (b"Phone\nx\n", CSV, "?filename=" + "x" * 256, 422, "validation_failed"),
        (b"Phone\nx\n", CSV, "?a=b", 422, "unknown_parameter"),
        (b"Phone\n" + b"+15550000001\n" * 50_001, CSV, "", 422, "too_many_recipients"),
    ],
    ids=range(14),
)
async def test_a_file_is_refused(
    api: Api, raw: bytes, kind: str, query: str, status: int, code: str
) -> None:
    await problem(await put(api, raw, kind=kind, query=query), status, code)
    pool = api.made.archive._pool
    assert await pool.fetchval("SELECT count(*) FROM uploads") == 0


async def test_sizes_encodings_and_a_patch_are_checked(settings: Settings) -> None:
    small = msgspec.structs.replace(settings, upload_max_bytes=2000)
    async with AsyncExitStack() as stack:
        api = await opened(small, stack)
        await problem(await put(api, b"x" * 2001), 413, "body_too_large")
        response = await put(api, PEOPLE, headers={"Content-Encoding": "gzip"})
        await problem(response, 415, "encoding_unsupported")
        path = f"/api/bulk/uploads/{(await kept(api))['id']}"
        for fields, code in (
            ({"phone_column": "Nope"}, "validation_failed"),
            ({"phone_column": None}, "validation_failed"),
            ({"default_region": "XX"}, "validation_failed"),
            ({"default_region": 1}, "validation_failed"),
            ({"owner": "x"}, "unknown_field"),
            ({"phone_column": "\u0000"}, "control_char"),
        ):
            await problem(await api.ask("ann", "PATCH", path, json=fields), 422, code)
        assert (await (await api.ask("ann", "GET", path)).json())["phone_column"] == "Phone"
        await api.made.queue.visitors.flushall()


async def test_a_key_gives_the_same_upload_and_refuses_another_file(api: Api) -> None:
    key = {"Idempotency-Key": "file-1"}
    both = await asyncio.gather(*(put(api, PEOPLE, headers=key) for _ in range(3)))
    bodies = [await one.json() for one in both]
    assert {one.status for one in both} == {201}
    assert len({body["id"] for body in bodies}) == 1
    assert sum("Idempotent-Replayed" in one.headers for one in both) == 2
    await problem(await put(api, "Phone\nx\n", headers=key), 422, "idempotency_mismatch")


async def test_uploads_are_few_and_end(api: Api) -> None:
    for _ in range(20):
        last = (await kept(api, "Phone\n+15550000001\n"))["id"]
    await problem(await put(api, PEOPLE), 429, "rate_limited")
    assert (await put(api, PEOPLE, "ben")).status == 201
    pool = api.made.archive._pool
    await pool.execute("UPDATE uploads SET expires_ms = 1")
    await problem(await api.ask("ann", "GET", f"/api/bulk/uploads/{last}"), 404, "not_found")
    await problem(await send(api, last), 422, "upload_gone")
    await kept(api)
    assert await pool.fetchval("SELECT count(*) FROM uploads") == 1


async def test_switched_off_no_file_is_taken(api: Api) -> None:
    upload = (await kept(api))["id"]
    await api.made.queue.switch(0, "elsewhere", 60_000)
    api.made.switch._at = float("-inf")
    response = await put(api, PEOPLE)
    await problem(response, 503, "bulk_disabled")
    assert "Retry-After" in response.headers
    assert (await api.ask("ann", "GET", f"/api/bulk/uploads/{upload}")).status == 200
    await api.made.queue.switch(0, "elsewhere", 0)


async def test_fifty_thousand_rows_do_not_stall_the_loop(api: Api) -> None:
    sheet = Spreadsheet()
    raw = sheet.add([["Phone", "First name"], *([f"+49151{n:08d}", "Ann"] for n in range(50_000))])
    raw += sheet.end()
    loop, late, is_over = asyncio.get_running_loop(), [0.0], False

    async def watch() -> None:
        while not is_over:
            before = loop.time()
            await asyncio.sleep(0.005)
            late.append(loop.time() - before - 0.005)

    watching = asyncio.create_task(watch())
    upload = await kept(api, raw, kind=XLSX)
    response = await send(api, upload["id"])
    is_over = True
    await watching
    assert (upload["valid"], response.status) == (50_000, 202)
    # The goal is 50 ms on an idle machine; this client shares the loop, and the machine is busy.
    assert max(late) < 1, max(late)
