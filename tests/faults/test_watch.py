"""Who watches, in stories: what is judged of it, and what a process does after a long stand."""

from __future__ import annotations

import json
from typing import Any

from api.client import Event
from tests.faults.enumerate import MACHINE, Enumeration
from tests.oracle import Connection, Job, Watched, told_in_order

NONE = {"sent": 0, "failed": 0, "skipped": 0, "unknown": 0, "cancelled": 0}
DONE = {**NONE, "sent": 2, "failed": 1}
TRUE = Job(b"", {"event": "9-0", "state": "completed", "sent": "2", "failed": "1"}, None, {})


def told(event_id: str, kind: str, *, reset: bool = False, **numbers: int) -> Event:
    state = "completed" if kind == "end" else "running"
    counts = {**NONE, **numbers, "total": 3}
    data = {"type": kind, "state": state, "reset": reset, "progress": counts}
    return Event(event_id, "", json.dumps(data), 0)


FIRST, END = told("5-0", "snapshot"), told("9-0", "end", **DONE)


def violations(*connections: tuple[str, int, list[Event]]) -> list[str]:
    watched = Watched("j", [Connection(*connection) for connection in connections])
    return [violation.text for violation in told_in_order(watched, TRUE)]


def after_it(*events: Event) -> list[str]:
    return violations(("", 200, list(events)), ("9-0", 204, []))


def test_what_only_rises_and_ends_once_is_in_order() -> None:
    assert not after_it(FIRST, told("6-0", "progress", unknown=1), END)
    assert not violations(
        ("", 200, [FIRST]), ("5-0", 503, []), ("5-0", 200, [END]), ("9-0", 204, [])
    )
    # An id may go back where the event says so, and its numbers with it.
    back = told("4-0", "snapshot", reset=True)
    assert not after_it(FIRST, told("6-0", "progress", sent=1), back, END)


def test_every_breach_of_the_order_is_seen() -> None:
    again, lost = told("5-0", "progress"), told("6-0", "progress", sent=1)
    for broken in (
        after_it(FIRST, again, END),
        after_it(told("6-0", "snapshot"), FIRST, END),
        after_it(lost, told("7-0", "progress"), END),
        # From a sent one to a failed one: only raised is allowed.
        after_it(lost, told("7-0", "progress", failed=1), END),
        after_it(END, told("9-1", "progress", **DONE)),
        after_it(END, told("9-1", "end", **DONE)),
        after_it(FIRST, told("9-0", "end", **{**DONE, "sent": 1})),
        after_it(FIRST, told("9-0", "end", **{**DONE, "sent": 1, "skipped": 1})),
        after_it(FIRST),
        violations(("", 200, [END]), ("9-0", 200, [])),
        violations(("", 200, [FIRST]), ("5-0", 204, [])),
    ):
        assert broken


def play(enumeration: Enumeration, *moves: str) -> Any:
    run = enumeration.replay(f"{MACHINE}:{'; '.join(moves)}")
    assert not run.violations, str(run)
    return run


def test_who_is_cut_off_in_an_event_gets_it_again_from_another_process(
    enumeration: Enumeration,
) -> None:
    begin = ("tune 2 1 0", "submit 3 0 0 hold", "start", "subscribe 0", "cut 0 120", "listen 1")
    play(enumeration, *begin, "turn 0", "reconnect 0 1", "listen 1")
    [browser] = enumeration.stage.audience.browsers
    cut, whole = browser.wires[:2]
    # The id of an event that did not come whole is not the reader's.
    assert (cut.left, [event.data for event in cut.events]) == (0, [""])
    assert whole.given == ""
    assert json.loads(whole.events[-1].data)["type"] == "end"


def test_a_process_that_stood_still_for_hours_makes_up_for_no_heartbeats(
    enumeration: Enumeration,
) -> None:
    # Each one looks at the credential, too.
    begin = ("tune 2 1 0", "submit 3 0 0 hold", "start", "subscribe 0", "listen 1")
    run = play(enumeration, *begin, "advance 3600000 0", "listen 1")
    looks = [effect for effect in run.trace if effect.name == "visitor_look"]
    assert 1 <= len(looks) <= 3
