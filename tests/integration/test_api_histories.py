"""Labels and people over many jobs: metadata, campaigns, one person's history."""

from __future__ import annotations

from typing import Any

import pytest

from shared.models import State
from tests.integration.desk import NUMBERS, Api, come_to, end, problem


async def sent(api: Api, who: str = "ann", **fields: Any) -> str:
    response = await api.send(who, **fields)
    assert response.status == 202, await response.text()
    return str((await response.json())["jobId"])


async def found(api: Api, path: str, who: str = "ann") -> Any:
    response = await api.ask(who, "GET", path)
    assert response.status == 200, await response.text()
    return await response.json()


async def test_metadata_is_kept_shown_and_filtered_by(api: Api) -> None:
    north = await sent(api, metadata={"team": "north", "cost.centre": "4:2"})
    await sent(api, metadata={"team": "south"})
    await sent(api)
    await sent(api, "ben", metadata={"team": "north"})
    job = await found(api, f"/api/bulk/jobs/{north}")
    assert job["metadata"] == {"team": "north", "cost.centre": "4:2"}
    for query in ("team:north", "cost.centre:4:2"):
        listed = await found(api, f"/api/bulk/jobs?metadata={query}")
        assert [one["jobId"] for one in listed["data"]] == [north], query
    assert (await found(api, "/api/bulk/jobs?metadata=team:nor"))["data"] == []
    everybody = await found(api, "/api/bulk/jobs?metadata=team:north", "root")
    assert len(everybody["data"]) == 2
    for bad in ("team", ":x", "", "x" * 600):
        response = await api.ask("ann", "GET", f"/api/bulk/jobs?metadata={bad}")
        await problem(response, 422, "bad_filter")


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        (None, "validation_failed"),
        ([], "validation_failed"),
        ("x", "validation_failed"),
        ({"a": 1}, "validation_failed"),
        ({"a": None}, "validation_failed"),
        ({"a": {}}, "validation_failed"),
        ({"": "x"}, "validation_failed"),
        ({"a b": "x"}, "validation_failed"),
        ({"a:b": "x"}, "validation_failed"),
        ({"é": "x"}, "validation_failed"),
        ({"x" * 41: "x"}, "validation_failed"),
        ({"a": "x" * 501}, "validation_failed"),
        ({str(n): "x" for n in range(21)}, "validation_failed"),
        ({"a": "\u0000"}, "control_char"),
    ],
)
async def test_metadata_is_refused(api: Api, metadata: Any, code: str) -> None:
    body = await problem(await api.send(metadata=metadata), 422, code)
    assert body["errors"][0]["pointer"].startswith("/metadata")
    assert (await found(api, "/api/bulk/jobs"))["data"] == []


async def test_one_persons_messages_over_own_jobs_are_noted(api: Api) -> None:
    jobs = [await sent(api, campaignId="autumn") for _ in range(3)]
    theirs = await sent(api, "ben")
    for job in (*jobs, theirs):
        await come_to(api, job, (0, State.SENT, None), (1, State.FAILED, 131026))
    seen, cursor = [], ""
    while True:
        page = await found(api, f"/api/bulk/recipients?to=%2B15550000002&limit=2{cursor}")
        seen += page["data"]
        if not page["has_more"]:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert [row["jobId"] for row in seen] == jobs[::-1]
    assert {(row["outcome"], row["code"], row["to"]) for row in seen} == {
        ("failed", 131026, NUMBERS[1])
    }
    assert seen[0]["campaignId"] == "autumn"
    everybody = await found(api, "/api/bulk/recipients?to=+15550000002", "root")
    assert {row["jobId"] for row in everybody["data"]} == {*jobs, theirs}
    assert (await found(api, "/api/bulk/recipients?to=%2B15550000009"))["data"] == []
    pool = api.made.archive._pool
    notes = await pool.fetch("SELECT * FROM audit_log WHERE action = 'recipient.read'")
    assert len(notes) == 4
    assert all(row["object"].startswith("p_") and len(row["object"]) == 10 for row in notes)
    assert "5550000002" not in str(notes)
    other = f"/api/bulk/recipients?to=%2B15550000001{cursor}"
    await problem(await api.ask("ann", "GET", other), 422, "bad_cursor")


@pytest.mark.parametrize(
    "query", ["", "to=", "to=x", "to=%2B1", "to=%2B0155500001", "to=%2B15550000001%0A", "to=%00"]
)
async def test_a_person_is_named_by_a_number(api: Api, query: str) -> None:
    response = await api.ask("ann", "GET", f"/api/bulk/recipients?{query}")
    await problem(response, 422, "bad_filter")


async def test_a_campaign_adds_up_ones_own_jobs(api: Api) -> None:
    first, second = await sent(api, campaignId="autumn:1"), await sent(api, campaignId="autumn:1")
    await sent(api, campaignId="other")
    await sent(api, "ben", campaignId="autumn:1")
    await come_to(api, first, (0, State.SENT, None), (1, State.FAILED, 131026))
    await come_to(api, second, (0, State.SENT, None), (1, State.SENT, None), (2, State.SENT, None))
    await end(api, second)
    body = await found(api, "/api/bulk/campaigns/autumn:1")
    progress = body["progress"]
    assert (progress["total"], progress["sent"], progress["failed"]) == (6, 4, 1)
    assert (progress["pending"], progress["done"]) == (1, 5)
    assert sum(body["jobs"].values()) == 2
    assert body["jobs"]["completed"] == 1
    everybody = await found(api, "/api/bulk/campaigns/autumn:1", "root")
    assert everybody["progress"]["total"] == 9
    for path in ("nobody", "x" * 129, "a*b", "autumn"):
        response = await api.ask("ann", "GET", f"/api/bulk/campaigns/{path}")
        await problem(response, 404, "not_found")
