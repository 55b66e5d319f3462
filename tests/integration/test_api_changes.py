"""PATCH of a job: what may change when, in both stores, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from shared.errors import QueueError
from tests.integration.desk import Api, end, problem


async def sent(api: Api, **fields: Any) -> str:
    return str((await (await api.send(**fields)).json())["jobId"])


async def patch(api: Api, job: str, who: str = "ann", **fields: Any) -> Any:
    return await api.ask(who, "PATCH", f"/api/bulk/jobs/{job}", json=fields)


async def test_name_rate_priority_and_deadline_change_in_both_stores(api: Api) -> None:
    job = await sent(api)
    body = await (
        await patch(
            api, job, name="New", rate=2.5, priority="high", expires_at="2099-01-01T00:00:00Z"
        )
    ).json()
    assert (body["name"], body["rate"], body["priority"]) == ("New", 2.5, "high")
    assert body["expires_at"] == "2099-01-01T00:00:00.000Z"
    status = (await api.made.queue.statuses([job]))[0]
    assert status is not None
    assert status.rate == 2.5
    body = await (await patch(api, job, rate=None, expires_at=None)).json()
    assert (body["rate"], body["expires_at"], body["name"]) == (None, None, "New")
    pool = api.made.archive._pool
    rows = await pool.fetch("SELECT result, reason FROM audit_log WHERE action = 'job.change'")
    assert [row["result"] for row in rows] == ["asked", "ok", "asked", "ok"]
    assert rows[0]["reason"] == "name, rate, weight, priority, expires_ms"
    assert (await patch(api, job)).status == 200


async def test_a_start_may_be_moved_while_the_job_is_scheduled(api: Api) -> None:
    job = await sent(api, scheduled_at="2098-01-01T00:00:00Z")
    body = await (
        await patch(api, job, scheduled_at="2099-01-01T00:00:00", timezone="Europe/Rome")
    ).json()
    assert (body["state"], body["scheduled_at"]) == ("scheduled", "2098-12-31T23:00:00.000Z")
    early = await patch(api, job, expires_at="2097-01-01T00:00:00Z")
    await problem(early, 422, "bad_time")
    body = await (await patch(api, job, scheduled_at=None)).json()
    assert body["state"] in {"queued", "running"}
    late = await patch(api, job, scheduled_at="2099-01-01T00:00:00Z")
    assert (await problem(late, 409, "state_conflict"))["state"] == body["state"]


async def test_a_final_job_takes_a_name_and_nothing_else(api: Api) -> None:
    job = await sent(api)
    await end(api, job)
    await api.made.queue.control(job, "cancel")
    assert (await (await patch(api, job, name="Old sale")).json())["name"] == "Old sale"
    for fields in ({"rate": 1}, {"priority": "low"}, {"expires_at": None}):
        await problem(await patch(api, job, **fields), 409, "state_conflict")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"state": "completed"}, "unknown_field"),
        ({"userId": "x"}, "unknown_field"),
        ({"recipients": []}, "unknown_field"),
        ({"rate": 0}, "validation_failed"),
        ({"rate": "fast"}, "validation_failed"),
        ({"rate": 1001}, "validation_failed"),
        ({"priority": None}, "validation_failed"),
        ({"priority": "urgent"}, "validation_failed"),
        ({"name": "x" * 121}, "validation_failed"),
        ({"name": "a\u0000"}, "control_char"),
        ({"name": []}, "validation_failed"),
        ({"expires_at": "soon"}, "bad_time"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "bad_time"),
        ({"expires_at": 1}, "validation_failed"),
        ({"scheduled_at": "2020-01-01T00:00:00Z"}, "bad_time"),
        ({"scheduled_at": "2099-01-01T00:00:00"}, "bad_time"),
        ({"timezone": "Mars/Base"}, "bad_time"),
    ],
)
async def test_a_change_is_refused_and_changes_nothing(
    api: Api, fields: dict[str, Any], code: str
) -> None:
    job = await sent(api, name="Sale", rate=3)
    await problem(await patch(api, job, **fields), 422, code)
    body = await (await api.ask("ann", "GET", f"/api/bulk/jobs/{job}")).json()
    assert (body["name"], body["rate"], body["expires_at"]) == ("Sale", 3, None)


async def test_a_foreign_job_cannot_be_changed(api: Api) -> None:
    job = await sent(api)
    await problem(await patch(api, job, "ben", name="mine"), 404, "not_found")
    assert (await patch(api, job, "root", name="theirs")).status == 200


async def test_what_redis_refuses_is_taken_back(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await sent(api)

    async def refuse(*_args: object, **_rest: object) -> None:
        raise QueueError("no", refused=True)

    with monkeypatch.context() as broken:
        broken.setattr(api.made.queue, "control", refuse)
        await problem(await patch(api, job, rate=5, name="x"), 503, "storage_unavailable")
    body = await (await api.ask("ann", "GET", f"/api/bulk/jobs/{job}")).json()
    assert (body["rate"], body["name"]) == (None, None)
