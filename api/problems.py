"""From an exception to problem+json (RFC 9457): a table and one function. Asks nobody."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from api import wire
from shared.errors import (
    ConflictError,
    Fault,
    InvalidError,
    QueueError,
    RequestError,
    StoreError,
    TooManyError,
    UnavailableError,
)

RETRY_S: Final = 5
QUOTA_TYPE: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
_INVALID: Final = (
    "not_object unknown_field unknown_parameter validation_failed control_char empty_recipients"
    " too_many_recipients invalid_recipients bad_template bad_media_url bad_time bad_cursor"
    " bad_filter unknown_user no_sender upload_gone unreadable_file idempotency_mismatch"
    " weak_password"
)
CODES: Final[dict[str, tuple[int, str]]] = {
    code: (status, title)
    for status, title, codes in (
        (
            400,
            "Bad request",
            "empty_body bad_json bad_encoding too_deep bad_request bad_idempotency_key",
        ),
        (401, "Not signed in", "unauthenticated bad_credentials bad_signature"),
        (403, "Not allowed", "forbidden scope_missing user_mismatch csrf"),
        (404, "Not found", "not_found"),
        (405, "Method not allowed", "method_not_allowed"),
        (406, "Not acceptable", "not_acceptable"),
        (409, "Conflict", "state_conflict idempotency_in_progress name_taken"),
        (413, "Body too large", "body_too_large"),
        (415, "Unsupported media type", "unsupported_media_type encoding_unsupported"),
        (417, "Expectation failed", "expectation_failed"),
        (421, "Wrong host", "wrong_host"),
        (422, "Invalid request", _INVALID),
        (429, "Too many requests", "rate_limited login_throttled too_many_streams"),
        (500, "Internal error", "internal"),
        (
            503,
            "Unavailable",
            "bulk_disabled sender_moving storage_unavailable storage_full draining",
        ),
    )
    for code in codes.split()
}
_OWN: Final = {
    404: ("not_found", "There is nothing here that you may see."),
    405: ("method_not_allowed", "This path has other methods; see Allow."),
    413: ("body_too_large", "The body is larger than this endpoint takes."),
    415: ("unsupported_media_type", "The body must be application/json."),
    417: ("expectation_failed", "Only 100-continue may be expected."),
}
_STORE: Final = "The storage cannot be reached now; nothing happened."


def problem(
    code: str,
    detail: str,
    *,
    public_url: str = "",
    instance: str = "",
    request_id: str = "",
    faults: list[Fault] | None = None,
    total: int | None = None,
    extra: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    """Return the answer for a code of the table."""
    status, title = CODES[code]
    rows = [wire.Row(f.pointer, f.row, f.code, f.detail) for f in faults or []]
    body: dict[str, Any] = {
        "type": f"{public_url}/errors/{code}",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
        "instance": instance,
        "request_id": request_id,
        "errors": rows,
        "errors_total": len(rows) if total is None else total,
        **(extra or {}),
    }
    response = web.Response(
        status=status,
        body=wire.encode(body),
        content_type="application/problem+json",
        headers=headers,
    )
    if status in {400, 401, 413}:
        # Whoever is not read to the end may still be sending.
        response.force_close()
    return response


def respond(error: BaseException, **where: str) -> web.Response:
    """Return the answer for whatever a handler raised.

    Args:
        error: anything; what is not ours and not aiohttp's is `internal`.
        where: `public_url`, `instance` and `request_id` of `problem`.
    """
    headers: dict[str, str] = {}
    extra: dict[str, Any] = {}
    faults: list[Fault] = []
    total: int | None = None
    if isinstance(error, RequestError):
        code, detail = error.word, error.detail
        if isinstance(error, InvalidError):
            faults, total = error.faults, error.total
        if isinstance(error, TooManyError | UnavailableError):
            headers["Retry-After"] = str(error.retry_after_s)
        if isinstance(error, ConflictError):
            if error.state is not None:
                extra["state"] = error.state
            if error.retry_after_s is not None:
                headers["Retry-After"] = str(error.retry_after_s)
        if code == "unauthenticated":
            headers["WWW-Authenticate"] = 'Bearer realm="drumbeat"'
        if code == "rate_limited":
            extra["type"] = QUOTA_TYPE
            extra["violated-policies"] = list(getattr(error, "policies", ()))
        headers.update(getattr(error, "headers", None) or {})
    elif isinstance(error, StoreError):
        is_full = isinstance(error, QueueError) and error.full
        code, detail = ("storage_full" if is_full else "storage_unavailable"), _STORE
        headers["Retry-After"] = str(RETRY_S)
    elif isinstance(error, web.HTTPException):
        code, detail = _OWN.get(error.status, ("bad_request", "The request is not valid HTTP."))
        if error.status >= 500:  # noqa: PLR2004 - a class of statuses
            code, detail = "internal", "Something went wrong on our side."
        if "Allow" in error.headers:
            headers["Allow"] = error.headers["Allow"]
    else:
        code, detail = "internal", "Something went wrong on our side."
    return problem(code, detail, faults=faults, total=total, extra=extra, headers=headers, **where)
