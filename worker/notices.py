"""What Meta tells of templates, accounts and numbers, and what is to be done about it. Pure."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec

from shared.message import LANGUAGE, NAME

Action = Literal["pause_template", "open_template", "pause_account", "show"]
Level = Literal["info", "warning", "error"]

# Fields of the template itself: whatever they say, the list that was read before is old.
_OF_TEMPLATES: Final = frozenset(
    {
        "message_template_status_update",
        "message_template_quality_update",
        "message_template_components_update",
        "template_category_update",
    }
)
FIELDS: Final = _OF_TEMPLATES | {
    "account_update",
    "account_alerts",
    "phone_number_quality_update",
    "business_capability_update",
}
# What the answer to a send would say: 132015 and 132016 of the error table.
_STOPS: Final = {"PAUSED": "132015", "DISABLED": "132016"}
_OPENS: Final = frozenset({"APPROVED", "REINSTATED", "UNPAUSED"})
# Jobs that were stopped by the state of their template go on once it is approved. A policy (132007)
# or a Flow (132068, 132069) is not what Meta has decided on then.
OPENED: Final = ("132001", "132015", "132016")
_HARD: Final = frozenset(
    {"ACCOUNT_DELETED", "ACCOUNT_RESTRICTION", "ACCOUNT_VIOLATION", "DISABLED_UPDATE"}
)
_REINSTATED: Final = "REINSTATE"
# They take something else than sending messages: calls, more numbers, new templates.
_ELSEWHERE: Final = re.compile(r"CALL|ADD_PHONE_NUMBER|UTILITY_TEMPLATES")
_STOPPING: Final = re.compile(r"RESTRICT|DISABL|VIOLAT|BANNED")
_SEVERITY: Final[dict[str, Level]] = {"CRITICAL": "error", "INFORMATIONAL": "info"}
_WORD: Final = re.compile(r"\A[A-Za-z0-9_]{1,64}\Z")
_WORDS_MAX: Final = 8


class Notice(msgspec.Struct, frozen=True):
    """One thing that Meta tells, and what is to be done about it.

    Attributes:
        waba_id: the WhatsApp business account.
        at_s: when Meta told it, epoch; 0 = it did not say.
        field: as it is subscribed to, one of `FIELDS`.
        event: Meta's words for it, joined by `:`.
        action: what is to be done; `show` is a line of log.
        level: of that line.
        subject: of two notices about one subject the later counts; '' = order does not matter.
        name, language: of the template; '' = it is about none.
        why: with a pause, what is shown as its cause.
    """

    waba_id: str
    at_s: int
    field: str
    event: str
    action: Action = "show"
    level: Level = "info"
    subject: str = ""
    name: str = ""
    language: str = ""
    why: str = ""

    @property
    def is_of_template(self) -> bool:
        """Tell whether the list of templates that was read before is old by now."""
        return self.field in _OF_TEMPLATES


class _Template(msgspec.Struct):
    message_template_name: str
    message_template_language: str
    event: str = ""
    new_category: str | None = None
    new_quality_score: str | None = None


class _Account(msgspec.Struct):
    event: str
    # Whatever these are, an account that Meta has disabled is stopped.
    restriction_info: Any = None
    violation_info: Any = None
    ban_info: Any = None


class _AlertInfo(msgspec.Struct):
    alert_type: str
    alert_severity: str | None = None
    alert_status: str | None = None


class _Alert(msgspec.Struct):
    alert_info: _AlertInfo


class _Number(msgspec.Struct):
    event: str
    current_limit: str | None = None
    max_daily_conversations_per_business: str | int | None = None


class _Capability(msgspec.Struct):
    max_daily_conversations_per_business: str | int | None = None
    max_daily_conversation_per_phone: int | None = None


_template: Final = msgspec.json.Decoder(_Template)
_account: Final = msgspec.json.Decoder(_Account)
_alert: Final = msgspec.json.Decoder(_Alert)
_number: Final = msgspec.json.Decoder(_Number)
_capability: Final = msgspec.json.Decoder(_Capability)


def notice_of(waba_id: str, at_s: int, field: str, value: bytes | msgspec.Raw) -> Notice | None:
    """Return what one change says; None when it cannot be used.

    Args:
        waba_id: whose.
        at_s: when Meta told it, epoch.
        field: one of `FIELDS`.
        value: of the change, JSON.

    Raises:
        MsgspecError, RecursionError, UnicodeDecodeError: it is not what the field carries.
    """
    if field in _OF_TEMPLATES:
        return _of_template(waba_id, at_s, field, _template.decode(value))
    if field == "account_update":
        return _of_account(waba_id, at_s, _account.decode(value))
    if field == "account_alerts":
        return _of_alert(waba_id, at_s, _alert.decode(value).alert_info)
    if field == "phone_number_quality_update":
        number = _number.decode(value)
        limit = number.max_daily_conversations_per_business or number.current_limit
        event = _event(number.event, _limit(limit))
    else:
        most = _capability.decode(value)
        limit = most.max_daily_conversations_per_business or most.max_daily_conversation_per_phone
        event = _event(_limit(limit))
    return Notice(waba_id, at_s, field, event) if event else None


def _of_template(waba_id: str, at_s: int, field: str, told: _Template) -> Notice | None:
    # Meta's pages show both spellings.
    name, language = told.message_template_name, told.message_template_language.replace("-", "_")
    if not NAME.match(name) or not LANGUAGE.match(language):
        return None
    if field != "message_template_status_update":
        event = _event(told.new_category or told.new_quality_score)
        return Notice(waba_id, at_s, field, event, name=name, language=language)
    event = _event(told.event)
    if not event:
        return None
    action: Action = "show"
    if event in _STOPS:
        action = "pause_template"
    elif event in _OPENS:
        action = "open_template"
    return Notice(
        waba_id, at_s, field, event, action,
        "warning" if event in _STOPS else "info",
        f"template:{name}:{language}", name, language, _STOPS.get(event, ""),
    )  # fmt: skip


def _of_account(waba_id: str, at_s: int, told: _Account) -> Notice | None:
    details = [
        *_words(told.restriction_info, "restriction_type"),
        *_words(told.violation_info, "violation_type"),
        *_words(told.ban_info, "waba_ban_state"),
    ]
    event = _event(told.event, *details)
    if not event:
        return None
    notice = Notice(waba_id, at_s, "account_update", event)
    if told.event not in _HARD:
        return notice
    if _REINSTATED in details:
        # Whom it had stopped goes on when an operator says so.
        return msgspec.structs.replace(notice, level="warning", subject="account")
    if details and all(map(_ELSEWHERE.search, details)):
        return msgspec.structs.replace(notice, level="warning")
    return _pausing(notice, told.event)


def _of_alert(waba_id: str, at_s: int, told: _AlertInfo) -> Notice | None:
    event = _event(told.alert_type, told.alert_severity, told.alert_status)
    if not event:
        return None
    level = _SEVERITY.get(told.alert_severity or "", "warning")
    notice = Notice(waba_id, at_s, "account_alerts", event, level=level)
    # What Meta's page lists is about limits, badges and pictures: none of it stops a message.
    if told.alert_status != "NONE" and _STOPPING.search(told.alert_type):
        return _pausing(notice, told.alert_type)
    return notice


def _pausing(notice: Notice, word: str) -> Notice:
    return msgspec.structs.replace(
        notice, action="pause_account", level="error", subject="account", why=word.lower()
    )


def _words(part: object, name: str) -> list[str]:
    """Return what is called `name` in an object, or in each of a list of them."""
    parts = part if isinstance(part, list) else [part]
    found = [each.get(name) for each in parts[:_WORDS_MAX] if isinstance(each, dict)]
    return [word for word in found if isinstance(word, str) and _WORD.match(word)]


def _limit(limit: str | int | None) -> str | None:
    return "UNLIMITED" if limit == -1 else None if limit is None else str(limit)


def _event(first: str | None, *others: str | None) -> str:
    """Return Meta's words joined, those that are words; '' when the first of them is none."""
    if not first or not _WORD.match(first):
        return ""
    return ":".join([first, *(word for word in others if word and _WORD.match(word))])
