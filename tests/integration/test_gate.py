"""The gate that every request passes: in which order, what each answer carries, who is let by."""

from __future__ import annotations

import io
from contextlib import AsyncExitStack
from typing import Any

import pytest

from api.guard import SECURITY_HEADERS
from api.web.pages import path_of
from shared.ids import Ids
from shared.settings import Settings
from tests.conftest import replaced
from tests.integration.desk import NUMBERS, PASSWORD, TEXT, opened, problem, session_of
from tests.integration.test_raw_http import HOST, told

HSTS = "Strict-Transport-Security"
JSON = {"Content-Type": "application/json"}


async def test_one_answer_for_one_fault_in_the_order_that_is_promised(settings: Settings) -> None:
    small = replaced(settings, body_max_bytes=20_000)
    async with AsyncExitStack() as stack:
        api = await opened(small, stack)
        session = await session_of(api, "ann")
        wish = {"name": "k", "scopes": ["read"]}
        async with api.client.post("/api/keys", json=wish, headers=session) as response:
            reader = {"Authorization": f"Bearer {(await response.json())['key']}"}
        nobody, ann = {"Authorization": "x"}, {"Authorization": f"Bearer {api.tokens['ann']}"}
        plain, host = {"Content-Type": "text/plain"}, {"Host": "evil.example"}
        site = {"Sec-Fetch-Site": "cross-site"}
        large, deep, wrong = b" " * 20_001, b"[" * 9000, b'{"message":1}'
        path = "/api/bulk/send"
        # Each is wrong in every way that the next ones still are, and in one more.
        for method, address, headers, body, code in (
            ("PUT", "/nothing", {**nobody, **plain, **host}, large, "wrong_host"),
            ("PUT", "/nothing", {**nobody, **plain}, large, "not_found"),
            ("PUT", path, {**nobody, **plain}, large, "method_not_allowed"),
            ("POST", path, {**nobody, **plain, **site}, large, "unauthenticated"),
            ("POST", "/api/users", {**session, **plain, **site}, large, "csrf"),
            ("POST", "/api/users", {**session, **plain}, large, "forbidden"),
            ("POST", path, {**reader, **plain}, large, "scope_missing"),
            ("POST", path, {**ann, **plain}, large, "unsupported_media_type"),
            ("POST", path, {**ann, **JSON}, large, "body_too_large"),
            ("POST", path, {**ann, **JSON}, deep, "bulk_disabled"),
            ("POST", path, {**ann, **JSON}, deep, "too_deep"),
            ("POST", path, {**ann, **JSON}, wrong, "validation_failed"),
        ):
            is_off = code not in {"too_deep", "validation_failed"}
            await api.made.queue.switch(0, "another process", 60_000 if is_off else 0)
            api.made.switch.forget()
            async with api.client.request(
                method, address, data=io.BytesIO(body), headers=headers
            ) as response:
                assert (await response.json(content_type=None))["code"] == code
        api.made.is_draining = True
        await problem(await api.client.get("/api/bulk/jobs", headers=nobody), 503, "draining")
        await problem(await api.client.put("/api/bulk/jobs"), 405, "method_not_allowed")
        await api.made.queue.visitors.flushall()


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://drumbeat.example"])
async def test_every_answer_carries_the_headers_that_protect_a_browser(
    settings: Settings, origin: str
) -> None:
    is_safe = origin.startswith("https")
    loose = replaced(settings, public_url=origin, bulk_submits_per_hour_ip=0)
    async with AsyncExitStack() as stack:
        api = await opened(loose, stack)
        job = (await (await api.send()).json())["jobId"]
        wanted = {**SECURITY_HEADERS, **({HSTS: "max-age=31536000"} if is_safe else {})}

        def check(headers: Any, what: str) -> None:
            assert {name: headers.get(name) for name in wanted} == wanted, what
            assert (HSTS in headers) == is_safe, what
            assert "Server" not in headers, what
            assert headers.get("Cache-Control", "").startswith(
                "public" if what == path_of("app.css") else "no-store"
            ), what

        for who, method, path, status in (
            ("ann", "GET", "/api/bulk/jobs", 200), ("ann", "HEAD", "/api/bulk/jobs", 200),
            ("ann", "GET", f"/realtime/bulk/{job}", 200), ("ann", "GET", "/docs", 200),
            ("ann", "GET", f"/api/bulk/jobs/{job}/recipients.csv", 200),
            ("ann", "GET", "/", 200), ("ann", "GET", path_of("app.css"), 200),
            ("ann", "GET", "/nothing", 404), ("ann", "PUT", "/api/bulk/jobs", 405),
            ("ann", "GET", "/api/users", 403), ("ann", "GET", "/livez", 200),
            ("ann", "POST", "/api/bulk/send", 415), ("ann", "GET", "/errors/bad_json", 200),
        ):  # fmt: skip
            async with await api.ask(who, method, path) as response:
                assert response.status == status, path
                check(response.headers, path)
        # What the parser refuses never comes to the gate.
        raw = await told(api, b"GET /livez HTTP/1.1\r\n" + HOST + b"X-A : b\r\n\r\n")
        lines = raw.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        check(dict(line.split(": ", 1) for line in lines[1:]), "a raw fault")
        login = {"email": "ann@example.com", "password": PASSWORD}
        response = await api.client.post("/api/session", json=login)
        cookie = response.headers["Set-Cookie"]
        assert ("Secure" in cookie, cookie.startswith("__Host-drumbeat=")) == (is_safe, is_safe)
        assert "Domain" not in cookie
        assert "Path=/" in cookie


CROSS: list[tuple[dict[str, str], bool]] = [
    ({}, True),  # not a browser
    ({"Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Sec-Fetch-Site": "same-site"}, False),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:3000"}, False),
    ({"Sec-Fetch-Site": "SAME-ORIGIN"}, False),
    ({"Origin": "http://localhost:3000"}, True),
    ({"Origin": "null"}, False),
    ({"Origin": ""}, False),
    ({"Origin": "http://localhost:3001"}, False),
    ({"Origin": "https://localhost:3000"}, False),
    ({"Origin": "http://localhost:3000.evil.example"}, False),
    ({"Origin": "http://evil.example", "Referer": "http://localhost:3000/"}, False),
    ({"Referer": "http://localhost:3000/jobs/x"}, True),
    ({"Referer": "http://localhost:3000"}, True),
    ({"Referer": "http://localhost:3000.evil.example/"}, False),
    ({"Referer": "http://localhost:3000@evil.example/"}, False),
    ({"Referer": "http://evil.example/http://localhost:3000/"}, False),
]


async def test_a_cookie_from_another_sites_page_does_nothing(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        api = await opened(replaced(settings, public_url="http://localhost:3000"), stack)
        cookie = await session_of(api, "ann")
        path = f"/api/bulk/jobs/{Ids().job_id(0)}/pause"
        bearer = {"Authorization": f"Bearer {api.tokens['ann']}"}
        for headers, is_ours in CROSS:
            for method, known in (("POST", path), ("DELETE", "/api/keys/key_x")):
                response = await api.client.request(method, known, headers={**cookie, **headers})
                said = (await response.json(content_type=None))["code"]
                assert said == ("not_found" if is_ours else "csrf"), (method, headers)
            # Reading is no act, and a page elsewhere has no key.
            assert (await api.client.get("/api/session", headers={**cookie, **headers})).ok
            both = {**cookie, **bearer, **headers}
            await problem(await api.client.post(path, headers=both), 404, "not_found")


@pytest.mark.parametrize("proxies", [(), ("127.0.0.0/8",)])
async def test_made_up_addresses_do_not_buy_an_eleventh_submission(
    settings: Settings, proxies: tuple[str, ...]
) -> None:
    async with AsyncExitStack() as stack:
        api = await opened(replaced(settings, trusted_proxies=proxies), stack)
        body = {"recipients": NUMBERS, "message": TEXT}
        # Behind a proxy what it saw itself is appended to what the client made up.
        own = ", 203.0.113.9" if proxies else ""
        statuses = []
        for turn in range(13):
            hops = {"X-Forwarded-For": f"198.51.100.{turn}, 2001:db8::{turn}{own}"}
            statuses.append((await api.ask("ann", "POST", "/api/bulk/send", json=body,
                                           headers=hops)).status)  # fmt: skip
        assert statuses == [202] * 10 + [429] * 3
        other = {"X-Forwarded-For": "203.0.113.10"}
        response = await api.ask("ann", "POST", "/api/bulk/send", json=body, headers=other)
        assert response.status == (202 if proxies else 429)
        await api.made.queue.visitors.flushall()
