"""Preflight: it says what send would, and leaves nothing behind."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import msgspec

from shared.settings import Settings
from tests.integration.desk import NUMBERS, TEXT, Api, opened, problem

TEMPLATE = {
    "kind": "template",
    "template": {
        "name": "order_update",
        "language_code": "en_US",
        "components": [
            {"type": "body", "parameters": [{"type": "text", "text": "Hi {{first_name}}"}]}
        ],
    },
}


async def look(api: Api, who: str = "ann", **fields: Any) -> Any:
    body = {"recipients": NUMBERS, "message": TEXT, **fields}
    body = {name: value for name, value in body.items() if value is not ...}
    return await api.ask(who, "POST", "/api/bulk/preflight", json=body)


async def test_a_good_body_is_told_what_will_become_of_it(api: Api) -> None:
    rows = [{"to": NUMBERS[0], "vars": {"first_name": "Ann"}}, "+1234567890",
            {"to": NUMBERS[0], "vars": {"first_name": "Bo"}}]  # fmt: skip
    rows[1] = {"to": "+1234567890", "vars": {"first_name": "Cy"}}
    pool = api.made.archive._pool
    await pool.execute(
        "INSERT INTO suppressions (id, phone, scope, source, created_by, change) "
        "VALUES ('sup_1', 15550000001, 'all', 'hand', 'x', 1)"
    )
    response = await look(api, recipients=rows, message=TEMPLATE, rate=2)
    body = await response.json()
    assert (response.status, body["ok"]) == (200, True), body
    assert body["rows"] == {
        "total": 3, "valid": 2, "invalid": 0, "duplicates": 1, "changed": 0, "suspect": 1,
        "suppressed": 1,
    }  # fmt: skip
    assert body["preview"] == [{"row": 0, "text": "Hi Ann"}, {"row": 1, "text": "Hi Cy"}]
    assert body["estimate"] == {"rate": 2.0, "duration_s": 1}
    assert body["sender"] == {"name": "main", "state": "active"}
    assert body["template"]["checked"] is False
    assert body["template"]["why"]
    assert (await (await look(api)).json())["template"] is None


async def test_ok_is_what_send_would_say(api: Api) -> None:
    cases: list[dict[str, Any]] = [
        {},
        {"recipients": []},
        {"recipients": ["x", *NUMBERS]},
        {"recipients": ["x", *NUMBERS], "on_invalid": "skip"},
        {"recipients": ["x"], "on_invalid": "skip"},
        {"recipients": ...},
        {"upload_id": "upl_" + "0" * 26, "recipients": ...},
        {"recipients_from": {"job": "x"}, "recipients": ...},
        {"message": {"kind": "text", "text": {"body": " "}}},
        {"message": TEMPLATE},
        {"sender": "nobody"},
        {"campaignId": "*"},
        {"metadata": {"a b": "c"}},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"userId": "user-uuid"},
        {"default_region": "XX"},
    ]
    for fields in cases:
        response = await look(api, **fields)
        body = await response.json()
        assert response.status == 200, (fields, body)
        sent = await api.send(**fields)
        assert body["ok"] is (sent.status == 202), fields
        assert body["ok"] or body["problems"], fields
        if sent.status == 422:
            refused = await sent.json()
            told = {(row["pointer"], row["code"]) for row in body["problems"]}
            assert {(r["pointer"], r["code"]) for r in refused["errors"]} <= told, fields


async def test_what_is_no_send_request_is_refused_as_there(api: Api) -> None:
    await problem(await look(api, status=1), 422, "unknown_field")
    await problem(await look(api, priority="urgent"), 422, "validation_failed")
    await problem(await look(api, name="a\u0000"), 422, "control_char")
    await problem(await look(api, userId=api.ben), 403, "user_mismatch")
    headers = {"Content-Type": "text/plain"}
    response = await api.ask("ann", "POST", "/api/bulk/preflight", data=b"{}", headers=headers)
    await problem(response, 415, "unsupported_media_type")


async def test_it_stores_nothing_and_uses_no_quota(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        api = await opened(msgspec.structs.replace(settings, bulk_submits_per_hour_ip=1), stack)
        for _ in range(3):
            response = await look(api)
            assert (await response.json())["ok"]
            assert "RateLimit" not in response.headers
        listed = await (await api.ask("ann", "GET", "/api/bulk/jobs")).json()
        assert listed["data"] == []
        assert (await api.send()).status == 202
        await api.made.queue.visitors.flushall()
