"""What Meta tells of templates, accounts and numbers: the shapes of its pages, and what follows."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.notices import FIELDS, Notice
from worker.webhooks import read

WABA = "102290129340398"
TEMPLATE = {
    "message_template_id": 1689556908129832,
    "message_template_name": "order_confirmation",
    "message_template_language": "en-US",
}
STATUS = {**TEMPLATE, "reason": "NONE", "message_template_category": "MARKETING"}


def body(field: str, value: Any, *, waba: Any = WABA, **entry: Any) -> bytes:
    changes = [{"value": value, "field": field}]
    made = {"id": waba, "time": 1751247548, "changes": changes, **entry}
    return json.dumps({"object": "whatsapp_business_account", "entry": [made]}).encode()


def notice(field: str, value: Any) -> Notice:
    told = read(body(field, value), b"k")
    assert told.odd == Counter()
    [found] = told.notices
    return found


def restriction(*types: str) -> dict[str, Any]:
    info = [{"restriction_type": each, "expiration": 1641330498} for each in types]
    return {"event": "ACCOUNT_RESTRICTION", "restriction_info": info}


@pytest.mark.parametrize(
    ("event", "more", "action", "why"),
    [
        ("APPROVED", {}, "open_template", ""),
        ("REINSTATED", {}, "open_template", ""),
        ("PAUSED", {"other_info": {"title": "FIRST_PAUSE", "description": "for 3 hours"}},
         "pause_template", "132015"),
        ("DISABLED", {"disable_info": {"disable_date": 1751234563}}, "pause_template", "132016"),
        ("REJECTED", {"reason": "INVALID_FORMAT", "rejection_info": {"reason": "x"}}, "show", ""),
        ("PENDING_DELETION", {"reason": None}, "show", ""),
        ("FLAGGED", {}, "show", ""),
        ("SOMETHING_NEW", {}, "show", ""),
    ],
)  # fmt: skip
def test_the_status_of_a_template_pauses_it_opens_it_or_makes_its_list_old(
    event: str, more: dict[str, Any], action: str, why: str
) -> None:
    found = notice("message_template_status_update", {**STATUS, "event": event, **more})
    assert (found.action, found.why, found.event) == (action, why, event)
    assert (found.waba_id, found.at_s) == (WABA, 1751247548)
    assert (found.name, found.language) == ("order_confirmation", "en_US")
    assert found.subject == "template:order_confirmation:en_US"
    assert found.is_of_template


@pytest.mark.parametrize(
    ("field", "more", "event"),
    [
        ("message_template_quality_update",
         {"previous_quality_score": "GREEN", "new_quality_score": "YELLOW"}, "YELLOW"),
        ("template_category_update",
         {"previous_category": "MARKETING", "new_category": "UTILITY"}, "UTILITY"),
        ("template_category_update",
         {"correct_category": "MARKETING", "new_category": "UTILITY"}, "UTILITY"),
        ("message_template_components_update",
         {"message_template_title": "hi", "message_template_element": "hello {{1}}"}, ""),
    ],
)  # fmt: skip
def test_whatever_changes_a_template_makes_its_list_old(
    field: str, more: dict[str, Any], event: str
) -> None:
    found = notice(field, {**TEMPLATE, **more})
    assert found.is_of_template
    assert (found.action, found.event, found.subject) == ("show", event, "")


@pytest.mark.parametrize(
    ("value", "action", "level", "subject"),
    [
        ({"event": "DISABLED_UPDATE",
          "ban_info": {"waba_ban_state": "DISABLE", "waba_ban_date": "April 17, 2025"}},
         "pause_account", "error", "account"),
        ({"event": "DISABLED_UPDATE", "ban_info": {"waba_ban_state": "SCHEDULE_FOR_DISABLE"}},
         "pause_account", "error", "account"),
        ({"event": "DISABLED_UPDATE", "ban_info": {"waba_ban_state": "REINSTATE"}},
         "show", "warning", "account"),
        ({"event": "DISABLED_UPDATE"}, "pause_account", "error", "account"),
        ({"event": "DISABLED_UPDATE", "ban_info": ["DISABLE"], "restriction_info": {"x": []}},
         "pause_account", "error", "account"),
        (restriction("RESTRICTED_BIZ_INITIATED_MESSAGING", "RESTRICTED_ADD_PHONE_NUMBER_ACTION"),
         "pause_account", "error", "account"),
        (restriction("RESTRICTED_CUSTOMER_INITIATED_MESSAGING"),
         "pause_account", "error", "account"),
        (restriction("RESTRICTED_SOMETHING_NEW"), "pause_account", "error", "account"),
        (restriction("RESTRICTED_ADD_PHONE_NUMBER_ACTION"), "show", "warning", ""),
        ({**restriction("RESTRICTED_USER_INITIATED_CALLING"), "phone_number": "15550783881"},
         "show", "warning", ""),
        ({"event": "ACCOUNT_VIOLATION", "violation_info": {"violation_type": "SCAM"}},
         "pause_account", "error", "account"),
        ({"event": "ACCOUNT_VIOLATION",
          "violation_info": {"violation_type": "LOW_CALLING_QUALITY"}},
         "show", "warning", ""),
        ({"event": "ACCOUNT_DELETED"}, "pause_account", "error", "account"),
        ({"event": "PARTNER_ADDED", "waba_info": {"waba_id": "1"}}, "show", "info", ""),
        ({"event": "VOLUME_BASED_PRICING_TIER_UPDATE", "volume_tier_info": {"tier": "0:99"}},
         "show", "info", ""),
    ],
)  # fmt: skip
def test_an_account_is_stopped_by_what_takes_its_messages(
    value: dict[str, Any], action: str, level: str, subject: str
) -> None:
    found = notice("account_update", value)
    assert (found.action, found.level, found.subject) == (action, level, subject)
    assert found.why == (value["event"].lower() if action == "pause_account" else "")


@pytest.mark.parametrize(
    ("kind", "severity", "status", "action", "level"),
    [
        ("INCREASED_CAPABILITIES_ELIGIBILITY_DEFERRED", "WARNING", "ACTIVE", "show", "warning"),
        ("INCREASED_CAPABILITIES_ELIGIBILITY_FAILED", "CRITICAL", "ACTIVE", "show", "error"),
        ("OBA_APPROVED", "INFORMATIONAL", "NONE", "show", "info"),
        ("PROFILE_PICTURE_LOST", None, None, "show", "warning"),
        ("ACCOUNT_RESTRICTED", "CRITICAL", "ACTIVE", "pause_account", "error"),
        ("ACCOUNT_RESTRICTED", "CRITICAL", "NONE", "show", "error"),
    ],
)
def test_an_alert_is_told_by_its_severity_and_stops_only_when_it_restricts(
    kind: str, severity: str | None, status: str | None, action: str, level: str
) -> None:
    alert = {"alert_type": kind, "alert_severity": severity, "alert_status": status}
    value = {"entity_type": "BUSINESS", "entity_id": "506914307656634", "alert_info": alert}
    found = notice("account_alerts", value)
    assert (found.action, found.level) == (action, level)


@pytest.mark.parametrize(
    ("field", "value", "event"),
    [
        ("phone_number_quality_update",
         {"display_phone_number": "15550783881", "event": "THROUGHPUT_UPGRADE",
          "current_limit": "TIER_UNLIMITED"}, "THROUGHPUT_UPGRADE:TIER_UNLIMITED"),
        ("phone_number_quality_update",
         {"display_phone_number": "15550783881", "event": "ONBOARDING", "old_limit": "TIER_250",
          "max_daily_conversations_per_business": "TIER_2K"}, "ONBOARDING:TIER_2K"),
        ("business_capability_update",
         {"max_daily_conversations_per_business": 2000, "max_phone_numbers_per_waba": 25}, "2000"),
        ("business_capability_update",
         {"max_daily_conversation_per_phone": -1, "max_phone_numbers_per_waba": 25}, "UNLIMITED"),
        ("business_capability_update",
         {"max_daily_conversations_per_business": "TIER_UNLIMITED"}, "TIER_UNLIMITED"),
    ],
)  # fmt: skip
def test_limits_are_shown_without_the_number(field: str, value: Any, event: str) -> None:
    found = notice(field, value)
    assert (found.action, found.level, found.event) == ("show", "info", event)
    assert "15550783881" not in repr(found)


@pytest.mark.parametrize(
    "raw",
    [
        body("message_template_status_update", {"event": "PAUSED"}),
        body("message_template_status_update", {**STATUS, "event": 5}),
        body("message_template_status_update", {**STATUS, "event": "a\0b"}),
        body("message_template_status_update", {**STATUS, "event": "x" * 65}),
        body("message_template_status_update",
             {**STATUS, "event": "PAUSED", "message_template_name": "x'; DROP TABLE"}),
        body("message_template_status_update",
             {**STATUS, "event": "PAUSED", "message_template_language": "\0"}),
        body("account_update", {}),
        body("account_update", None),
        body("account_update", []),
        body("account_update", {"event": None}),
        body("account_update", {"event": "DISABLED_UPDATE"}, waba=None, id="a b"),
        body("account_alerts", {"alert_info": "x"}),
        body("phone_number_quality_update", {"current_limit": "TIER_50"}),
        body("business_capability_update", {"max_phone_numbers_per_waba": 25}),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_counted_and_nothing_follows(raw: bytes) -> None:
    told = read(raw, b"k")
    assert (told.notices, told.odd) == ([], Counter(unreadable=1))


@pytest.mark.parametrize("time", [None, "", "soon", -1, 1e9, [], 1751247548000])
def test_a_notice_without_a_time_is_as_old_as_its_arrival(time: Any) -> None:
    raw = body("account_update", {"event": "DISABLED_UPDATE"}, time=time)
    [found] = read(raw, b"k", 1795511671).notices
    assert found.at_s == 1795511671


def test_one_that_is_wrong_spoils_none_beside_it() -> None:
    bad = {"field": "account_update", "value": {"event": {}}}
    good = {"field": "account_update", "value": {"event": "ACCOUNT_DELETED"}}
    told = read(body("x", {}, changes=[bad, {"field": "calls", "value": {}}, good]), b"k")
    assert [found.event for found in told.notices] == ["ACCOUNT_DELETED"]
    assert told.odd == Counter(unreadable=1, ignored=1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(
            ["event", "ban_info", "restriction_info", "restriction_type", "alert_info",
             "alert_type", "max_daily_conversations_per_business", *TEMPLATE]
        ), inner, max_size=4),
    max_leaves=9,
)  # fmt: skip


@given(st.sampled_from(sorted(FIELDS)), JSON, JSON, JSON)
def test_nothing_that_is_json_raises(field: str, value: Any, waba: Any, time: Any) -> None:
    told = read(body(field, value, waba=waba, time=time), b"k")
    assert len(told.notices) + told.odd["unreadable"] == 1
