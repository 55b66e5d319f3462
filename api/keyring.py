"""API keys of the caller: made once and shown once, listed without what opens, revoked."""

from __future__ import annotations

from hashlib import sha256
from typing import Final, NamedTuple

from aiohttp import web

from api import wire
from api.audit import act_of
from api.auth import SESSION, principal
from api.bodies import answer, small_body
from api.idempotency import key_of
from api.lists import page_of
from api.papers import Key, KeyList, MadeKey, NewKey
from api.resources import resources
from api.router import Route, query_of
from api.times import moment_of
from api.wire import refuse
from shared.archive import KeyRow
from shared.errors import DeniedError, NotFoundError
from shared.ids import Ids, is_object_id
from shared.office import ListedKey

SECRET_CHARS: Final = 43
_ID_CHARS: Final = 10


class Cut(NamedTuple):
    """A key as it is cut: the id it is looked up by, and the text that opens."""

    id: str
    text: str


def cut_key(ids: Ids) -> Cut:
    """Return a new key: `drb_`, ten characters of id, 43 of secret (256 bits)."""
    key_id = ids.object_id("key")[-_ID_CHARS:]
    # 128 characters of 6 random bits; without `-` and `_` far more than enough are left.
    secret = ids.token(96).replace("-", "").replace("_", "")[:SECRET_CHARS]
    return Cut(key_id, f"drb_{key_id}_{secret}")


def shown_id(key_id: str) -> str:
    """Return a key's id as lists and paths have it; the last ten characters stand in the key.

    >>> shown_id("0123456789")
    'key_84d89877f0d4041e0123456789'
    """
    return f"key_{sha256(key_id.encode()).hexdigest()[:16]}{key_id}"


def _kept_id(text: str) -> str:
    """Return the id behind a shown one.

    Raises:
        NotFoundError: no key can have it.
    """
    key_id = text[-_ID_CHARS:]
    if not is_object_id(text) or shown_id(key_id) != text:
        raise NotFoundError
    return key_id


def _shown(row: ListedKey) -> Key:
    return Key(
        shown_id(row.id),
        row.name,
        row.scopes,
        row.last4,
        wire.time_text(row.last_used_ms),
        wire.time_text(row.expires_ms),
    )


async def list_keys(request: web.Request) -> web.Response:
    """List one's own keys, newest first, without what opens."""
    made, asker = resources(request), principal(request)
    query = query_of(request, "limit", "cursor")

    async def fetch(before: int, limit: int) -> list[ListedKey]:
        return await made.office.keys(asker.user_id, before, limit)

    rows, has_more, cursor = await page_of(request, query, "", fetch)
    return answer(KeyList([_shown(row) for row in rows], has_more, cursor))


async def add(request: web.Request) -> web.Response:
    """Make a key; it is shown this once."""
    made, asker = resources(request), principal(request)
    key_of(request)
    query_of(request)
    body = await small_body(request, NewKey)
    expires_ms = moment_of(body.expires_at, "/expires_at", None)
    if body.expires_at is not None and expires_ms <= made.clock.now_ms():
        refuse("/expires_at", "a key ends in the future", "bad_time")
    if "admin" in body.scopes and not asker.is_admin:
        raise DeniedError("forbidden", "Only an admin's key can have the scope admin.")
    cut = cut_key(made.ids)
    row = KeyRow(
        id=cut.id,
        user_id=asker.user_id,
        name=body.name,
        sha256=sha256(cut.text.encode()).digest(),
        scopes=sorted(set(body.scopes)),
        last4=cut.text[-4:],
        expires_at_ms=expires_ms,
        revoked=False,
        role=asker.role,
        disabled=False,
    )
    await made.office.add_key(act_of(request, asker, "key.add", shown_id(cut.id)), row)
    listed = MadeKey(
        shown_id(cut.id),
        row.name,
        row.scopes,
        row.last4,
        None,
        wire.time_text(expires_ms),
        cut.text,
    )
    return answer(listed, 201, {"Location": f"/api/keys/{listed.id}"})


async def revoke(request: web.Request) -> web.Response:
    """Revoke a key; every process refuses it within a second, its streams end within 15."""
    made, asker = resources(request), principal(request)
    query_of(request)
    key_id = _kept_id(request.match_info["key_id"])
    act = act_of(request, asker, "key.revoke", shown_id(key_id))
    await made.office.revoke_key(act, key_id, asker.user_id)
    return web.Response(status=204)


ROUTES: Final = (
    Route("GET", "/api/keys", list_keys, SESSION),
    Route("POST", "/api/keys", add, SESSION, has_body=True),
    Route("DELETE", "/api/keys/{key_id}", revoke, SESSION),
)
