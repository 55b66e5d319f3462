"""What happened to a job, told to its owner: by whom, when, why."""

from __future__ import annotations

from typing import Any

from api.progress import pause_of
from shared.models import OutcomeEntry, State
from tests.integration.desk import Api, come_to, end


async def told(api: Api, job: str, who: str = "ann") -> list[dict[str, Any]]:
    response = await api.ask(who, "GET", f"/api/bulk/jobs/{job}?expand=timeline")
    assert response.status == 200, await response.text()
    rows: list[dict[str, Any]] = (await response.json())["timeline"]
    assert rows == sorted(rows, key=lambda row: row["at"], reverse=True)
    return rows


def words(rows: list[dict[str, Any]]) -> list[tuple[str, str | None, str | None]]:
    return [(row["event"], row["by"], row["reason"]) for row in rows]


async def test_what_people_do_to_a_job_stands_in_its_timeline(api: Api) -> None:
    job = (await (await api.send()).json())["jobId"]
    path = f"/api/bulk/jobs/{job}"
    assert (await api.ask("ann", "POST", f"{path}/pause", json={"reason": "lunch"})).status == 200
    assert (await api.ask("root", "POST", f"{path}/resume")).status == 200
    assert (await api.ask("ann", "POST", f"{path}/resume")).status == 409
    assert (await api.ask("ann", "PATCH", path, json={"name": "x", "rate": 5})).status == 200
    assert (await api.ask("root", "GET", path)).status == 200
    assert (await api.ask("ann", "POST", f"{path}/cancel", json={"reason": "late"})).status == 200
    # Neither who looked at it nor what was refused has moved it.
    assert words(await told(api, job)) == [
        ("cancelled", None, None),
        ("cancelling", api.ann, "late"),
        ("changed", api.ann, "name, rate"),
        ("resumed", api.root, None),
        ("paused", api.ann, "lunch"),
        ("accepted", api.ann, None),
    ]


async def test_what_stops_a_job_by_itself_stands_there_too_and_once(api: Api) -> None:
    job = (await (await api.send()).json())["jobId"]

    def turn(state: str, version: int, by: str, text: str) -> OutcomeEntry:
        return OutcomeEntry(f"{version}-0", "state", job, job_state=state, version=version,
                            by=by, text=text)  # fmt: skip

    stopped = turn("paused", 3, "system", "template_paused:132015")
    opened = turn("running", 4, "system", "template_approved")
    for entry in (turn("running", 2, "", ""), stopped, stopped, opened, opened):
        await api.made.archive.record([entry])
    await api.made.archive.record([turn("paused", 5, api.ann, "lunch")])
    assert [row for row in words(await told(api, job)) if row[1] == "system"] == [
        ("resumed", "system", "template approved"),
        ("paused", "system", pause_of("system", "template_paused:132015").detail),
    ]
    log = await api.ask("root", "GET", f"/api/audit?object={job}&action=job.pause")
    (line,) = (await log.json())["data"]
    assert (line["actor"], line["result"], line["address"]) == ("system", "ok", None)
    assert line["reason"] == pause_of("system", "template_paused:132015").detail
    # A job that goes on to its end was neither paused nor let go on by it.
    await api.made.archive.record([turn("paused", 6, "system", "breaker:1")])
    await api.made.archive.record([turn("completed", 7, "system", "breaker:1")])
    await end(api, job)
    events = [row for row in words(await told(api, job)) if row[1] == "system"]
    assert [event for event, _, _ in events] == ["resumed", "paused"]


async def test_a_retry_is_told_with_its_child(api: Api) -> None:
    job = (await (await api.send()).json())["jobId"]
    await come_to(api, job, *((n, State.FAILED, 131000) for n in range(3)))
    await end(api, job)
    response = await api.ask("ann", "POST", f"/api/bulk/jobs/{job}/retry", json={})
    child = (await response.json())["jobId"]
    assert ("retried", api.ann, child) in words(await told(api, job))
    assert "retried" not in {row["event"] for row in await told(api, child)}


async def test_the_newest_fifty_are_shown(api: Api) -> None:
    job = (await (await api.send()).json())["jobId"]
    path = f"/api/bulk/jobs/{job}"
    for number in range(55):
        response = await api.ask("ann", "PATCH", path, json={"name": f"n{number}"})
        assert response.status == 200
    rows = await told(api, job)
    assert len(rows) == 50
    assert {row["event"] for row in rows} == {"changed"}
