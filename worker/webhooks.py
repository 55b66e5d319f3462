"""What a webhook says: statuses and wishes, whatever else is in it. Pure; raises nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from shared.models import Status
from shared.opaque import place_of
from worker.answer import DETAILS_MAX, mask_numbers
from worker.notices import FIELDS, Notice, notice_of

# By Meta's word, as `campaign_logs` counts rungs. A played voice message has been read.
RUNGS: Final = {"sent": 0, "failed": 2, "delivered": 3, "read": 4, "played": 4}
_OBJECT: Final = "whatsapp_business_account"
_OF_MESSAGES: Final = ("messages", "user_preferences")
_WAMID: Final = re.compile(r"\A[!-~]{1,256}\Z")
_SECONDS: Final = re.compile(r"\A[0-9]{1,11}\Z")
_ACCOUNT: Final = re.compile(r"\A[A-Za-z0-9_]{1,64}\Z")
_PERSON: Final = re.compile(r"\A[0-9]{5,15}\Z")
_CODE_MAX: Final = 2**31
_T = TypeVar("_T")


class Wish(msgspec.Struct, frozen=True):
    """A person's wish about marketing messages, when it was uttered, and to which number."""

    phone: int
    at_ms: int
    is_stop: bool
    number: str


class Told(msgspec.Struct, frozen=True):
    """What one body says.

    Attributes:
        notices: what is said of templates, accounts and numbers.
        odd: what cannot be used: `unreadable`, `foreign` or `ignored` → how often.
    """

    statuses: list[Status]
    wishes: list[Wish]
    notices: list[Notice]
    odd: Counter[str]


class _Metadata(msgspec.Struct):
    phone_number_id: str = ""


class _Value(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    statuses: list[msgspec.Raw] = []
    user_preferences: list[msgspec.Raw] = []


class _Change(msgspec.Struct):
    field: str = ""
    value: msgspec.Raw = msgspec.Raw(b"{}")


class _Entry(msgspec.Struct):
    id: Any = None
    time: Any = None
    changes: list[msgspec.Raw] = []


class _Body(msgspec.Struct):
    object: str
    entry: list[msgspec.Raw] = []


class _Status(msgspec.Struct):
    id: str
    status: str
    timestamp: str | int
    biz_opaque_callback_data: Any = None
    errors: Any = None


class _Preference(msgspec.Struct):
    wa_id: str
    value: str
    timestamp: str | int
    category: str = "marketing_messages"


def _decoder(kind: type[_T]) -> msgspec.json.Decoder[_T]:
    return msgspec.json.Decoder(kind)


_body: Final = _decoder(_Body)
_entry: Final = _decoder(_Entry)
_change: Final = _decoder(_Change)
_value: Final = _decoder(_Value)
_status: Final = _decoder(_Status)
_preference: Final = _decoder(_Preference)


def read(
    body: bytes, opaque_key: bytes, came_s: int = 0, older_keys: tuple[bytes, ...] = ()
) -> Told:
    """Return what a body says; one part that cannot be read spoils none of the others.

    Args:
        body: as Meta sent it.
        opaque_key: that our messages' opaque values were made with.
        came_s: when it came, epoch; for notices that do not say when they were told.
        older_keys: that they were made with before; a message may be told of for weeks.

    >>> read(b"{}", b"k").odd
    Counter({'unreadable': 1})
    """
    told = Told([], [], [], Counter())
    whole = _part(_body, body, told)
    if whole is None:
        return told
    if whole.object != _OBJECT:
        told.odd["foreign"] += 1
        return told
    for entry in _parts(_entry, whole.entry, told):
        for change in _parts(_change, entry.changes, told):
            if change.field in FIELDS:
                _notice(entry, change, came_s, told)
                continue
            if change.field not in _OF_MESSAGES:
                told.odd["ignored"] += 1
                continue
            value = _part(_value, change.value, told)
            if value is not None:
                _take(value, opaque_key, older_keys, told)
    return told


def _notice(entry: _Entry, change: _Change, came_s: int, told: Told) -> None:
    waba_id, at_ms = str(entry.id), _ms(entry.time)
    at_s = came_s if at_ms is None else at_ms // 1000
    try:
        notice = notice_of(waba_id, at_s, change.field, change.value)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        notice = None
    if notice is None or not _ACCOUNT.match(waba_id):
        told.odd["unreadable"] += 1
        return
    told.notices.append(notice)


def _take(value: _Value, opaque_key: bytes, older_keys: tuple[bytes, ...], told: Told) -> None:
    number = value.metadata.phone_number_id
    for status in _parts(_status, value.statuses, told):
        at_ms, rung = _ms(status.timestamp), RUNGS.get(status.status)
        if at_ms is None or rung is None or not _WAMID.match(status.id):
            told.odd["unreadable"] += 1
            continue
        opaque = status.biz_opaque_callback_data
        place = None
        if isinstance(opaque, str):
            place = place_of(opaque_key, opaque, older_keys)
        code, text = _failure(status.errors) if status.status == "failed" else (None, None)
        job, position, attempt = place or ("", 0, 0)
        told.statuses.append(
            Status(status.id, rung, at_ms, job, position, attempt, code, text, number)
        )
    for wish in _parts(_preference, value.user_preferences, told):
        at_ms = _ms(wish.timestamp)
        is_ours = wish.category == "marketing_messages" and wish.value in ("stop", "resume")
        if at_ms is None or not is_ours or not _PERSON.match(wish.wa_id):
            told.odd["unreadable"] += 1
            continue
        told.wishes.append(Wish(int(wish.wa_id), at_ms, wish.value == "stop", number))


def _parts(
    decoder: msgspec.json.Decoder[_T], parts: Iterable[msgspec.Raw], told: Told
) -> Iterable[_T]:
    for part in parts:
        found = _part(decoder, part, told)
        if found is not None:
            yield found


def _part(decoder: msgspec.json.Decoder[_T], part: bytes | msgspec.Raw, told: Told) -> _T | None:
    try:
        return decoder.decode(part)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        told.odd["unreadable"] += 1
        return None


def _ms(timestamp: object) -> int | None:
    """Return Meta's Unix seconds as ms; None when no calendar of ours has them."""
    text = str(timestamp)
    return int(text) * 1000 if _SECONDS.match(text) else None


def _failure(errors: object) -> tuple[int | None, str | None]:
    """Return code and details of the first error; it is told once and never again."""
    first = errors[0] if isinstance(errors, list) and errors else None
    if not isinstance(first, dict):
        return None, None
    code, data = first.get("code"), first.get("error_data")
    details = data.get("details") if isinstance(data, dict) else None
    text = next((t for t in (details, first.get("message"), first.get("title")) if t), None)
    is_code = isinstance(code, int) and not isinstance(code, bool) and 0 <= code < _CODE_MAX
    words = mask_numbers(text).replace("\0", "")[:DETAILS_MAX] if isinstance(text, str) else None
    return (code if is_code else None), words
