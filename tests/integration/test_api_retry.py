"""Retry as a child job, and a new message to the recipients of an earlier job: who gets it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from api.roster import Kept
from shared.models import State
from tests.integration.desk import Api, come_to, end, problem

VARS = {"kind": "text", "text": {"body": "Hi {{name}}"}}
OTHER = {"kind": "text", "text": {"body": "Sorry {{name}}"}}
NOW_MS = 1_795_511_649_123


async def sent(api: Api, count: int = 6, **fields: Any) -> str:
    rows = [
        {"to": f"+1555{n:07d}", "ref": f"r{n}", "vars": {"name": f"N{n}"}}
        for n in range(1, count + 1)
    ]
    response = await api.send(**{"recipients": rows, "message": VARS, **fields})
    assert response.status == 202, await response.text()
    return str((await response.json())["jobId"])


async def ended(api: Api, count: int = 6, **fields: Any) -> str:
    """Return a job of which 0 is sent, 1 to 3 have failed, 4 is skipped and 5 unknown."""
    job = await sent(api, count, **fields)
    at_ms = api.made.clock.now_ms() - 5000
    await come_to(
        api,
        job,
        (0, State.SENT, None),
        (1, State.FAILED, 131000),
        (2, State.FAILED, 131049),
        (3, State.FAILED, 131026),
        (4, State.SKIPPED, None),
        (5, State.UNKNOWN, None),
        at_ms=at_ms,
    )
    await end(api, job)
    return job


async def retry(api: Api, job: str, who: str = "ann", **fields: Any) -> Any:
    headers = fields.pop("headers", {})
    path = f"/api/bulk/jobs/{job}/retry"
    return await api.ask(who, "POST", path, json=fields, headers=headers)


async def kept(api: Api, job: str) -> Kept:
    chunks = await api.made.archive.recipients(job)
    return msgspec.msgpack.decode(chunks[0], type=Kept)


async def test_a_retry_is_a_child_with_message_values_refs_and_lineage(api: Api) -> None:
    job = await ended(api, name="Sale", metadata={"team": "north"})
    response = await retry(api, job)
    body = await response.json()
    assert response.status == 202, body
    assert body["parent"] == job
    assert body["intake"]["accepted"] == 1
    left_out = {row["code"]: row for row in body["excluded"]}
    assert left_out["131049"]["count"] == 1
    assert left_out["131049"]["not_before"] is not None
    assert left_out["131026"] == {"code": "131026", "count": 1, "not_before": None}
    found = await kept(api, body["jobId"])
    assert found == Kept([15550000002], [["N2"]], ["r2"], [1])
    child = await (await api.ask("ann", "GET", body["links"]["self"])).json()
    assert (child["parent"], child["name"], child["metadata"]) == (job, "Sale", {"team": "north"})
    row = await api.made.archive.job(body["jobId"], api.ann)
    first = await api.made.archive.job(job, api.ann)
    assert row is not None
    assert first is not None
    assert (row.message, row.vars) == (first.message, first.vars)
    status = (await api.made.queue.statuses([body["jobId"]]))[0]
    assert status is not None


async def test_nobody_is_in_two_retries_or_sent_to_twice(api: Api) -> None:
    job = await ended(api)
    first = (await (await retry(api, job)).json())["jobId"]
    body = await problem(await retry(api, job), 422, "empty_recipients")
    assert any("in_retry" in fault["detail"] for fault in body["errors"])
    await come_to(api, first, (0, State.FAILED, 131000))
    await end(api, first)
    second = (await (await retry(api, first)).json())["jobId"]
    # The retry of the retry has the person now, whichever job of the family is asked.
    await problem(await retry(api, job), 422, "empty_recipients")
    await problem(await retry(api, first), 422, "empty_recipients")
    await come_to(api, second, (0, State.SENT, None))
    await end(api, second)
    body = await problem(await retry(api, job), 422, "empty_recipients")
    assert any("sent_by_retry" in fault["detail"] for fault in body["errors"])
    await problem(await retry(api, first), 422, "empty_recipients")


async def test_two_retries_at_once_make_one_child(api: Api) -> None:
    job = await ended(api)
    answers = await asyncio.gather(retry(api, job), retry(api, job, "root"), retry(api, job))
    assert [one.status for one in answers].count(202) == 1
    key = {"Idempotency-Key": "once"}
    other = await ended(api)
    first, again = await retry(api, other, headers=key), await retry(api, other, headers=key)
    assert (first.status, again.status) == (202, 202)
    assert await first.json() == await again.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    third = await retry(api, other, headers=key, scope="skipped")
    await problem(third, 422, "idempotency_mismatch")


async def test_scopes_codes_and_age_narrow_a_retry(api: Api) -> None:
    job = await ended(api)
    body = await (await retry(api, job, scope="skipped")).json()
    assert (await kept(api, body["jobId"])).origins == [4]
    await problem(await retry(api, job, scope="unknown"), 422, "validation_failed")
    body = await (await retry(api, job, scope="unknown", confirm_duplicates=True)).json()
    assert (await kept(api, body["jobId"])).origins == [5]
    await problem(await retry(api, job, codes=["1"]), 422, "empty_recipients")
    await problem(await retry(api, job, older_than_s=3600), 422, "empty_recipients")
    await problem(await retry(api, job, scope="cancelled"), 422, "empty_recipients")
    body = await (await retry(api, job, codes=["131000"], older_than_s=1)).json()
    assert (await kept(api, body["jobId"])).origins == [1]
    assert body["excluded"] == []


async def test_only_a_final_job_of_ones_own_is_retried(api: Api) -> None:
    job = await sent(api)
    conflict = await problem(await retry(api, job), 409, "state_conflict")
    assert conflict["state"] in {"queued", "running"}
    await end(api, job)
    response = await retry(api, job)  # its rows are not all logged
    await problem(response, 409, "state_conflict")
    assert response.headers["Retry-After"] == "1"
    early = await api.send(recipients=..., message=OTHER, recipients_from={"job": job})
    await problem(early, 409, "state_conflict")
    done = await ended(api)
    await problem(await retry(api, done, "ben"), 404, "not_found")
    body = await (await retry(api, done, "root")).json()
    assert body["userId"] == api.ann


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"scope": "sent"}, "validation_failed"),
        ({"scope": "undelivered"}, "validation_failed"),
        ({"scope": None}, "validation_failed"),
        ({"codes": "131026"}, "validation_failed"),
        ({"codes": [131026]}, "validation_failed"),
        ({"codes": ["1"] * 21}, "validation_failed"),
        ({"codes": ["\u0000"]}, "control_char"),
        ({"older_than_s": -1}, "validation_failed"),
        ({"older_than_s": 1.5}, "validation_failed"),
        ({"confirm_duplicates": "true"}, "validation_failed"),
        ({"message": VARS}, "unknown_field"),
    ],
)
async def test_a_retry_is_refused(api: Api, fields: dict[str, Any], code: str) -> None:
    job = await ended(api)
    await problem(await retry(api, job, **fields), 422, code)
    listed = await (await api.ask("ann", "GET", "/api/bulk/jobs")).json()
    assert len(listed["data"]) == 1


async def test_another_message_goes_to_recipients_of_an_earlier_job(api: Api) -> None:
    job = await ended(api)
    where = {"job": job, "outcome": "failed", "code": "131026,131049"}
    response = await api.send(recipients=..., message=OTHER, recipients_from=where)
    body = await response.json()
    assert response.status == 202, body
    assert body["parent"] == job
    found = await kept(api, body["jobId"])
    assert found == Kept([15550000003, 15550000004], [["N3"], ["N4"]], ["r3", "r4"], [2, 3])
    # It is no retry: the same people may still be retried with the first message.
    assert (await retry(api, job)).status == 202
    where = {"job": job, "code": 131026, "older_than_s": 3600}
    response = await api.send(recipients=..., message=OTHER, recipients_from=where)
    await problem(response, 422, "empty_recipients")
    missing = {"kind": "text", "text": {"body": "{{other}}"}}
    response = await api.send(recipients=..., message=missing, recipients_from={"job": job})
    refused = await problem(response, 422, "invalid_recipients")
    assert refused["errors"][0]["pointer"] == "/recipients_from/0/vars/other"
    assert refused["errors_total"] == 6


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ({"job": "x"}, "validation_failed"),
        ({"job": "job_" + "0" * 28}, "validation_failed"),
        ({}, "validation_failed"),
        ({"job": 1}, "validation_failed"),
        ({"outcome": "nope"}, "bad_filter"),
        ({"receipt": "sent"}, "bad_filter"),
        ({"code": "x"}, "bad_filter"),
        ({"code": -1}, "bad_filter"),
        ({"older_than_s": -1}, "validation_failed"),
        ({"owner": "x"}, "unknown_field"),
        ([], "validation_failed"),
    ],
)
async def test_a_source_is_refused(api: Api, where: Any, code: str) -> None:
    job = await ended(api)
    given = {"job": job, **where} if isinstance(where, dict) and where else where
    body = await problem(await api.send(recipients=..., recipients_from=given), 422, code)
    assert body["errors"][0]["pointer"].startswith("/recipients_from")
    both = await api.send(recipients_from={"job": job})
    await problem(both, 422, "validation_failed")
    foreign = await api.send("ben", recipients=..., recipients_from={"job": job})
    await problem(foreign, 422, "validation_failed")
