"""Trying passwords: how many tries there are, however they are sent, and what is kept of each."""

from __future__ import annotations

import asyncio
import re
from collections import Counter

import pytest
from argon2 import PasswordHasher

from api.passwords import needs_rehash
from shared.ids import Ids
from shared.office import AuditFilter
from tests.integration.desk import PASSWORD, Api, problem, session_of

WRONG = "not this one"


async def tried(api: Api, email: str, password: str = WRONG) -> str:
    """Try to log in; return the code of the answer, `ok` when it went well."""
    login = {"email": email, "password": password}
    async with api.client.post("/api/session", json=login) as response:
        body = await response.json(content_type=None)
    api.client.session.cookie_jar.clear()
    return "ok" if response.status == 200 else str(body["code"])


async def test_who_tries_many_at_once_has_no_more_tries(api: Api) -> None:
    said = await asyncio.gather(*(tried(api, "ann@example.com") for _ in range(15)))
    # The right one learns nothing either once five have failed.
    assert Counter(said) == {"bad_credentials": 5, "login_throttled": 10}
    assert await tried(api, "ann@example.com", PASSWORD) == "login_throttled"


async def test_a_right_password_among_wrong_ones_is_told_only_within_the_tries(api: Api) -> None:
    for _ in range(4):
        assert await tried(api, "ann@example.com") == "bad_credentials"
    # It goes well, and the account begins anew.
    assert await tried(api, "ann@example.com", PASSWORD) == "ok"
    for _ in range(5):
        assert await tried(api, "ann@example.com") == "bad_credentials"
    assert await tried(api, "ann@example.com", PASSWORD) == "login_throttled"


async def test_an_account_is_the_same_however_its_address_is_written(api: Api) -> None:
    forms = ["ann@example.com", "Ann@Example.com", " ann@example.com", "ann@example.com  ",
             "\u2003ANN@example.com\u00a0"]  # fmt: skip
    assert [await tried(api, form) for form in forms] == ["bad_credentials"] * 5
    assert await tried(api, "ann@example.com ", PASSWORD) == "login_throttled"


async def test_guesses_at_a_change_of_password_are_failed_log_ins(api: Api) -> None:
    session = await session_of(api, "ann")
    body = {"current": WRONG, "new": "a much better one"}

    async def change() -> str:
        path = "/api/session/password"
        async with api.client.post(path, json=body, headers=session) as response:
            return str((await response.json(content_type=None))["code"])

    said = await asyncio.gather(*(change() for _ in range(12)))
    assert Counter(said) == {"bad_credentials": 5, "login_throttled": 7}
    assert await tried(api, "ann@example.com", PASSWORD) == "login_throttled"


async def test_a_hash_of_old_parameters_is_renewed_by_the_next_log_in(api: Api) -> None:
    old = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    await api.made.archive.add_user(str(Ids().user_id()), "old@example.com", old, "user")
    assert await tried(api, "old@example.com", PASSWORD) == "ok"
    row = await api.made.archive.user_by_email("old@example.com")
    assert row is not None
    assert not needs_rehash(row.password_hash)
    assert await tried(api, "old@example.com", PASSWORD) == "ok"


@pytest.mark.parametrize("sent", ["cross-site", "same-site"])
async def test_another_sites_page_logs_nobody_in(api: Api, sent: str) -> None:
    login = {"email": "ann@example.com", "password": PASSWORD}
    response = await api.client.post("/api/session", json=login, headers={"Sec-Fetch-Site": sent})
    await problem(response, 403, "csrf")
    assert "Set-Cookie" not in response.headers


async def test_the_audit_log_tells_where_somebody_logged_in_and_out(api: Api) -> None:
    session = await session_of(api, "ann")
    name = {**session, "X-Request-Id": "out-1"}
    assert (await api.client.delete("/api/session", headers=name)).status == 204
    out, come = await api.made.office.audit(AuditFilter(actor=api.ann), 0, 9)
    assert (come.action, come.object, out.action, out.request_id) == (
        "login", api.ann, "logout", "out-1",
    )  # fmt: skip
    assert come.request_id.startswith("req_")
    # The address as a keyed hash, the same one both times.
    assert re.fullmatch(r"a_[0-9a-f]{8}", come.address)
    assert come.address == out.address
