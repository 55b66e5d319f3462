"""Switching the pool off and on: who may, what lasts, what a job shows meanwhile."""

from __future__ import annotations

from api.switch import Switch
from shared.office import AuditFilter
from shared.sealing import Sealing
from shared.settings import Settings
from tests.integration.desk import Api, problem
from worker.senders import Senders


async def test_an_admin_switches_off_and_on_and_the_first_is_shown(api: Api) -> None:
    job = (await (await api.send()).json())["jobId"]
    await problem(await api.ask("ann", "POST", "/api/bulk/disable"), 403, "forbidden")
    body = {"reason": "wrong template"}
    first = await (await api.ask("root", "POST", "/api/bulk/disable", json=body)).json()
    assert (first["disabled"], first["reason"], first["by"]) == (True, "wrong template", api.root)
    again = await api.ask("root", "POST", "/api/bulk/disable")
    assert (again.status, await again.json()) == (200, first)
    response = await api.send()
    await problem(response, 503, "bulk_disabled")
    assert response.headers["Retry-After"] == "60"
    shown = await (await api.ask("ann", "GET", f"/api/bulk/jobs/{job}")).json()
    assert shown["wait"]["reason"] == "kill_switch"
    assert (await api.ask("ann", "POST", f"/api/bulk/jobs/{job}/pause")).status == 200
    await problem(
        await api.ask("ann", "POST", f"/api/bulk/jobs/{job}/resume"), 503, "bulk_disabled"
    )
    on = await (await api.ask("root", "POST", "/api/bulk/enable")).json()
    assert on == {"disabled": False, "reason": None, "by": None, "since": None}
    assert (await api.send()).status == 202
    rows = await api.made.office.audit(AuditFilter(object="pool"), 0, 10)
    assert [(row.action, row.result, row.actor) for row in rows] == [
        ("bulk.enable", "ok", api.root),
        ("bulk.disable", "ok", api.root),
        ("bulk.disable", "ok", api.root),
    ]
    assert rows[-1].reason == "wrong template"
    assert rows[0].address.startswith("a_")


async def test_a_switch_outlives_redis_and_every_process(api: Api, settings: Settings) -> None:
    await api.ask("root", "POST", "/api/bulk/disable")
    await api.made.queue.visitors.flushall()
    assert not await api.made.queue.is_off()
    made = api.made
    another = Switch(made.queue, settings, made.clock, made.archive)
    assert await another.is_off()
    # What every worker does each second, and whoever rebuilds a shard before it is open again.
    sealing = Sealing(settings.bulk_secret_key)
    senders = Senders(made.archive, made.queue, settings, sealing, made.clock)
    await senders.refresh()
    assert await made.queue.is_off()
    await api.ask("root", "POST", "/api/bulk/enable")
    assert not await made.queue.is_off()
    # A shard that a fail-over brought back as it was is told again, too.
    await made.queue.switch(0, "", 1)
    await senders.refresh()
    assert not await made.queue.is_off()


async def test_what_a_process_holds_enable_does_not_lift(api: Api) -> None:
    await api.made.queue.switch(0, "worker-elsewhere", 60_000)
    body = await (await api.ask("root", "POST", "/api/bulk/enable")).json()
    assert (body["disabled"], body["by"]) == (True, "DISABLE_BULK_MESSAGING")
    await api.made.queue.switch(0, "worker-elsewhere", 0)
    assert not (await (await api.ask("root", "POST", "/api/bulk/enable")).json())["disabled"]


async def test_a_switch_takes_a_reason_and_nothing_else(api: Api) -> None:
    for path in ("/api/bulk/disable", "/api/bulk/enable"):
        for body, code in (({"x": 1}, "unknown_field"), ({"reason": "a\u0000"}, "control_char")):
            await problem(await api.ask("root", "POST", path, json=body), 422, code)
        await problem(await api.ask("root", "POST", f"{path}?x=1"), 422, "unknown_parameter")
