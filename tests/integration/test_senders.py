"""Senders over HTTP: a token goes in and never comes out, and what changes is heard of."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from shared.archive import Archive
from shared.ids import Ids
from shared.office import AuditFilter
from shared.sealing import Sealing
from shared.settings import Secret, Settings
from tests.conftest import Processes, replaced
from tests.integration.desk import TEXT, Api, problem
from worker.default_sender import ensure_default
from worker.senders import Senders

TOKEN = "EAAG-canary-token-1234"  # noqa: S105 - of a test
FIELDS = {"name": "it-main", "phone_number_id": "1001", "access_token": TOKEN}


async def made(api: Api, **fields: Any) -> dict[str, Any]:
    response = await api.ask("root", "POST", "/api/senders", json={**FIELDS, **fields})
    assert response.status == 201, await response.text()
    body = dict(await response.json())
    assert response.headers["Location"] == f"/api/senders/{body['id']}"
    return body


async def test_a_token_goes_in_and_never_comes_out(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    sender = await made(api, number="+393331234567", rate=20, waba_id="77")
    assert sender["access_token"] == {
        "set": True, "last4": "1234", "set_at": sender["access_token"]["set_at"],
    }  # fmt: skip
    assert sender["number"] == "+•••4567"
    assert (sender["rate"], sender["burst"], sender["default"]) == (20.0, 5.0, False)
    path = f"/api/senders/{sender['id']}"
    shown = [
        await (await api.ask(who, "GET", where)).text()
        for who in ("root", "ann")
        for where in ("/api/senders", path, "/api/audit" if who == "root" else path)
    ]
    other = "EAAG-other-token-9876"
    response = await api.ask("root", "PATCH", path, json={"access_token": other})
    shown.append(await response.text())
    assert (await response.json())["access_token"]["last4"] == "9876"
    assert not [text for text in shown if "EAAG" in text or "+39333" in text]
    assert "access_token" not in (await (await api.ask("ann", "GET", path)).json())
    assert "EAAG" not in capsys.readouterr().out
    row = await api.made.archive.sender_by_name_or_id("it-main")
    assert row is not None
    assert Sealing(api.made.settings.bulk_secret_key).open(row.token_sealed) == other
    log = await api.made.office.audit(AuditFilter(object=sender["id"]), 0, 9)
    assert [line.action for line in log] == ["sender.token", "sender.add"]


async def test_workers_hear_of_a_change_at_their_next_look(api: Api) -> None:
    sender = await made(api, rate=20)
    m = api.made
    sealing = Sealing(m.settings.bulk_secret_key)
    senders = Senders(m.archive, m.queue, m.settings, sealing, m.clock)
    await senders.refresh()
    assert (await m.queue.sender_status(0, sender["id"])).rate == 20
    path = f"/api/senders/{sender['id']}"
    assert (await api.ask("root", "PATCH", path, json={"rate": 5, "burst": 2})).status == 200
    await senders.refresh()
    assert (await m.queue.sender_status(0, sender["id"])).rate_max == 5
    job = (await (await api.send(sender="it-main")).json())["jobId"]
    response = await api.ask("root", "POST", f"{path}/pause", json={"reason": "number review"})
    assert (await response.json())["state"] == "paused"
    await senders.refresh()
    assert senders.get(sender["id"]) is None
    waiting = await (await api.ask("ann", "GET", f"/api/bulk/jobs/{job}")).json()
    assert waiting["wait"]["reason"] == "sender_paused"
    assert "number review" in waiting["wait"]["detail"]
    await problem(await api.send(sender="it-main"), 422, "no_sender")
    assert (await (await api.ask("root", "POST", f"{path}/resume")).json())["state"] == "active"
    await senders.refresh()
    assert senders.get(sender["id"]) is not None
    assert (await api.send(sender="it-main")).status == 202


async def test_a_new_token_frees_what_only_the_old_one_stopped(api: Api) -> None:
    sender = await made(api)
    await api.made.archive.set_sender_state(sender["id"], "paused", "token:190", 0, "system")
    path = f"/api/senders/{sender['id']}"
    response = await api.ask("root", "PATCH", path, json={"access_token": "another"})
    assert (await response.json())["state"] == "active"


async def test_there_is_one_default_and_names_are_unique(api: Api) -> None:
    sender = await made(api, default=True)
    listed = (await (await api.ask("ann", "GET", "/api/senders")).json())["data"]
    assert [(row["name"], row["default"]) for row in listed] == [
        ("it-main", True), ("main", False),
    ]  # fmt: skip
    response = await api.ask("root", "POST", "/api/senders", json=FIELDS)
    await problem(response, 409, "name_taken")
    path = f"/api/senders/{sender['id']}"
    await problem(await api.ask("root", "PATCH", path, json={"name": "main"}), 409, "name_taken")
    response = await api.ask("root", "PATCH", path, json={"default": False})
    await problem(response, 422, "validation_failed")
    main = listed[1]["id"]
    assert (
        await api.ask("root", "PATCH", f"/api/senders/{main}", json={"default": True})
    ).status == 200
    assert not (await (await api.ask("ann", "GET", path)).json())["default"]


@pytest.mark.parametrize(
    "fields",
    [
        *({"name": bad} for bad in ("", "Main", "a_b", "x" * 33, "a\n")),
        *({"phone_number_id": bad} for bad in ("", "1 2", "+1", 1001, "1/../2")),
        *({"access_token": bad} for bad in ("", "a b", "a\r\nX: y", "é", None)),
        *({"rate": bad} for bad in (-1, 1001, "fast", True)),
        *({"burst": bad} for bad in (0, 0.5, 51)),
        *({"graph_api_version": bad} for bad in ("22", "v22", "v22.0/x")),
        *({"allowed_regions": bad} for bad in (["XX"], ["de"], "DE", [1])),
        {"number": "0039333"},
        {"waba_id": "x"},
        {"state": "active"},
        {"shard": 1},
    ],
    ids=str,
)
async def test_a_sender_is_refused(api: Api, fields: dict[str, Any]) -> None:
    response = await api.ask("root", "POST", "/api/senders", json={**FIELDS, **fields})
    body = await response.json(content_type="application/problem+json")
    assert response.status == 422
    assert body["code"] in {"validation_failed", "unknown_field", "control_char"}, body
    assert "EAAG" not in str(body)


async def test_only_an_admin_touches_senders_and_absent_ones_are_404(api: Api) -> None:
    sender = await made(api)
    for method, path in (
        ("POST", "/api/senders"),
        ("PATCH", f"/api/senders/{sender['id']}"),
        ("POST", f"/api/senders/{sender['id']}/pause"),
        ("POST", f"/api/senders/{sender['id']}/resume"),
    ):
        await problem(await api.ask("ann", method, path, json={}), 403, "forbidden")
    for absent in (Ids().object_id("snd"), "x", "snd_1"):
        path = f"/api/senders/{absent}"
        await problem(await api.ask("root", "GET", path), 404, "not_found")
        await problem(await api.ask("root", "PATCH", path, json={}), 404, "not_found")
        await problem(await api.ask("root", "POST", f"{path}/pause"), 404, "not_found")


async def test_a_sender_with_regions_writes_to_no_other(api: Api) -> None:
    sender = await made(api, allowed_regions=["IT", "US"], default=True)
    rows = ["+393331234567", "+15550000001", "+14165550123", "+4915112345678"]
    told = await problem(await api.send(recipients=rows), 422, "invalid_recipients")
    assert [(row["row"], row["code"]) for row in told["errors"]] == [
        (2, "region_not_allowed"), (3, "region_not_allowed"),
    ]  # fmt: skip
    response = await api.send(recipients=rows, on_invalid="skip")
    intake = (await response.json())["intake"]
    assert (response.status, intake["accepted"], intake["invalid"]) == (202, 2, 2)
    body = {"recipients": rows, "message": TEXT}
    looked = await (await api.ask("ann", "POST", "/api/bulk/preflight", json=body)).json()
    assert not looked["ok"]
    assert {row["code"] for row in looked["problems"]} == {"region_not_allowed"}
    path = f"/api/senders/{sender['id']}"
    response = await api.ask("root", "PATCH", path, json={"allowed_regions": []})
    assert (await response.json())["allowed_regions"] == []
    assert (await api.send(recipients=rows)).status == 202


async def test_the_environments_sender_keeps_what_an_admin_has_set(api: Api) -> None:
    """A new token by WHATSAPP_ACCESS_TOKEN used to forget the number's name and the version."""
    sealing = Sealing(api.made.settings.bulk_secret_key)
    settings = replaced(
        api.made.settings,
        whatsapp_phone_number_id="2002",
        whatsapp_access_token=Secret("old"),
    )
    await ensure_default(api.made.archive, settings, sealing, Ids())
    made = await api.made.archive.sender_by_name_or_id("default")
    assert made is not None
    path = f"/api/senders/{made.id}"
    change = {"number": "+393331234567", "graph_api_version": "v21.0", "rate": 7}
    response = await api.ask("root", "PATCH", path, json=change)
    assert response.status == 200, await response.text()
    for number, name, token in (("2002", "+•••4567", "new"), ("3003", "", "new")):
        changed = replaced(
            settings, whatsapp_phone_number_id=number, whatsapp_access_token=Secret(token)
        )
        await ensure_default(api.made.archive, changed, sealing, Ids())
        shown = await (await api.ask("root", "GET", path)).json()
        assert (shown["phone_number_id"], shown["number"] or "") == (number, name)
        assert (shown["graph_api_version"], shown["rate"]) == ("v21.0", 7.0)


async def test_a_token_in_a_file_is_read_again_at_sighup(
    settings: Settings,
    archive: Archive,
    processes: Processes,
    tmp_path: Path,
    eventually: Callable[..., Awaitable[Any]],
) -> None:
    file, sealing = tmp_path / "token", Sealing(settings.bulk_secret_key)
    file.write_text("EAAG-first\n")
    worker = processes.worker(
        WHATSAPP_PHONE_NUMBER_ID="1001", WHATSAPP_ACCESS_TOKEN_FILE=str(file),
        GRAPH_BASE_URL="http://127.0.0.1:9",
    )  # fmt: skip

    async def token() -> str:
        row = await archive.sender_by_name_or_id("default")
        return sealing.open(row.token_sealed) if row else ""

    async def is_it(text: str) -> bool:
        return await token() == text

    def says(event: str) -> bool:
        return event in worker.log.read_text()

    await eventually(lambda: says("worker.started"), within_s=20)
    assert await is_it("EAAG-first")
    # What cannot be a token is refused, and the old one stays.
    file.write_text("EAAG second\n")
    worker.send(signal.SIGHUP)
    await eventually(lambda: says("settings.not_read_again"), within_s=10)
    assert await is_it("EAAG-first")
    file.write_text("EAAG-second\n")
    worker.send(signal.SIGHUP)
    await eventually(lambda: is_it("EAAG-second"), within_s=10)
    assert worker.is_running
    assert "EAAG" not in worker.log.read_text()
