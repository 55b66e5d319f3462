"""Rows of the bad-input corpus (reliability.md 8) that no other test looks at, by their number."""

from __future__ import annotations

import asyncio
import io
import json
import time
import unicodedata
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from aiohttp import ClientResponse

from api.passwords import hash_password
from api.wire import SendRequest, decode
from shared.errors import MalformedError
from shared.ids import Ids
from shared.settings import Settings
from tests.conftest import replaced
from tests.integration.desk import NUMBERS, PASSWORD, TEXT, Api, opened, problem
from tests.integration.test_raw_http import HOST, bearer, post, told

JSON = {"Content-Type": "application/json"}
ODD_TEXTS = [
    "a\r\nb\tc", "\U0001f468\u200d\U0001f469\u200d\U0001f467 family", "\u202egnp.exe",
    "<script>alert(1)</script>", "{{1}} ${jndi:ldap://x/a}", "'; DROP TABLE bulk_jobs; --",
    "e\u0301" * 2048, "\U0001f600" * 4096,
]  # fmt: skip
SAMPLES: list[tuple[str, Any]] = [
    ("null", None), ("bool", True), ("number", 7), ("string", "x y"), ("array", [[]]),
    ("object", {"no": 1}),
]  # fmt: skip
# What each field takes of them; the rest must be refused.
FITS = {
    "recipients": set(), "message": set(), "upload_id": {"null", "string"}, "columns": {"null"},
    "recipients_from": {"null"}, "metadata": set(), "userId": {"null"}, "campaignId": {"null"},
    "name": {"null", "string"}, "sender": {"null"}, "rate": {"null", "number"}, "priority": set(),
    "scheduled_at": {"null"}, "expires_at": {"null"}, "timezone": {"null"}, "on_invalid": set(),
    "on_unknown": {"null"}, "default_region": {"null"},
}  # fmt: skip
# Strings of the right type and of no sense are refused by the code of what they are.
CODES = {"scheduled_at": "bad_time", "expires_at": "bad_time", "timezone": "bad_time",
         "sender": "no_sender"}  # fmt: skip


async def raw_send(api: Api, body: bytes) -> ClientResponse:
    return await api.ask("ann", "POST", "/api/bulk/send", data=io.BytesIO(body), headers=JSON)


async def nothing_stored(api: Api) -> bool:
    listed = await (await api.ask("root", "GET", "/api/bulk/jobs")).json()
    return listed["data"] == []


@pytest.mark.parametrize("depth", [1000, 100_000, 1_000_000])
async def test_row_7_depth_is_refused_at_once(api: Api, depth: int) -> None:
    for body in (b"[" * depth, b'{"a":' * depth, b'{"metadata":' + b"[" * depth):
        await problem(await raw_send(api, body), 400, "too_deep")
        # Of this thread's processor, the best of three: neither how long the bytes are on their way
        # nor a collection of all the tests before it is the decoder's.
        took = []
        for _ in range(3):
            began = time.thread_time()
            with pytest.raises(MalformedError):
                decode(body, SendRequest)
            took.append(time.thread_time() - began)
        assert min(took) < 0.05


async def test_row_8_nobody_sets_what_is_ours(api: Api) -> None:
    for name in ("status", "state", "sent", "owner", "id", "__proto__", "constructor"):
        body = await problem(await api.send(**{name: 1}), 422, "unknown_field")
        assert body["errors"][0]["pointer"] == f"/{name}"
    assert await nothing_stored(api)


def test_row_9_names_every_field() -> None:
    assert {f.encode_name for f in msgspec.structs.fields(SendRequest)} == set(FITS)


async def test_row_9_each_field_with_each_type_of_json(api: Api) -> None:
    for name, fits in FITS.items():
        for kind, value in SAMPLES:
            if kind in fits or (name == "recipients" and kind == "array"):
                continue
            fields = {name: value}
            response = await api.send(**fields)
            said = await response.json(content_type=None)
            assert response.status == 422, (name, kind, said)
            codes = {"validation_failed", "unknown_field"}
            assert said["code"] in codes | ({CODES.get(name, "")} if kind == "string" else set())
            assert said["errors"][0]["pointer"].startswith(f"/{name}"), (name, kind, said)
    assert await nothing_stored(api)


async def test_rows_14_to_16_sizes_are_exact_and_an_endless_body_ends(settings: Settings) -> None:
    limit = 200_000
    async with AsyncExitStack() as stack:
        small = replaced(settings, body_max_bytes=limit, bulk_submits_per_hour_ip=0)
        api = await opened(small, stack)
        good = json.dumps({"recipients": NUMBERS, "message": TEXT}).encode()
        for size, status in ((limit - 1, 202), (limit, 202), (limit + 1, 413)):
            response = await raw_send(api, good + b" " * (size - len(good)))
            assert response.status == status, (size, await response.text())
        auth = b"Authorization: " + bearer(api).encode()
        kind = b"Content-Type: application/json"
        answer = await told(api, post(auth, kind, b"Content-Length: 10000000000"))
        assert answer.split(b" ", 2)[1] == b"413"
        assert b"body_too_large" in answer
        chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
        server = api.client.server
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(post(auth, kind, b"Transfer-Encoding: chunked"))

        async def pour() -> None:
            while True:
                writer.write(chunk)
                await writer.drain()

        pouring = asyncio.create_task(pour())
        async with asyncio.timeout(10):
            first = await reader.readline()
        assert b" 413 " in first
        # It is closed: whoever goes on pouring is told so.
        async with asyncio.timeout(10):
            await asyncio.wait([pouring])
        assert isinstance(pouring.exception(), ConnectionError)
        writer.close()


@pytest.mark.parametrize("text", [
    "+15550000001\n", " +15550000001", "\u00a0+15550000001", "+1555\u200b0000001",
    "\u200f+15550000001", "+1 (555) 000-0001", "tel:+15550000001", "5550000001",
])  # fmt: skip
async def test_rows_18_and_19_a_region_makes_a_number_of_it(api: Api, text: str) -> None:
    await problem(await api.send(recipients=[text]), 422, "invalid_recipients")
    response = await api.send(recipients=[text], default_region="US")
    body = await response.json()
    assert response.status == 202, body
    assert (body["intake"]["changed"], body["intake"]["problems"]) == (1, [])
    chunks = await api.made.archive.recipients(body["jobId"])
    assert msgspec.msgpack.decode(chunks[0])[0] == [15550000001]


async def test_row_19_a_letter_is_never_a_digit(api: Api) -> None:
    for text in ("+1-800-FLOWERS", "whatsapp:+15550000001"):
        response = await api.send(recipients=[text], default_region="US")
        body = await problem(response, 422, "invalid_recipients")
        assert text not in json.dumps(body)


async def test_rows_20_and_22_one_number_many_times_and_one_bad_among_many(api: Api) -> None:
    response = await api.send(recipients=["+15550000001"] * 50_000)
    intake = (await response.json())["intake"]
    assert (response.status, intake["accepted"], intake["duplicates"]) == (202, 1, 49_999)
    rows = [f"+49151{n:09d}" for n in range(50_000)]
    rows[31_415] = "nobody"
    body = await problem(await api.send(recipients=rows), 422, "invalid_recipients")
    assert (body["errors_total"], body["errors"][0]["row"]) == (1, 31_415)
    assert body["errors"][0]["pointer"] == "/recipients/31415"
    listed = await (await api.ask("ann", "GET", "/api/bulk/jobs")).json()
    assert len(listed["data"]) == 1
    response = await api.send(recipients=rows, on_invalid="skip")
    intake = (await response.json())["intake"]
    assert (response.status, intake["accepted"], intake["invalid"]) == (202, 49_999, 1)
    assert intake["problems"][0]["row"] == 31_415


async def test_row_23_a_value_is_not_repeated(api: Api) -> None:
    for value in ("SECRET-VALUE" * 80_000, "+1555SECRET-VALUE", "SECRET-VALUE\u0000"):
        response = await api.send(recipients=[value])
        assert "SECRET-VALUE" not in json.dumps(await problem(response, 422, "invalid_recipients"))
    for fields in ({"userId": "SECRET-VALUE"}, {"timezone": "SECRET-VALUE"},
                   {"sender": "SECRET-VALUE"}, {"priority": "SECRET-VALUE"},
                   {"campaignId": "SECRET-VALUE!"}, {"scheduled_at": "SECRET-VALUE"}):  # fmt: skip
        response = await api.send(**fields)
        assert response.status == 422
        assert "SECRET-VALUE" not in await response.text(), fields


async def test_rows_26_and_27_an_odd_text_is_kept_as_it_is(api: Api) -> None:
    for text in ODD_TEXTS:
        message = {"kind": "text", "text": {"body": text, "preview_url": False}}
        response = await api.send(message=message)
        body = await response.json()
        assert response.status == 202, (text[:20], body)
        stored = await api.made.archive._pool.fetchval(
            "SELECT message FROM bulk_jobs WHERE id = $1", body["jobId"]
        )
        assert json.loads(stored)["text"]["body"] == text
    over = {"kind": "text", "text": {"body": "\U0001f600" * 4097}}
    await problem(await api.send(message=over), 422, "validation_failed")


async def test_row_34_a_label_of_somebody_else_opens_nothing(api: Api) -> None:
    theirs = (await (await api.send("ben", campaignId="spring")).json())["jobId"]
    response = await api.send("ann", campaignId="spring")
    assert response.status == 202
    own = (await response.json())["jobId"]
    await problem(await api.ask("ann", "GET", f"/api/bulk/jobs/{theirs}"), 404, "not_found")
    listed = await (await api.ask("ann", "GET", "/api/bulk/jobs?campaignId=spring")).json()
    assert [job["jobId"] for job in listed["data"]] == [own]


async def test_rows_36_and_37_types_and_encodings_by_the_header_alone(api: Api) -> None:
    for kind in ("multipart/form-data; boundary=x", "text/json", "application/json, text/plain"):
        response = await api.ask("ann", "POST", "/api/bulk/send", data=b"{}",
                                 headers={"Content-Type": kind})  # fmt: skip
        await problem(response, 415, "unsupported_media_type")
    auth = b"Authorization: " + bearer(api).encode()
    answer = await told(api, post(auth, b"Content-Length: 2", b"Connection: close", body=b"{}"))
    assert b" 415 " in answer[:20]


async def test_row_40_the_eleventh_of_a_user_waits_where_that_is_set(settings: Settings) -> None:
    changes = {"bulk_submits_per_hour_ip": 0, "bulk_submits_per_hour_user": 2}
    async with AsyncExitStack() as stack:
        api = await opened(replaced(settings, **changes), stack)
        for _ in range(2):
            assert (await api.send()).status == 202
        body = await problem(await api.send(), 429, "rate_limited")
        assert body["violated-policies"] == ["submit-user"]
        assert (await api.send("ben")).status == 202
        await api.made.queue.visitors.flushall()


async def test_row_42_other_methods_are_not_those_of_a_job(api: Api) -> None:
    job = (await (await api.send()).json())["jobId"]
    for method in ("PUT", "DELETE", "TRACE", "OPTIONS", "QUERY"):
        response = await api.ask("ann", method, f"/api/bulk/jobs/{job}")
        await problem(response, 405, "method_not_allowed")
        assert set(response.headers["Allow"].split(",")) == {"GET", "HEAD", "PATCH"}


async def test_row_48_events_are_never_encoded(api: Api) -> None:
    job = (await (await api.send()).json())["jobId"]
    response = await api.ask(
        "ann", "GET", f"/realtime/bulk/{job}", headers={"Accept-Encoding": "gzip, br"}
    )
    assert "Content-Encoding" not in response.headers
    assert (await response.content.readline()).startswith(b"retry:")
    response.close()


async def test_row_54_a_final_job_is_not_paused_and_a_cancelled_one_stays_so(api: Api) -> None:
    job = (await (await api.send()).json())["jobId"]
    path = f"/api/bulk/jobs/{job}"
    for _ in range(2):
        assert (await api.ask("ann", "POST", f"{path}/cancel")).status == 200
    for verb in ("pause", "resume"):
        response = await api.ask("ann", "POST", f"{path}/{verb}")
        body = await problem(response, 409, "state_conflict")
        assert body["state"] in {"cancelling", "cancelled"}


async def log_in(api: Api, **fields: Any) -> ClientResponse:
    response = await api.client.post("/api/session", json=fields)
    api.client.session.cookie_jar.clear()
    return response


async def test_rows_58_and_59_a_log_in_that_is_none(api: Api) -> None:
    for fields in ({}, {"email": "", "password": "x"}, {"email": "ann@example.com", "password": ""},
                   {"email": "ann@example.com", "password": "x" * 1_000_000},
                   {"email": "ann@example.com", "password": ["x"]},
                   {"email": ["ann@example.com"], "password": "x"}):  # fmt: skip
        response = await log_in(api, **fields)
        assert response.status in {413, 422}, fields.keys()
    nul = await log_in(api, email="ann@example.com", password="x\u0000")  # noqa: S106 - no password
    await problem(nul, 422, "control_char")
    for email in ("ann@example.com' OR '1'='1", "ann@example.com'--"):
        await problem(await log_in(api, email=email, password=PASSWORD), 401, "bad_credentials")


async def test_row_58_composed_and_decomposed_are_one_password(api: Api) -> None:
    composed = unicodedata.normalize("NFC", "cafe\u0301 au lait bien chaud")
    hashed = await hash_password(composed)
    await api.made.archive.add_user(str(Ids().user_id()), "zoe@example.com", hashed, "user")
    for form in ("NFC", "NFD"):
        password = unicodedata.normalize(form, composed)
        assert (await log_in(api, email="zoe@example.com", password=password)).status == 200


async def test_row_58_who_tries_many_names_is_held(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        api = await opened(settings, stack)
        codes = []
        for turn in range(settings.login_failures_ip + 5):
            response = await log_in(api, email=f"nobody{turn}@example.com", password=PASSWORD)
            codes.append((await response.json(content_type=None))["code"])
        assert codes[: settings.login_failures_ip] == ["bad_credentials"] * (
            settings.login_failures_ip
        )
        assert set(codes[settings.login_failures_ip :]) == {"login_throttled"}
        await api.made.queue.visitors.flushall()


async def test_row_59_known_and_unknown_take_as_long_and_hear_the_same(
    settings: Settings,
) -> None:
    loose = replaced(settings, login_failures=1000, login_failures_ip=1000)
    async with AsyncExitStack() as stack:
        api = await opened(loose, stack)
        loop, said, ratio = asyncio.get_running_loop(), set(), 0.0
        best = dict.fromkeys(("ann@example.com", "nobody@example.com"), 1e9)
        for turn in range(80):
            for email in best:
                began = loop.time()
                response = await log_in(api, email=email, password="not this one")  # noqa: S106
                best[email] = min(best[email], loop.time() - began)
                assert response.status == 401
                said.add((await response.json(content_type=None))["detail"])
            # The quickest of each, in turns: what a busy machine adds says nothing of us.
            known, unknown = best.values()
            ratio = known / unknown
            if turn >= 20 and 1 / 1.2 < ratio < 1.2:
                break
        assert len(said) == 1
        assert 1 / 1.2 < ratio < 1.2
        await api.made.queue.visitors.flushall()


async def test_row_65_chunk_extensions_are_read_over_or_refused(api: Api) -> None:
    good = json.dumps({"recipients": NUMBERS, "message": TEXT}).encode()
    auth = b"Authorization: " + bearer(api).encode()
    body = b"%x;a=b\r\n" % len(good) + good + b"\r\n0;c\r\n\r\n"
    heads = (auth, b"Content-Type: application/json", b"Transfer-Encoding: chunked",
             b"Connection: close")  # fmt: skip
    answer = await told(api, post(*heads, body=body))
    assert answer.split(b" ", 2)[1] in {b"202", b"400"}
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_row_67_ten_thousand_parameters_are_no_request(api: Api) -> None:
    many = "&".join(f"a{n}=" for n in range(10_000)).encode()
    line = b"GET /api/bulk/jobs?" + many + b" HTTP/1.1\r\n" + HOST
    answer = await told(api, line + b"Authorization: " + bearer(api).encode() + b"\r\n\r\n")
    assert answer.split(b" ", 2)[1] == b"400"
    assert b"a9999" not in answer
