"""Snapshots: their identity, what a job waits for, one data line, and where a reader goes on."""

from __future__ import annotations

import msgspec
import pytest

from api import progress
from shared.graph_codes import reason_of
from shared.models import TRIP, JobStatus, SenderStatus, Tally

JOB = "job_01m86db0v300hd99fdtgj8yepfzx"
SENDER = SenderStatus(id="s1", rate=50.0, rate_max=50.0, jobs=3, known=True)
STATUS = JobStatus(
    id=JOB,
    state="running",
    owner="u1",
    event="1795511671402-0",
    is_ended=False,
    tally=Tally(total=100, queued=40, in_flight=2, retrying=8, sent=45, failed=3, unknown=2),
    reasons={},
    delivered=0,
    read=0,
    undelivered=0,
    speed=49.6,
    version=1,
    created_ms=1,
    started_ms=2,
    finished_ms=0,
    expires_ms=0,
    scheduled_ms=0,
    reason="",
    by="",
    sender=SENDER,
    rate=0.0,
    weight=4,
    off=False,
    unreachable=False,
    stale=False,
    cursor=60,
    reserved=100,
)


def changed(**fields: object) -> JobStatus:
    return msgspec.structs.replace(STATUS, **fields)


def test_the_states_sum_to_the_total_and_the_outcomes_to_done() -> None:
    p = progress.progress_of(STATUS)
    parts = (p.queued, p.in_flight, p.retrying, p.sent, p.failed, p.skipped, p.cancelled, p.unknown)
    assert sum(parts) == p.total
    assert p.done == 50
    assert p.eta_s == 1


def test_codes_and_reasons_are_apart_and_at_most_twenty_codes_are_shown() -> None:
    reasons = {reason_of(131026) | TRIP: 4, reason_of(131026): 1, 1: 12, 999: 2}
    p = progress.progress_of(changed(reasons=reasons))
    assert p.by_code == {"131026": 5, "other": 2}
    assert p.by_reason == {"suppressed": 12}
    many = {number: 60 - number for number in range(16, 50)}
    p = progress.progress_of(changed(reasons=many))
    assert len(p.by_code) == 20
    assert sum(p.by_code.values()) == sum(many.values())


def test_nobody_promises_an_end_while_nothing_is_sent() -> None:
    assert progress.progress_of(changed(state="paused")).eta_s is None
    free = msgspec.structs.replace(SENDER, rate=0.0)
    assert progress.progress_of(changed(speed=0.0, sender=free)).eta_s is None
    assert progress.progress_of(changed(state="completed", tally=Tally(1, sent=1))).eta_s == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "sender_rate"),
        ({"rate": 2.0}, "job_rate"),
        ({"off": True}, "kill_switch"),
        ({"unreachable": True}, "graph_unreachable"),
        ({"reserved": 60}, "storage"),
        ({"stale": True}, "storage"),
        ({"state": "paused", "by": "u1", "reason": "lunch"}, "paused"),
        ({"state": "paused", "by": "system", "reason": "breaker:16"}, "paused"),
        (
            {"state": "paused", "by": "system", "reason": "template_paused:132015"},
            "template_paused",
        ),
        ({"state": "paused", "by": "system", "reason": "job_paused:http 413"}, "paused"),
        ({"state": "paused", "by": "u1", "reason": "template_paused:132015"}, "paused"),
        ({"sender": msgspec.structs.replace(SENDER, paused=True, why="token")}, "token_invalid"),
        (
            {"sender": msgspec.structs.replace(SENDER, paused=True, why="token:190")},
            "token_invalid",
        ),
        ({"sender": msgspec.structs.replace(SENDER, paused=True, why="waba:368")}, "sender_paused"),
        ({"sender": msgspec.structs.replace(SENDER, paused=True)}, "sender_paused"),
        ({"sender": msgspec.structs.replace(SENDER, blocked_until_ms=2000)}, "sender_blocked"),
    ],
)
def test_what_stands_in_the_way_is_named(fields: dict[str, object], reason: str) -> None:
    wait = progress.wait_of(changed(**fields), 1000)
    assert wait is not None
    assert wait.reason == reason


@pytest.mark.parametrize(
    ("fields", "by", "words"),
    [
        (
            {"sender": msgspec.structs.replace(SENDER, paused=True, why="token:190")},
            "system",
            "190: Access token expired or invalid",
        ),
        (
            {"sender": msgspec.structs.replace(SENDER, paused=True, why="waba:131042")},
            "system",
            "account",
        ),
        ({"sender": msgspec.structs.replace(SENDER, paused=True, why="lunch")}, None, "lunch"),
        (
            {"sender": msgspec.structs.replace(SENDER, paused=True, why="sender:throttled_out")},
            "system",
            "throttled out",
        ),
        (
            {
                "sender": msgspec.structs.replace(
                    SENDER, blocked_until_ms=1_795_511_671_402, why="waba:80007"
                )
            },
            None,
            "80007: WABA reached its rate limit",
        ),
        (
            {"state": "paused", "by": "system", "reason": f"breaker:{reason_of(132000)}"},
            "system",
            "132000",
        ),
        (
            {"state": "paused", "by": "system", "reason": "job_paused:131063"},
            "system",
            "131063: Marketing templates are disabled",
        ),
    ],
)
def test_a_wait_says_who_made_it_and_metas_own_meaning(
    fields: dict[str, object], by: str | None, words: str
) -> None:
    wait = progress.wait_of(changed(**fields), 1000)
    assert wait is not None
    assert wait.by == by
    assert words in wait.detail
    assert (wait.until is not None) == (wait.reason == "sender_blocked")


@pytest.mark.parametrize("state", ["scheduled", "cancelling", "completed", "cancelled"])
def test_nothing_stands_in_the_way_of_what_does_not_send(state: str) -> None:
    assert progress.wait_of(changed(state=state, off=True), 0) is None


def test_a_frame_is_an_id_and_one_data_line_whatever_people_wrote() -> None:
    status = changed(state="paused", by="u1", reason='x\n\ndata: {"type":"end"}\r\nid: 9-9')
    lines = progress.frame(status, 1795511671402, "progress").split(b"\n")
    assert lines[0] == b"id: 1795511671402-0"
    assert lines[2:] == [b"", b""]
    data = msgspec.json.decode(lines[1].removeprefix(b"data: "))
    assert (data["type"], data["jobId"], data["reset"]) == ("progress", JOB, False)
    assert data["at"] == "2026-11-24T09:14:31.402Z"
    assert b'"type":"end"' in progress.frame(changed(is_ended=True), 1, "progress")


@pytest.mark.parametrize(
    ("given", "end", "last", "answer"),
    [
        (None, None, "9-0", "snapshot"),
        (None, "7-0", "9-0", "snapshot"),
        ("7-0", None, "9-0", "nothing"),
        ("6-99", None, "9-0", "snapshot"),
        ("8-0", None, "9-0", "reset"),
        ("99-0", None, "9-0", "reset"),
        ("99-0", "7-0", "9-0", "reset"),
        ("7-0", "7-0", "9-0", "stop"),
        ("7-0", "7-0", "0-0", "stop"),
        ("8-0", "7-0", "9-0", "stop"),
        ("6-0", "7-0", "9-0", "snapshot"),
        ("", None, "9-0", "reset"),
        ("7", None, "9-0", "reset"),
        ("7-0\n", None, "9-0", "reset"),
        ("\u0667-0", None, "9-0", "reset"),
        (f"{1 << 64}-0", None, "9-0", "reset"),
        ("9" * 4096, None, "9-0", "reset"),
    ],
)
def test_where_a_reader_goes_on(given: str | None, end: str | None, last: str, answer: str) -> None:
    assert progress.decide_resume(given, "7-0", end, last) == answer
