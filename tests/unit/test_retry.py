from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.graph_codes import ROWS, reason_of
from shared.models import TRIP, Answer, Reason
from worker.retry import Decision, Waits, decide


def refused(code: int | None, http: int = 400, attempt: int = 1, **more: float) -> Decision:
    answer = Answer("rejected", http, code=code, **more)  # type: ignore[arg-type]
    return decide(answer, attempt, 3, 500, 0.5)


def test_an_acceptance_is_sent() -> None:
    assert decide(Answer("accepted", 200, wamid="w"), 1, 3, 500, 0).kind == "sent"


def test_what_never_left_goes_back_and_parks_the_endpoint() -> None:
    decision = decide(Answer("not_sent", why="refused"), 9, 3, 500, 0)
    assert (decision.kind, decision.scope_action, decision.scope) == ("back", "park", "endpoint")
    assert (decision.hold_s, decision.hold_max_s) == (1, 30)


@pytest.mark.parametrize(
    ("why", "reason"),
    [("timeout", Reason.TIMEOUT), ("reset", Reason.RESET), ("bad_reply", Reason.BAD_REPLY)],
)
def test_a_doubtful_attempt_is_unknown_and_never_repeated(why: str, reason: int) -> None:
    decision = decide(Answer("unknown", why=why), 1, 3, 500, 0)
    assert (decision.kind, decision.reason) == ("unknown", reason)


def test_retry_doubles_with_jitter_and_stays_in_place_while_short() -> None:
    waits = [refused(131000, 500, attempt) for attempt in (1, 2, 3)]
    assert [wait.delay_s for wait in waits] == [0.25, 0.5, 1.0]
    assert all(wait.in_place and wait.kind == "retry" for wait in waits)
    assert not decide(Answer("rejected", 500, code=131000), 4, 5, 1_000, 0.5).in_place
    assert refused(131000, 500, 4) == Decision("failed", reason=reason_of(131000))


def test_an_ambiguous_code_is_retried_twice_and_then_trips() -> None:
    assert [refused(1, attempt=n).kind for n in (1, 2, 3)] == ["retry", "retry", "failed"]
    assert refused(1, attempt=3).reason == reason_of(1) | TRIP


def test_backoff_and_pair_follow_their_tables_and_never_wait_in_place() -> None:
    longer = [decide(Answer("rejected", 500, code=131016), n, 5, 500, 0) for n in range(1, 7)]
    assert [wait.delay_s for wait in longer] == [30, 120, 600, 600, 600, 0]
    pair = [refused(131056, attempt=n) for n in range(1, 7)]
    assert [wait.delay_s for wait in pair] == [6, 16, 64, 256, 1024, 0]
    assert pair[-1].kind == longer[-1].kind == "failed"
    assert not any(wait.in_place or wait.scope_action for wait in pair + longer)


def test_a_capped_person_is_tried_once_more_a_day_later() -> None:
    assert (refused(131049).kind, refused(131049).delay_s) == ("retry", 86_400)
    assert refused(131049, attempt=2).kind == "failed"


def test_a_throttle_slows_the_sender_for_a_second_or_as_told() -> None:
    decision = refused(130429)
    assert (decision.kind, decision.scope_action, decision.hold_s) == ("back", "slow", 1)
    assert refused(None, 429, retry_after_s=9).hold_s == 9


def test_a_park_doubles_unless_graph_names_the_time() -> None:
    decision = refused(80007)
    assert (decision.scope, decision.hold_s, decision.hold_max_s) == ("waba", 60, 900)
    told = refused(80007, regain_s=300)
    assert (told.hold_s, told.hold_max_s) == (300, 300)
    assert refused(80008).scope == "waba"


@pytest.mark.parametrize(
    ("code", "http", "scope"),
    [
        (190, 401, "token"),
        (131031, 403, "waba"),
        (132001, 404, "template"),
        (33, 400, "sender"),
        (None, 302, "sender"),
        (None, 403, "token"),
        (None, 413, "job"),
        (131063, 400, "job"),
    ],
)
def test_a_pause_sends_the_recipient_back(code: int | None, http: int, scope: str) -> None:
    decision = refused(code, http)
    assert (decision.kind, decision.scope_action, decision.scope) == ("back", "pause", scope)


def test_content_errors_count_in_the_breaker() -> None:
    assert refused(132000).reason == reason_of(132000) | TRIP
    assert refused(999).reason == Reason.OTHER | TRIP
    assert refused(131026).reason == reason_of(131026)


def test_a_block_suppresses_the_person() -> None:
    assert (refused(130403).suppress_scope, refused(131050).suppress_scope) == ("all", "marketing")


@given(
    code=st.sampled_from([row.code for row in ROWS] + [None, 424242]),
    http=st.sampled_from([302, 400, 401, 408, 413, 429, 503]),
    attempt=st.integers(1, 31),
    max_retries=st.integers(0, 20),
    base_ms=st.integers(10, 60_000),
    spread=st.floats(0, 1, exclude_max=True),
)
def test_every_refusal_ends(
    code: int | None, http: int, attempt: int, max_retries: int, base_ms: int, spread: float
) -> None:
    decision = decide(Answer("rejected", http, code=code), attempt, max_retries, base_ms, spread)
    assert 0 <= decision.delay_s < 2**24
    assert decision.kind != "retry" or attempt <= max(5, max_retries)
    assert (decision.kind == "back") == (decision.scope_action is not None)
    assert not decision.in_place or decision.delay_s <= 2


# What a recipient goes through when Graph says nothing else: its waits, seconds (* = within its
# claim), and its end; or whom its error stops, for how long at first and at most.
STORIES = {
    "0.25* 0.5* 1* failed": [131000],
    "0.25* 0.5* failed trip": [1],
    "30 120 600 failed": [2, 131016, 133004],
    "6 16 64 256 1024 failed": [131056],
    "86400 failed": [131049],
    "failed": [130472, 131021, 131026, 131043, 131047, 131052, 131062, 132005, 137000],
    "failed all": [130403],
    "failed marketing": [131050],
    "failed trip": [
        *(100, 130497, 130501, 131008, 131009, 131030, 131051, 131053, 132000, 132008, 132012),
        *(132018, 135000),
    ],
    "slow sender 1 0": [130429],
    "park app 60 900": [4],
    "park waba 60 900": [80007, 80008],
    "park sender 60 300": [131057],
    "pause job 0 0": [131055, 131063, 134011, 134100, 139200],
    "pause sender 0 0": [
        *(33, 131037, 131045, 131048, 133000, 133005, 133006, 133008, 133009, 133010, 133015),
        133016,
    ],
    "pause template 0 0": [132001, 132007, 132015, 132016, 132068, 132069, 134102],
    "pause token 0 0": [0, 3, 10, 104, 190, 200, 131005],
    "pause waba 0 0": [368, 131031, 131042, 131064],
}


def story(code: int) -> str:
    waits = []
    for attempt in range(1, 32):
        decision = refused(code, attempt=attempt)
        if decision.kind == "back":
            action, scope = decision.scope_action, decision.scope
            return f"{action} {scope} {decision.hold_s:g} {decision.hold_max_s:g}"
        if decision.kind != "retry":
            end = [decision.kind, "trip" * bool(decision.reason & TRIP), decision.suppress_scope]
            return " ".join([*waits, *filter(None, end)])
        waits.append(f"{decision.delay_s:g}{'*' * decision.in_place}")
    raise AssertionError(code)


def test_every_code_of_the_table_has_the_story_that_was_agreed() -> None:
    found: dict[str, list[int]] = {}
    for row in ROWS:
        assert row.code is not None
        found.setdefault(story(row.code), []).append(row.code)
    assert found == STORIES
    assert {story(code) for code in (201, 250, 299)} == {"pause token 0 0"}


def test_a_resend_goes_on_as_far_as_retries_go_and_is_then_in_doubt() -> None:
    lost = Answer("unknown", why="timeout")
    found = [decide(lost, n, 2, 500, 0.5, resend=True) for n in (1, 2, 3)]
    assert [each.kind for each in found] == ["retry", "retry", "unknown"]
    assert [each.delay_s for each in found] == [0.25, 0.5, 0]
    assert found[-1].reason == Reason.TIMEOUT


def test_the_waits_of_the_table_are_arguments() -> None:
    waits = Waits(backoff=(1, 2), pair=(3,), slow=4, endpoint=5, endpoint_max=6, scale=0.5)

    def short(answer: Answer, attempt: int = 1) -> Decision:
        return decide(answer, attempt, 3, 500, 0.5, waits=waits)

    assert [short(Answer("rejected", 503, code=2), n).delay_s for n in (1, 2, 3)] == [1, 2, 2]
    assert short(Answer("rejected", 400, code=131056), 5).delay_s == 3
    assert short(Answer("throttled", 429)).hold_s == 4
    assert (short(Answer("not_sent")).hold_s, short(Answer("not_sent")).hold_max_s) == (5, 6)
    assert short(Answer("rejected", 400, code=131049)).delay_s == 43_200
    park = short(Answer("rejected", 400, code=80007))
    assert (park.hold_s, park.hold_max_s) == (30, 450)
    assert short(Answer("rejected", 400, code=80007, regain_s=300)).hold_s == 150
