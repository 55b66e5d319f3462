"""What Meta sends: check the signature, append the body as it came, answer."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

from aiohttp import web

from api import auth
from api.guard import body_of
from api.resources import resources
from api.router import Route, query_of
from shared import logs
from shared.errors import DeniedError, UnavailableError

BODY_MAX: Final = 4 * 1024 * 1024  # Meta's own limit is 3 MB
_PATH: Final = "/webhooks/whatsapp"
_SIGNATURE: Final = re.compile(r"\Asha256=[0-9a-f]{64}\Z")
_CHALLENGE: Final = re.compile(r"\A[A-Za-z0-9_-]{1,128}\Z")
_log: Final = logs.get("api.webhooks")


async def verify(request: web.Request) -> web.Response:
    """GET: answer Meta's check of this address with its challenge."""
    made = resources(request)
    token = made.settings.whatsapp_verify_token
    if token is None:
        raise web.HTTPNotFound
    query = query_of(request, "hub.mode", "hub.verify_token", "hub.challenge")
    given, challenge = query.get("hub.verify_token", ""), query.get("hub.challenge", "")
    is_ours = hmac.compare_digest(given.encode("utf-8", "replace"), token.reveal().encode())
    if query.get("hub.mode") != "subscribe" or not is_ours or not _CHALLENGE.match(challenge):
        raise DeniedError("forbidden", "This is not the check that was agreed on with Meta.")
    return web.Response(text=challenge)


async def receive(request: web.Request) -> web.Response:
    """POST: keep what Meta says, to be worked off; parsing it is the workers'."""
    made = resources(request)
    secrets = made.settings.whatsapp_app_secret
    if not secrets:
        raise web.HTTPNotFound
    given = request.headers.getall("X-Hub-Signature-256", [])
    is_formed = len(given) == 1 and _SIGNATURE.match(given[0]) is not None
    body = await body_of(request, BODY_MAX, made.settings.body_timeout_s) if is_formed else b""
    if not is_formed or not is_signed(body, given[0], [s.reveal() for s in secrets]):
        made.metrics.webhooks_total.labels("bad_signature").inc()
        _log.warning("webhook.bad_signature")
        raise DeniedError("bad_signature", "The signature does not fit the body.")
    if not await made.inbox.append(body):
        raise UnavailableError("storage_full", "Too many webhooks wait; send it again.")
    made.metrics.webhooks_total.labels("ok").inc()
    return web.json_response({})


def is_signed(body: bytes, signature: str, secrets: list[str]) -> bool:
    """Tell whether any of the secrets signed these very bytes; all are tried, in any case.

    >>> is_signed(b"{}", "sha256=" + hmac.digest(b"s", b"{}", "sha256").hex(), ["other", "s"])
    True
    """
    found = False
    for secret in secrets:
        made = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        found |= hmac.compare_digest(f"sha256={made}", signature)
    return found


ROUTES: Final = (
    Route("GET", _PATH, verify, auth.OPEN, "webhook"),
    Route("POST", _PATH, receive, auth.OPEN, "webhook"),
)
