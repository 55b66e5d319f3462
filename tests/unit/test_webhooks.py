"""What a body says is read part by part; one that is wrong spoils none of the others."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.models import Status
from shared.opaque import opaque_for
from shared.sealing import Sealing
from shared.settings import Secret
from worker.retry import decide_late
from worker.webhooks import RUNGS, Wish, read

KEY = b"k" * 32
JOB = "job_01m86db0v300hd99fdtgj8yepfzx"
OPAQUE = opaque_for(KEY, JOB)(17, 2)
GOOD: dict[str, Any] = {
    "id": "wamid.1",
    "status": "delivered",
    "timestamp": "1795511671",
    "recipient_id": "15550000001",
    "biz_opaque_callback_data": OPAQUE,
    "pricing": {"billable": True, "type": "regular", "category": "utility"},
}
READ = Status("wamid.1", 3, 1795511671000, JOB, 17, 2, number="1001")


def body(*statuses: Any, field: str = "messages", **more: Any) -> bytes:
    value = {"metadata": {"phone_number_id": "1001"}, "statuses": list(statuses), **more}
    entry = {"id": "0", "changes": [{"field": field, "value": value}]}
    return json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()


def test_a_status_names_its_recipient_by_the_opaque_value() -> None:
    told = read(body(GOOD), KEY)
    assert (told.statuses, told.wishes, told.odd) == ([READ], [], Counter())


def test_a_message_sent_before_another_key_came_first_is_still_known() -> None:
    old, new = Secret("o" * 32), Secret("n" * 32)
    before, after = Sealing((old,)), Sealing((new, old))
    value = opaque_for(before.derive("opaque"), JOB)(17, 2)
    hook = body({**GOOD, "biz_opaque_callback_data": value})
    key, older = after.derive("opaque"), after.derive_older("opaque")
    assert read(hook, key, older_keys=older).statuses == [READ]
    assert read(hook, key).statuses == [
        msgspec.structs.replace(READ, job="", position=0, attempt=0)
    ]


def test_an_opaque_value_of_somebody_else_names_nobody() -> None:
    for opaque in ("", "x", opaque_for(b"another", JOB)(17, 2), OPAQUE + "0", 5, None, {}):
        [status] = read(body({**GOOD, "biz_opaque_callback_data": opaque}), KEY).statuses
        assert (status.job, status.position) == ("", 0)


@pytest.mark.parametrize("word", RUNGS)
def test_each_word_has_its_rung(word: str) -> None:
    [status] = read(body({**GOOD, "status": word}), KEY).statuses
    assert status.receipt == RUNGS[word]


@pytest.mark.parametrize(
    "change",
    [
        {"status": "teleported"},
        {"status": 5},
        {"id": ""},
        {"id": "a\0b"},
        {"id": "a b"},
        {"id": "x" * 257},
        {"id": None},
        {"timestamp": "yesterday"},
        {"timestamp": "-1"},
        {"timestamp": "1" * 12},
        {"timestamp": 1.5},
        {"timestamp": "\u0661"},
    ],
)
def test_a_status_that_cannot_be_used_spoils_none_beside_it(change: dict[str, Any]) -> None:
    told = read(body({**GOOD, **change}, GOOD), KEY)
    assert told.statuses == [READ]
    assert told.odd == Counter(unreadable=1)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([{"code": 131026, "error_data": {"details": "to 15550000001"}}], (131026, "to ***")),
        ([{"code": 131026, "message": "m"}, {"code": 1}], (131026, "m")),
        ([{"code": "131026", "title": "t"}], (None, "t")),
        ([{"code": 2**40}], (None, None)),
        ([{"code": True, "error_data": "x", "message": 5}], (None, None)),
        ([], (None, None)),
        ("x", (None, None)),
        (None, (None, None)),
        ([{"code": 1, "message": "a\0b"}], (1, "ab")),
    ],
)
def test_a_failure_keeps_its_code_and_no_number(
    errors: Any, expected: tuple[int | None, str | None]
) -> None:
    [status] = read(body({**GOOD, "status": "failed", "errors": errors}), KEY).statuses
    text = status.text
    assert status.code == expected[0]
    if expected[1] == "to ***":
        assert text is not None
        assert "15550000001" not in text
    else:
        assert text == expected[1]


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"object":1}']
)
def test_what_is_no_webhook_is_counted(raw: bytes) -> None:
    assert read(raw, KEY).odd == Counter(unreadable=1)


def test_another_object_is_foreign_and_another_field_is_nothing() -> None:
    assert read(b'{"object":"page","entry":[{}]}', KEY).odd == Counter(foreign=1)
    told = read(body(GOOD, field="group_lifecycle_update"), KEY)
    assert (told.statuses, told.odd) == ([], Counter(ignored=1))


def test_wishes_are_read_and_foreign_ones_counted() -> None:
    wishes = [
        {"wa_id": "15550000001", "category": "marketing_messages", "value": value,
         "timestamp": 1795511671}
        for value in ("stop", "resume", "perhaps")
    ]  # fmt: skip
    told = read(body(user_preferences=wishes), KEY)
    at_ms = 1795511671000
    assert told.wishes == [
        Wish(15550000001, at_ms, is_stop=True, number="1001"),
        Wish(15550000001, at_ms, is_stop=False, number="1001"),
    ]
    assert told.odd == Counter(unreadable=1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*GOOD, "errors", "code", "error_data"]), inner, max_size=4
        )
    ),
    max_leaves=9,
)


@given(JSON, st.sampled_from(["object", "entry", "changes", "value", "statuses", "metadata"]))
def test_nothing_that_is_json_raises(value: Any, place: str) -> None:
    whole = json.loads(body(GOOD))
    inside = {
        "object": whole,
        "entry": whole,
        "changes": whole["entry"][0],
        "value": whole["entry"][0]["changes"][0],
        "statuses": whole["entry"][0]["changes"][0]["value"],
        "metadata": whole["entry"][0]["changes"][0]["value"],
    }[place]
    inside[place] = value
    read(json.dumps(whole).encode(), KEY)


@given(st.binary(max_size=60))
def test_no_bytes_raise(raw: bytes) -> None:
    read(raw, KEY)


@pytest.mark.parametrize(
    ("code", "held", "expected"),
    [
        (132015, True, ("pause", "template")),
        (132015, False, ("pause", "template")),
        (135000, True, ("pause", "portfolio")),
        (135000, False, None),
        (131031, False, ("pause", "waba")),
        (131048, False, ("pause", "sender")),
        (132001, False, ("pause", "template")),
        (132016, False, ("pause", "template")),
        (33, False, ("pause", "sender")),
        (131055, False, ("pause", "job")),
        (131057, False, ("park", "sender")),
        (4, False, None),
        (131053, False, None),
        (130429, False, ("slow", "sender")),
        (131026, True, None),
        (131050, False, None),
        (190, False, None),
        (999_999, False, None),
    ],
)
def test_a_late_failure_stops_whom_it_concerns(
    code: int, *, held: bool, expected: tuple[str, str] | None
) -> None:
    decision = decide_late(code, is_held=held)
    assert (decision and (decision.scope_action, decision.scope)) == expected
