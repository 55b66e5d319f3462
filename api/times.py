"""Moments of a submission: RFC 3339, in a zone or with an offset. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Final
from zoneinfo import ZoneInfo

from api import wire
from api.wire import refuse

_PAST_MS: Final = 60_000
_TIME: Final = re.compile(
    r"\A(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?"
    r"([Zz]|[+-]\d\d:\d\d)?\Z",
    re.ASCII,
)
_ZONE: Final = re.compile(r"\A[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}\Z")
_YEARS: Final = (2000, 2100)


def span_of(body: wire.SendRequest, now_ms: int) -> tuple[int, int]:
    """Return when a submission starts and ends, ms since the epoch; 0 = at once, never.

    Raises:
        InvalidError: `bad_time`, naming the field.
    """
    zone = zone_of(body.timezone)
    start = moment_of(body.scheduled_at, "/scheduled_at", zone)
    end = moment_of(body.expires_at, "/expires_at", zone)
    for at, pointer in ((start, "/scheduled_at"), (end, "/expires_at")):
        if at and at < now_ms - _PAST_MS:
            refuse(pointer, "more than 60 s in the past", "bad_time")
    if end and end <= max(start, now_ms):
        refuse("/expires_at", "not after the start", "bad_time")
    return (start if start > now_ms else 0), end


def zone_of(text: str | None) -> ZoneInfo | None:
    """Return the IANA zone of this name, None for none.

    Raises:
        InvalidError: `bad_time` at `/timezone`.
    """
    if text is None:
        return None
    try:
        zone = ZoneInfo(text) if _ZONE.match(text) else None
    except (OSError, ValueError, KeyError):
        zone = None
    if zone is None:
        refuse("/timezone", "not an IANA time zone such as Europe/Rome", "bad_time")
    return zone


def moment_of(text: str | None, pointer: str, zone: ZoneInfo | None) -> int:
    """Return a time as ms since the epoch, 0 for none.

    Raises InvalidError `bad_time` at `pointer`.

    In a zone's gap it moves forward and of two equal times the earlier counts: both are what
    `fold=0` means (PEP 495).
    """
    if text is None:
        return 0
    found = _TIME.match(text)
    if found is None:
        refuse(pointer, "not RFC 3339, such as 2026-11-24T09:00:00Z", "bad_time")
    year, month, day, hour, minute = (int(part) for part in found.groups()[:5])
    offset = found[8]
    if offset is None and zone is None:
        refuse(pointer, "needs an offset, or a timezone beside it", "bad_time")
    span = timedelta(0)
    if offset is not None and offset not in {"Z", "z"}:
        span = timedelta(hours=int(offset[1:3]), minutes=int(offset[4:6]))
    micros = int((found[7] or "").ljust(6, "0")[:6])
    try:
        tz = zone if offset is None else timezone(-span if offset[0] == "-" else span)
        at = datetime(year, month, day, hour, minute, int(found[6] or 0), micros, tz)
    except ValueError:
        at = None
    if at is None or not _YEARS[0] <= year <= _YEARS[1]:
        refuse(pointer, "no such time, or outside the years 2000 to 2100", "bad_time")
    since = at.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(milliseconds=1)
