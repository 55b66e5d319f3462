"""Users: an admin lists, adds and changes them; everybody changes his own password."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from msgspec import UNSET

from api import wire
from api.audit import act_of
from api.auth import ADMIN, SESSION, principal
from api.bodies import answer, small_body
from api.idempotency import key_of
from api.lists import page_of
from api.logins import email_of, require_password
from api.papers import NewUser, PasswordChange, User, UserList, UserPatch
from api.passwords import hash_password
from api.resources import resources
from api.router import Route, query_of
from api.weak import refuse_weak
from shared.errors import NotFoundError
from shared.ids import is_user_id
from shared.office import ListedUser, UserChange


def _shown(row: ListedUser) -> User:
    return User(row.id, row.email, row.role, row.disabled, wire.time_text(row.created_ms) or "")


async def list_users(request: web.Request) -> web.Response:
    """List everybody who may log in, newest first."""
    query = query_of(request, "limit", "cursor")
    rows, has_more, cursor = await page_of(request, query, "", resources(request).office.users)
    return answer(UserList([_shown(row) for row in rows], has_more, cursor))


async def add(request: web.Request) -> web.Response:
    """Add a user."""
    made, asker = resources(request), principal(request)
    key_of(request)
    query_of(request)
    body = await small_body(request, NewUser)
    refuse_weak(body.password, "/password")
    user_id = str(made.ids.user_id())
    hashed = await hash_password(body.password)
    act = act_of(request, asker, "user.add", user_id)
    row = await made.office.add_user(act, user_id, email_of(body.email), hashed, body.role)
    return answer(_shown(row), 201, {"Location": f"/api/users/{user_id}"})


async def change(request: web.Request) -> web.Response:
    """Change address, role or password of a user, or lock him out: his sessions end at once."""
    made, asker = resources(request), principal(request)
    user_id = request.match_info["user_id"]
    if not is_user_id(user_id):
        raise NotFoundError
    query_of(request)
    body = await small_body(request, UserPatch)
    hashed = None
    if body.password is not UNSET:
        refuse_weak(body.password, "/password")
        hashed = await hash_password(body.password)
    parts = UserChange(
        email=None if body.email is UNSET else email_of(body.email),
        role=None if body.role is UNSET else body.role,
        disabled=None if body.disabled is UNSET else body.disabled,
        password_hash=hashed,
    )
    row = await made.office.change_user(
        act_of(request, asker, "user.change", user_id), user_id, parts
    )
    if hashed is not None or parts.disabled:
        await made.visitors.close_all(user_id, asker.session if user_id == asker.user_id else "")
    return answer(_shown(row))


async def change_password(request: web.Request) -> web.Response:
    """Change one's own password; every other session of the user ends."""
    made, asker = resources(request), principal(request)
    key_of(request)
    query_of(request)
    body = await small_body(request, PasswordChange)
    # Guesses here are failed log-ins like any others.
    user = await made.archive.user(asker.user_id)
    await require_password(request, asker.email, user, body.current, "This is not your password.")
    refuse_weak(body.new, "/new")
    act = act_of(request, asker, "user.password", asker.user_id)
    hashed = await hash_password(body.new)
    await made.office.change_user(act, asker.user_id, UserChange(password_hash=hashed))
    await made.visitors.close_all(asker.user_id, asker.session)
    return web.Response(status=204)


ROUTES: Final = (
    Route("GET", "/api/users", list_users, ADMIN),
    Route("POST", "/api/users", add, ADMIN, has_body=True),
    Route("PATCH", "/api/users/{user_id}", change, ADMIN, has_body=True),
    Route("POST", "/api/session/password", change_password, SESSION, has_body=True),
)
