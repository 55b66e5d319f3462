"""The documentation as it is served: offline, in step with what the routes really take."""

from __future__ import annotations

import re
import time

from api.app import ROUTES
from api.openapi import OPERATIONS
from tests.integration.desk import Api, problem, session_of


async def test_documents_and_pages_are_there_for_anybody(api: Api) -> None:
    for path, kind in (
        ("/openapi.json", "application/json"),
        ("/docs", "text/html"),
        ("/errors/bad_time", "text/html"),
    ):
        response = await api.client.get(path)
        text = await response.text()
        assert (response.status, response.content_type) == (200, kind)
        assert "script-src 'self'" in response.headers["Content-Security-Policy"]
        assert not re.findall(r"(?:src|href)=\"https?://", text), "nothing comes from elsewhere"
        for found in re.findall(r"(?:src|href)=\"(/[^\"]*)\"", text):
            assert (await api.client.get(found)).status == 200, found
    made = await (await api.client.get("/openapi.json")).json()
    assert made["openapi"] == "3.1.0"
    await problem(await api.client.get("/errors/nothing_like_it"), 404, "not_found")


async def test_a_problem_leads_to_its_page(api: Api) -> None:
    body = await problem(
        await api.ask("ann", "GET", "/api/bulk/jobs?x=1"), 422, "unknown_parameter"
    )
    origin = api.made.settings.public_url
    response = await api.client.get(body["type"].removeprefix(origin))
    assert "unknown_parameter" in await response.text()


async def test_the_parameters_documented_are_those_offered(api: Api) -> None:
    job = (await (await api.send(campaignId="autumn")).json())["jobId"]
    session = await session_of(api, "root")
    own = {"job_id": job, "campaign_id": "autumn"}
    for route in ROUTES:
        operation = OPERATIONS.get(f"{route.method} {route.path}")
        if operation is None or route.method != "GET" or route.is_stream:
            continue
        path = re.sub(r"\{(\w+)\}", lambda found: own.get(found[1], "x"), route.path)
        response = await api.client.get(f"{path}?no_such=1", headers=session)
        body = await response.json(content_type="application/problem+json")
        if body["code"] == "not_found":
            continue
        assert body["errors"], (route.path, body)
        offered = body["errors"][0]["detail"].removeprefix("Offered: ").removesuffix(".")
        names = set() if offered == "none" else set(offered.split(", "))
        assert names == set(operation.query), route.path


async def test_a_document_for_anybody_costs_next_to_nothing(api: Api) -> None:
    await api.client.get("/docs")
    began = time.process_time()
    for _ in range(50):
        for path in ("/openapi.json", "/docs"):
            assert (await api.client.get(path)).status == 200
    # With this client's share of it; to make it takes 20 ms each time.
    assert (time.process_time() - began) / 100 < 0.01
