"""One request over the standard library's client: a command that makes one starts at once."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

_ANSWER_MAX: Final = 65_536  # bytes; nobody who is asked here has more to say


def connection_to(url: str, timeout_s: float) -> http.client.HTTPConnection:
    """Return a connection, not yet open, to the origin of `url`."""
    where = urlsplit(url)
    kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
    return kind(where.hostname or "", where.port, timeout=timeout_s)


def ask(
    connection: http.client.HTTPConnection,
    target: str,
    headers: Mapping[str, str] | None = None,
    body: object = None,
) -> tuple[int, Any]:
    """Return the status of an answer and its JSON, None when it is none; close the connection.

    Redirects are not followed.

    Args:
        connection: to whom.
        target: path and query.
        headers: of the request.
        body: posted as JSON; None = a GET.

    Raises:
        OSError, http.client.HTTPException: no answer came.
    """
    try:
        if body is None:
            connection.request("GET", target, headers=headers or {})
        else:
            typed = {"Content-Type": "application/json", **(headers or {})}
            connection.request("POST", target, json.dumps(body), typed)
        answer = connection.getresponse()
        status, raw = answer.status, answer.read(_ANSWER_MAX)
    finally:
        connection.close()
    try:
        return status, json.loads(raw)
    except ValueError:
        return status, None
