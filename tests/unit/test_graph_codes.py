from __future__ import annotations

from shared.graph_codes import ROWS, code_of_reason, reason_of, row_of

BY_ACTION = {
    "retry": [1, 131000],
    "backoff": [2, 131016, 133004],
    "slow": [130429],
    "park": [4, 80007, 80008, 131057],
    "pair": [131056],
    "defer": [131049],
    "suppress": [130403, 131050],
    "ignore": [131052],
    "fail": [130472, 131021, 131026, 131043, 131047, 131062, 132005, 137000],
    "trip": [
        100,
        130497,
        130501,
        131008,
        131009,
        131030,
        131051,
        131053,
        132000,
        132008,
        132012,
        132018,
        135000,
    ],
    "pause": [
        0,
        3,
        10,
        33,
        104,
        190,
        200,
        368,
        131005,
        131031,
        131037,
        131042,
        131045,
        131048,
        131055,
        131063,
        131064,
        132001,
        132007,
        132015,
        132016,
        132068,
        132069,
        133000,
        133005,
        133006,
        133008,
        133009,
        133010,
        133015,
        133016,
        134011,
        134100,
        134102,
        139200,
    ],
}


def test_every_code_has_the_action_that_was_agreed() -> None:
    assert {
        action: [row.code for row in ROWS if row.action == action] for action in BY_ACTION
    } == BY_ACTION
    assert len(ROWS) == sum(map(len, BY_ACTION.values()))


def test_a_reason_number_leads_back_to_its_code() -> None:
    for row in ROWS:
        assert code_of_reason(reason_of(row.code)) == row.code
    assert reason_of(200) == reason_of(299)
    assert code_of_reason(5) is None


def test_first_and_last_rows_keep_their_places_because_jobs_store_them() -> None:
    assert (reason_of(0), reason_of(130429), reason_of(139200)) == (16, 31, 86)


def test_answers_without_a_code_are_decided_by_their_status() -> None:
    scopes = {
        status: (row_of(None, status).action, row_of(None, status).scope)
        for status in (301, 400, 401, 403, 404, 408, 413, 425, 429)
    }
    assert scopes == {
        301: ("pause", "sender"),
        400: ("pause", "sender"),
        401: ("pause", "token"),
        403: ("pause", "token"),
        404: ("pause", "sender"),
        408: ("retry", "recipient"),
        413: ("pause", "job"),
        425: ("retry", "recipient"),
        429: ("slow", "sender"),
    }


def test_an_unlisted_code_is_tried_again_only_when_graph_calls_it_transient() -> None:
    assert row_of(999, 400).action == "trip"
    assert row_of(999, 400, transient=True).action == "retry"
    assert row_of(999, 503).action == "retry"
