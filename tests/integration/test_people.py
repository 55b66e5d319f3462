"""Users, keys, passwords: who may, what is shown once, and what ends at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from shared.ids import Ids
from shared.office import AuditFilter
from shared.settings import Settings
from tests.conftest import replaced
from tests.integration.desk import PASSWORD, Api, opened, problem, session_of

Eventually = Callable[..., Awaitable[Any]]
BETTER = "a much better one"


async def key_of(api: Api, session: dict[str, str], **fields: Any) -> dict[str, Any]:
    body = {"name": "crm", "scopes": ["read"], **fields}
    response = await api.client.post("/api/keys", json=body, headers=session)
    assert response.status == 201, await response.text()
    return dict(await response.json())


async def test_a_key_is_shown_once_and_does_what_its_scopes_say(
    api: Api, eventually: Eventually
) -> None:
    session = await session_of(api, "ann")
    made = await key_of(api, session)
    assert made["key"].startswith("drb_")
    assert (made["last4"], made["last_used_at"]) == (made["key"][-4:], None)
    bearer = {"Authorization": f"Bearer {made['key']}"}
    assert (await api.client.get("/api/bulk/jobs", headers=bearer)).status == 200
    response = await api.client.post("/api/bulk/send", json={}, headers=bearer)
    await problem(response, 403, "scope_missing")
    # A key makes no keys, nor does it see any.
    for method, path in (("GET", "/api/keys"), ("POST", "/api/keys")):
        response = await api.client.request(method, path, headers=bearer)
        await problem(response, 403, "forbidden")
    listed = await (await api.client.get("/api/keys", headers=session)).json()
    mine = next(key for key in listed["data"] if key["id"] == made["id"])
    assert "key" not in mine
    assert mine["last_used_at"] is not None
    others = await session_of(api, "ben")
    path = f"/api/keys/{made['id']}"
    await problem(await api.client.delete(path, headers=others), 404, "not_found")
    assert (await api.client.delete(path, headers=session)).status == 204
    await problem(await api.client.delete(path, headers=session), 404, "not_found")

    async def is_refused() -> bool:
        return (await api.client.get("/api/bulk/jobs", headers=bearer)).status == 401

    await eventually(is_refused, within_s=2)
    rows = await api.made.office.audit(AuditFilter(object=made["id"]), 0, 9)
    assert [row.action for row in rows] == ["key.revoke", "key.add"]


async def test_a_key_ends_in_the_future_and_has_no_more_than_its_owner(api: Api) -> None:
    session = await session_of(api, "ann")
    for fields, status, code in (
        ({"expires_at": "2020-01-01T00:00:00Z"}, 422, "bad_time"),
        ({"expires_at": "soon"}, 422, "bad_time"),
        ({"scopes": []}, 422, "validation_failed"),
        ({"scopes": ["all"]}, 422, "validation_failed"),
        ({"scopes": ["read", "admin"]}, 403, "forbidden"),
        ({"name": ""}, 422, "validation_failed"),
        ({"key": "drb_x"}, 422, "unknown_field"),
    ):
        body = {"name": "crm", "scopes": ["read"], **fields}
        response = await api.client.post("/api/keys", json=body, headers=session)
        await problem(response, status, code)
    root = await session_of(api, "root")
    made = await key_of(api, root, scopes=["admin"], expires_at="2090-01-01T00:00:00Z")
    bearer = {"Authorization": f"Bearer {made['key']}"}
    assert (await api.client.get("/api/bulk/stats", headers=bearer)).status == 200
    assert made["expires_at"] == "2090-01-01T00:00:00.000Z"


async def test_a_new_password_ends_every_other_session(api: Api) -> None:
    here, there = await session_of(api, "ann"), await session_of(api, "ann")
    path = "/api/session/password"
    wrong = {"current": "not this one", "new": BETTER}
    await problem(await api.client.post(path, json=wrong, headers=here), 401, "bad_credentials")
    for new in ("short", "x" * 129, "passwordpassword", "aaaaaaaaaaaaaaaa"):
        body = {"current": PASSWORD, "new": new}
        response = await api.client.post(path, json=body, headers=here)
        told = await problem(response, 422, "weak_password")
        assert told["errors"][0]["pointer"] == "/new"
    body = {"current": PASSWORD, "new": BETTER}
    assert (await api.client.post(path, json=body, headers=here)).status == 204
    assert (await api.client.get("/api/session", headers=here)).status == 200
    await problem(await api.client.get("/api/session", headers=there), 401, "unauthenticated")
    await session_of(api, "ann", BETTER)


async def test_an_admin_adds_changes_and_locks_out(api: Api, eventually: Eventually) -> None:
    body = {"email": " Carla@Example.com", "password": BETTER}
    await problem(await api.ask("ann", "POST", "/api/users", json=body), 403, "forbidden")
    response = await api.ask("root", "POST", "/api/users", json=body)
    await problem(response, 422, "validation_failed")  # an address holds no blanks
    body["email"] = "Carla@Example.com"
    response = await api.ask("root", "POST", "/api/users", json=body)
    made = await response.json()
    assert (response.status, made["email"], made["role"]) == (201, "carla@example.com", "user")
    await problem(await api.ask("root", "POST", "/api/users", json=body), 409, "name_taken")
    weak = {**body, "email": "d@example.com", "password": "short"}
    await problem(await api.ask("root", "POST", "/api/users", json=weak), 422, "weak_password")
    session = await session_of(api, "carla", BETTER)
    path = f"/api/users/{made['userId']}"
    changed = await api.ask("root", "PATCH", path, json={"disabled": True})
    assert (await changed.json())["disabled"]
    await problem(await api.client.get("/api/session", headers=session), 401, "unauthenticated")
    login = {"email": "carla@example.com", "password": BETTER}
    await problem(await api.client.post("/api/session", json=login), 401, "bad_credentials")
    await api.ask("root", "PATCH", path, json={"disabled": False, "role": "admin"})
    session = await session_of(api, "carla", BETTER)

    async def is_admin() -> bool:
        return (await api.client.get("/api/users", headers=session)).status == 200

    await eventually(is_admin, within_s=2)
    listed = await (await api.client.get("/api/users?limit=2", headers=session)).json()
    assert listed["has_more"]
    assert listed["data"][0]["userId"] == made["userId"]
    rest = f"/api/users?limit=2&cursor={listed['next_cursor']}"
    page = await (await api.client.get(rest, headers=session)).json()
    assert {user["email"] for user in page["data"]} == {"ann@example.com", "ben@example.com"}
    absent = f"/api/users/{Ids().user_id()}"
    await problem(await api.ask("root", "PATCH", absent, json={}), 404, "not_found")


async def test_row_53_whose_role_was_taken_is_no_admin_within_a_second(
    api: Api, eventually: Eventually
) -> None:
    path = f"/api/users/{api.ben}"
    await api.ask("root", "PATCH", path, json={"role": "admin"})
    session = await session_of(api, "ben")
    made = await key_of(api, session, scopes=["read", "admin"])
    bearer = {"Authorization": f"Bearer {made['key']}"}
    for headers in (session, bearer):
        assert (await api.client.get("/api/bulk/stats", headers=headers)).status == 200
    await api.ask("root", "PATCH", path, json={"role": "user"})

    async def is_told(headers: dict[str, str]) -> bool:
        return (await api.client.get("/api/bulk/stats", headers=headers)).status == 403

    for headers in (session, bearer):
        await eventually(lambda headers=headers: is_told(headers), within_s=2)
        assert (await api.client.get("/api/bulk/jobs", headers=headers)).status == 200


async def test_the_last_admin_stays(api: Api) -> None:
    path = f"/api/users/{api.root}"
    for change in ({"disabled": True}, {"role": "user"}):
        response = await api.ask("root", "PATCH", path, json=change)
        await problem(response, 409, "state_conflict")
    assert (await api.ask("root", "GET", "/api/users")).status == 200


async def test_a_key_of_one_who_is_locked_out_is_refused(api: Api, eventually: Eventually) -> None:
    assert (await api.ask("ben", "GET", "/api/bulk/jobs")).status == 200
    await api.ask("root", "PATCH", f"/api/users/{api.ben}", json={"disabled": True})

    async def is_refused() -> bool:
        return (await api.ask("ben", "GET", "/api/bulk/jobs")).status == 401

    await eventually(is_refused, within_s=2)


async def test_streams_end_with_their_key_and_with_the_role_that_showed_a_job(
    settings: Settings, eventually: Eventually
) -> None:
    loose = replaced(settings, bulk_submits_per_hour_ip=0, sse_heartbeat_s=0.3)
    async with AsyncExitStack() as stack:
        api = await opened(loose, stack)
        reading = asyncio.create_task(api.made.hub.run())
        job = (await (await api.send()).json())["jobId"]
        session = await session_of(api, "ann")
        made = await key_of(api, session)
        bearer = {"Authorization": f"Bearer {made['key']}"}
        path = f"/realtime/bulk/{job}"
        by_key = await api.client.get(path, headers=bearer)
        await api.ask("root", "PATCH", f"/api/users/{api.ben}", json={"role": "admin"})
        by_role = await api.client.get(path, headers=await session_of(api, "ben"))
        assert (by_key.status, by_role.status) == (200, 200)
        await api.client.delete(f"/api/keys/{made['id']}", headers=session)
        await api.ask("root", "PATCH", f"/api/users/{api.ben}", json={"role": "user"})
        for response in (by_key, by_role):
            async with asyncio.timeout(15):
                assert b"event: revoked" in await response.content.read()

        async def is_refused() -> bool:
            async with api.client.get(path, headers=bearer) as response:
                return response.status == 401

        await eventually(is_refused, within_s=2)
        reading.cancel()


async def test_the_audit_log_is_for_admins_and_narrows(api: Api) -> None:
    await problem(await api.ask("ann", "GET", "/api/audit"), 403, "forbidden")
    await api.ask("root", "POST", "/api/bulk/disable")
    await api.ask("root", "POST", "/api/bulk/enable")
    await session_of(api, "ann")
    everything = await (await api.ask("root", "GET", "/api/audit")).json()
    assert [row["action"] for row in everything["data"][:3]] == [
        "login",
        "bulk.enable",
        "bulk.disable",
    ]
    assert set(everything["data"][1]) == {
        "at", "actor", "action", "object", "address", "result", "reason", "request_id",
    }  # fmt: skip
    for query, count in (
        (f"actor={api.ann}", 1),
        ("action=bulk.enable", 1),
        ("object=pool", 2),
        ("object=pool&to=2020-01-01T00:00:00Z", 0),
        ("from=2020-01-01T00:00:00Z&object=pool", 2),
    ):
        page = await (await api.ask("root", "GET", f"/api/audit?{query}")).json()
        assert len(page["data"]) == count, query
    for query, code in (
        ("actor=", "bad_filter"),
        ("from=x", "bad_time"),
        ("x=1", "unknown_parameter"),
    ):
        response = await api.ask("root", "GET", f"/api/audit?{query}")
        await problem(response, 422, code)


async def test_an_admin_who_looks_at_somebody_elses_job_leaves_a_line_each_way(api: Api) -> None:
    job = (await (await api.send()).json())["jobId"]
    ways = (f"/api/bulk/jobs/{job}", f"/api/bulk/jobs/{job}/recipients", f"/realtime/bulk/{job}",
            f"/realtime/bulk?jobs={job}")  # fmt: skip

    async def lines() -> int:
        return len(await api.made.office.audit(AuditFilter(action="job.read", object=job), 0, 99))

    for count, path in enumerate(ways, start=1):
        for who in ("ann", "root"):
            async with api.client.get(
                path, headers={"Authorization": f"Bearer {api.tokens[who]}"}
            ) as answer:
                assert answer.status == 200, path
        assert await lines() == count, path
