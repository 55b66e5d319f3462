"""What holds for every route: its query, its path, its keys."""

from __future__ import annotations

import re

import pytest
from yarl import URL

from api.app import ROUTES
from api.openapi import OPERATIONS
from tests.integration.desk import Api, problem, session_of

# Meta says what stands in the address of a webhook; a stream passes over what it does not know.
FREE = ("/realtime/", "/webhooks/")


async def test_no_route_takes_a_parameter_that_it_does_not_offer(api: Api) -> None:
    job = (await (await api.send(campaignId="autumn")).json())["jobId"]
    session = await session_of(api, "root")
    own = {
        "job_id": job, "campaign_id": "autumn", "user_id": api.ann, "code": "bad_json",
        "sender_id": f"snd_{'0' * 26}", "upload_id": f"upl_{'0' * 26}",
        "suppression_id": f"sup_{'0' * 26}",
    }  # fmt: skip
    asked = set()
    for route in ROUTES:
        operation = OPERATIONS.get(f"{route.method} {route.path}")
        is_page = route.path in ("/docs", "/openapi.json", "/errors/{code}")
        if (operation is None and not is_page) or route.path.startswith(FREE):
            continue
        path = re.sub(r"\{(\w+)\}", lambda found: own.get(found[1], "x"), route.path)
        kind = "text/csv" if operation is not None and operation.raw else "application/json"
        headers = (
            {**session, "Content-Type": kind}
            if route.has_body or kind != "application/json"
            else session
        )
        data = b"{}" if route.has_body else None
        response = await api.client.request(
            route.method, f"{path}?no_such=1", headers=headers, data=data
        )
        await problem(response, 422, "unknown_parameter")
        asked.add(f"{route.method} {route.path}")
    assert {"POST /api/bulk/send", "GET /openapi.json", "PATCH /api/users/{user_id}"} <= asked


async def test_a_refused_query_is_said_in_a_sentence(api: Api) -> None:
    response = await api.ask("ann", "GET", "/api/bulk/jobs?limit=0")
    assert (await problem(response, 422, "validation_failed"))["detail"] == "limit is 1 to 100"


async def test_a_label_is_found_with_its_colon_escaped(api: Api) -> None:
    assert (await api.send(campaignId="spring:1")).status == 202
    for spelled in ("spring:1", "spring%3A1", "spring%3a1"):
        response = await api.client.get(
            URL(f"/api/bulk/campaigns/{spelled}", encoded=True),
            headers={"Authorization": f"Bearer {api.tokens['ann']}"},
        )
        assert (await response.json())["campaignId"] == "spring:1", spelled


@pytest.mark.parametrize("key", ["", "x" * 256, "\t"])
async def test_a_log_in_looks_at_the_form_of_a_key(api: Api, key: str) -> None:
    login = {"email": "ann@example.com", "password": "wrong"}
    response = await api.client.post("/api/session", json=login, headers={"Idempotency-Key": key})
    await problem(response, 400, "bad_idempotency_key")
