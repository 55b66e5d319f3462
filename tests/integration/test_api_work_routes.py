"""Every route about jobs beyond the first five: nobody is let in whom it does not name."""

from __future__ import annotations

import re
from hashlib import sha256

import pytest

from api.auth import READ, SEND
from api.router import Route
from api.work import ROUTES
from shared.archive import KeyRow
from tests.integration.desk import Api, problem

NAMES = {"job_id": "job_" + "0" * 28, "upload_id": "upl_" + "0" * 26, "campaign_id": "autumn"}
IDS = [f"{route.method} {route.path}" for route in ROUTES]


def path_of(route: Route) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: NAMES[found[1]], route.path)


async def key_with(api: Api, scope: str) -> str:
    key_id, secret = f"{scope:0<10}", "k" * 43
    token = f"drb_{key_id}_{secret}"
    await api.made.archive.add_key(
        KeyRow(
            id=key_id,
            user_id=api.ann,
            name=scope,
            sha256=sha256(token.encode()).digest(),
            scopes=[scope],
            last4="kkkk",
            expires_at_ms=0,
            revoked=False,
            role="user",
            disabled=False,
        )
    )
    return token


@pytest.mark.parametrize("route", ROUTES, ids=IDS)
async def test_a_route_asks_who_is_there_and_for_its_scope(api: Api, route: Route) -> None:
    response = await api.client.request(route.method, path_of(route))
    await problem(response, 401, "unauthenticated")
    assert route.access in {READ, SEND}
    other = "send" if route.access == READ else "read"
    headers = {"Authorization": f"Bearer {await key_with(api, other)}"}
    response = await api.client.request(route.method, path_of(route), headers=headers)
    await problem(response, 403, "scope_missing")


@pytest.mark.parametrize("route", ROUTES, ids=IDS)
async def test_a_route_has_its_methods_and_its_spelling_only(api: Api, route: Route) -> None:
    response = await api.ask("ann", "PUT", path_of(route))
    await problem(response, 405, "method_not_allowed")
    assert route.method in response.headers["Allow"].split(",")
    await problem(await api.ask("ann", route.method, path_of(route) + "/"), 404, "not_found")


@pytest.mark.parametrize("route", [route for route in ROUTES if route.has_body])
async def test_a_body_is_one_json_object(api: Api, route: Route) -> None:
    for raw, status, code in (
        (b"", 400, "empty_body"),
        (b"[]", 422, "not_object"),
        (b"{} {}", 400, "bad_json"),
        (b"\xef\xbb\xbf{}", 400, "bad_encoding"),
        (b"[" * 60_000, 400, "too_deep"),
    ):
        headers = {"Content-Type": "application/json"}
        response = await api.ask("ann", route.method, path_of(route), data=raw, headers=headers)
        await problem(response, status, code)
    headers = {"Content-Type": "text/plain"}
    response = await api.ask("ann", route.method, path_of(route), data=b"{}", headers=headers)
    await problem(response, 415, "unsupported_media_type")


async def test_switched_off_nothing_is_retried_and_preflight_says_so(api: Api) -> None:
    job = (await (await api.send()).json())["jobId"]
    await api.made.queue.switch(0, "elsewhere", 60_000)
    api.made.switch._at = float("-inf")
    response = await api.ask("ann", "POST", f"/api/bulk/jobs/{job}/retry", json={})
    await problem(response, 503, "bulk_disabled")
    body = {"recipients": ["+15550000001"], "message": {"kind": "text", "text": {"body": "x"}}}
    told = await (await api.ask("ann", "POST", "/api/bulk/preflight", json=body)).json()
    assert (told["ok"], told["problems"][0]["code"]) == (False, "bulk_disabled")
    table = await api.ask("ann", "GET", f"/api/bulk/jobs/{job}/recipients")
    assert table.status == 200
    patched = await api.ask("ann", "PATCH", f"/api/bulk/jobs/{job}", json={"name": "x"})
    assert patched.status == 200
    await api.made.queue.switch(0, "elsewhere", 0)
