"""From an HTTP answer to what the attempt came to. Pure; knows no client and no retry."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from shared.models import Answer

BODY_MAX: Final = 65_536  # bytes, after decompression
DETAILS_MAX: Final = 500  # characters
RETRY_AFTER_MAX_S: Final = 300.0
THROUGHPUT: Final = 130429

_NUMBER: Final = re.compile(r"\+?\d[\d ()-]{5,}\d")
_HTTP_OK: Final = range(200, 300)
_HTTP_FAULT: Final = 500
_TOO_MANY: Final = 429


class _Sent(msgspec.Struct):
    id: str
    message_status: str | None = None


class _Reply(msgspec.Struct):
    messages: list[_Sent] = []
    error: Any = None


_strict: Final = msgspec.json.Decoder(_Reply)
_loose: Final = msgspec.json.Decoder()


def not_sent(why: str) -> Answer:
    """Return the answer of an attempt of which no byte left."""
    return Answer("not_sent", why=why)


def unknown(why: str, http_status: int = 0) -> Answer:
    """Return the answer of an attempt that may have been taken."""
    return Answer("unknown", http_status=http_status, why=why)


def mask_numbers(text: str) -> str:
    """Return `text` with all but the last two digits of phone numbers hidden.

    >>> mask_numbers("to +39 333 1234567 failed")
    'to …67 failed'
    """
    return _NUMBER.sub(lambda found: "…" + found[0][-2:], text)


def inflate(body: bytes, encoding: str) -> bytes | None:
    """Return `body` without its compression, or None when that fails or exceeds `BODY_MAX`."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        return None
    try:
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        plain = unpacker.decompress(body, BODY_MAX + 1)
    except zlib.error:
        return None
    return plain if unpacker.eof and len(plain) <= BODY_MAX else None


def plain_of(body: bytes, encoding: str | None) -> bytes:
    """Return an answer's body without its compression.

    Empty when it cannot be unpacked: there is no Graph error in it, so the status alone decides.
    """
    if not encoding or encoding == "identity":
        return body
    return inflate(body, encoding) or b""


def read(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """Return what a whole HTTP answer means, by the classes of Graph's error policy.

    Args:
        status: the HTTP status; decides only where the body holds no Graph error.
        headers: of the answer; looked at only after a refusal.
        body: of the answer, plain, whole.
    """
    error: object = None
    sent: list[_Sent] = []
    if len(body) <= BODY_MAX:
        try:
            reply = _strict.decode(body)
            error, sent = reply.error, reply.messages
        except msgspec.ValidationError:
            error = _loose_error(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            pass
    if error is not None:
        code = _code_of(error)
        if code is not None and isinstance(error, dict):
            return _refusal(status, headers, code, error)
    if status in _HTTP_OK:
        if sent and sent[0].id:
            return Answer(
                "accepted", status, wamid=sent[0].id, message_status=sent[0].message_status
            )
        return unknown("bad_reply", status)
    if status >= _HTTP_FAULT:
        return unknown("bad_reply", status)
    kind: Final = "throttled" if status == _TOO_MANY else "rejected"
    return Answer(kind, status, retry_after_s=_retry_after_s(headers))


def _refusal(
    status: int, headers: Mapping[str, str], code: int, error: dict[str, object]
) -> Answer:
    data = error.get("error_data")
    details = data.get("details") if isinstance(data, dict) else data
    text = details if isinstance(details, str) else error.get("message")
    trace = error.get("fbtrace_id")
    return Answer(
        "throttled" if code == THROUGHPUT else "rejected",
        status,
        code=code,
        details=mask_numbers(text)[:DETAILS_MAX] if isinstance(text, str) else None,
        trace=trace if isinstance(trace, str) else None,
        is_transient=error.get("is_transient") is True,
        retry_after_s=_retry_after_s(headers),
        regain_s=_regain_s(headers),
    )


def _loose_error(body: bytes) -> object:
    try:
        reply = _loose.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return reply.get("error") if isinstance(reply, dict) else None


def _code_of(error: object) -> int | None:
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and not isinstance(code, bool):
        return code
    return int(code) if isinstance(code, str) and re.fullmatch(r"[0-9]{1,9}", code) else None


def _retry_after_s(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "").strip()
    if not re.fullmatch(r"[0-9]{1,9}", text):
        return 0.0
    return min(float(text), RETRY_AFTER_MAX_S)


def _regain_s(headers: Mapping[str, str]) -> float:
    """Return the longest wait that Graph's usage header names; it counts in minutes."""
    text = headers.get("x-business-use-case-usage")
    if text is None:
        return 0.0
    try:
        usage = _loose.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return 0.0
    waits = [
        float(minutes)
        for rows in (usage.values() if isinstance(usage, dict) else ())
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, dict)
        and isinstance(minutes := row.get("estimated_time_to_regain_access"), int | float)
    ]
    return 60 * max(waits, default=0.0)
