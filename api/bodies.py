"""Read a small body as a struct, and answer with one; what most handlers begin and end with."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
from aiohttp import web

from api import wire
from api.guard import SMALL_BODY, body_of
from api.resources import resources

T = TypeVar("T")
OK: Final = 200


async def small_body(request: web.Request, kind: type[T]) -> T:
    """Return the body, at most 64 KiB, as `kind`.

    Raises:
        MalformedError: not one JSON document in UTF-8, too large or too slow.
        InvalidError: JSON of another shape, or with a control character in any string.
    """
    timeout_s = resources(request).settings.body_timeout_s
    body = wire.decode(await body_of(request, SMALL_BODY, timeout_s), kind)
    wire.refuse_controls(msgspec.to_builtins(body))
    return body


async def reason_of(request: web.Request) -> str:
    """Return people's words from an optional body `{"reason": …}`; '' = none."""
    if not request.can_read_body:
        return ""
    timeout_s = resources(request).settings.body_timeout_s
    raw = await body_of(request, SMALL_BODY, timeout_s)
    if not raw:
        return ""
    found = wire.decode(raw, wire.Reason).reason or ""
    wire.refuse_controls({"reason": found})
    return found


def answer(body: object, status: int = OK, headers: dict[str, str] | None = None) -> web.Response:
    """Return `body` as JSON."""
    return web.Response(
        status=status, body=wire.encode(body), content_type="application/json", headers=headers
    )
