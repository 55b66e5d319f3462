"""The suppression list over HTTP: who adds, who lifts, and that it is there once."""

from __future__ import annotations

import pytest

from shared.ids import Ids
from shared.office import AuditFilter
from tests.integration.desk import Api, problem

PHONE = "+393331234567"


async def test_an_entry_is_there_once_until_an_admin_lifts_it(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"phone": PHONE, "reason": "asked by letter"}
    first = await api.ask("ann", "POST", "/api/suppressions", json=body)
    made = await first.json()
    assert (first.status, made["scope"], made["by"], made["source"]) == (201, "all", api.ann, "api")
    again = await api.ask("ben", "POST", "/api/suppressions", json={"phone": PHONE})
    assert (again.status, await again.json()) == (200, made)
    other = {"phone": PHONE, "scope": "marketing"}
    assert (await api.ask("ben", "POST", "/api/suppressions", json=other)).status == 201
    listed = await (await api.ask("ben", "GET", "/api/suppressions?limit=1")).json()
    assert [row["scope"] for row in listed["data"]] == ["marketing"]
    rest = f"/api/suppressions?limit=1&cursor={listed['next_cursor']}"
    assert (await (await api.ask("ben", "GET", rest)).json())["data"] == [made]
    narrowed = await (await api.ask("ben", "GET", "/api/suppressions?scope=all")).json()
    assert narrowed["data"] == [made]
    path = f"/api/suppressions/{made['id']}"
    await problem(await api.ask("ann", "DELETE", path), 403, "forbidden")
    assert (await api.ask("root", "DELETE", path)).status == 204
    await problem(await api.ask("root", "DELETE", path), 404, "not_found")
    changes = await api.made.archive.suppressions()
    assert [(c.scope, c.is_lifted, c.change) for c in changes] == [
        ("marketing", False, 2), ("all", True, 3),
    ]  # fmt: skip
    anew = await api.ask("ann", "POST", "/api/suppressions", json=body)
    assert anew.status == 201
    log = await api.made.office.audit(AuditFilter(object=made["id"]), 0, 9)
    assert [row.action for row in log] == ["suppression.lift", "suppression.add", "suppression.add"]
    assert not [row for row in log if "39333" in str(row) or "letter" in str(row)]
    assert "39333" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "code"),
    [
        *(({"phone": bad}, "validation_failed") for bad in ("", "x", "0039333", 1, None, "+1")),
        ({}, "validation_failed"),
        ({"phone": PHONE, "scope": "some"}, "validation_failed"),
        ({"phone": PHONE, "id": "sup_x"}, "unknown_field"),
        ({"phone": PHONE, "reason": "a\u0000"}, "control_char"),
        ({"phone": PHONE + "\n"}, "control_char"),
    ],
    ids=str,
)
async def test_an_entry_is_refused(api: Api, body: dict[str, object], code: str) -> None:
    response = await api.ask("ann", "POST", "/api/suppressions", json=body)
    told = await problem(response, 422, code)
    assert "39333" not in str(told)


async def test_what_is_absent_is_404_and_a_filter_is_offered_or_not(api: Api) -> None:
    for absent in (Ids().object_id("sup"), "x"):
        path = f"/api/suppressions/{absent}"
        await problem(await api.ask("root", "DELETE", path), 404, "not_found")
    await problem(await api.ask("ann", "GET", "/api/suppressions?scope=x"), 422, "bad_filter")
    response = await api.ask("ann", "GET", "/api/suppressions?phone=1")
    await problem(response, 422, "unknown_parameter")
