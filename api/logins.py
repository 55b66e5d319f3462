"""Logging in and out, and the one way to try a password: few tries, then a wait."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from api import wire
from api.audit import note
from api.auth import OPEN, READ, SESSION, Principal, cookie_name, cookie_of, in_session, principal
from api.bodies import answer, small_body
from api.guard import address_of, check_csrf
from api.idempotency import key_of
from api.passwords import hash_password, needs_rehash, verify_password
from api.resources import resources
from api.router import Route, query_of
from shared import logs
from shared.archive import UserRow
from shared.errors import DeniedError, TooManyError

_log: Final = logs.get("api.logins")


def email_of(text: str) -> str:
    """Return an address as it is kept: without blanks around it, in lower case."""
    return text.strip().lower()


async def require_password(
    request: web.Request, email: str, user: UserRow | None, password: str, detail: str
) -> UserRow:
    """Return the user whose password this is.

    Tries that were under way when the last one allowed failed learn nothing: whoever sends many
    at once has no more of them than one who waits for each.

    Args:
        request: whose address is counted too.
        email: as it is kept; counted whether there is such a user or not.
        user: who has it; None = nobody.
        password: what was typed.
        detail: what is told when it is wrong.

    Raises:
        TooManyError: 429, too many failed for this account or address.
        DeniedError: 401 `bad_credentials`.
    """
    made = resources(request)
    address = address_of(request, made.settings)

    async def ask(outcome: str) -> None:
        wait_s = await made.visitors.login(email, address, outcome)
        if wait_s:
            made.metrics.logins_total.labels("throttled").inc()
            raise TooManyError("login_throttled", "Too many failed log-ins.", wait_s)

    await ask("")
    is_right = await verify_password(user.password_hash if user else None, password)
    is_let_in = user is not None and is_right and not user.disabled
    await ask("1" if is_let_in else "0")
    if user is None or not is_let_in:
        made.metrics.logins_total.labels("bad").inc()
        _log.warning("login.failed")
        raise DeniedError("bad_credentials", detail)
    return user


def _me(asker: Principal, email: str) -> web.Response:
    return answer(
        wire.Me(
            asker.user_id,
            email,
            asker.role,
            list(asker.scopes),
            wire.time_text(asker.expires_ms),
        )
    )


async def log_in(request: web.Request) -> web.Response:
    """POST /api/session: a new session, whatever the caller brought."""
    made = resources(request)
    settings = made.settings
    check_csrf(request, settings)
    key_of(request)
    query_of(request)
    body = await small_body(request, wire.Login)
    email = email_of(body.email)
    user = await require_password(
        request,
        email,
        await made.archive.user_by_email(email),
        body.password,
        "This address and password do not go together.",
    )
    if needs_rehash(user.password_hash):
        await made.archive.set_password(user.id, await hash_password(body.password))
    old = cookie_of(request, settings.public_url)
    before = await made.visitors.look(old) if old else None
    if before is not None:
        await made.visitors.close(before.user_id, before.hash)
    token, session = await made.visitors.open(user.id)
    asker = in_session(user, session)
    await note(request, made, asker, "login", user.id, "ok")
    made.metrics.logins_total.labels("ok").inc()
    response = _me(asker, asker.email)
    response.set_cookie(
        cookie_name(settings.public_url),
        token,
        path="/",
        httponly=True,
        samesite="Lax",
        secure=settings.public_url.startswith("https://"),
        max_age=settings.session_max_s,
    )
    return response


async def me(request: web.Request) -> web.Response:
    """GET /api/session: who am I?"""
    query_of(request)
    asker = principal(request)
    # A key knows its user by his id alone.
    user = None if asker.email else await resources(request).archive.user(asker.user_id)
    return _me(asker, asker.email if user is None else user.email)


async def log_out(request: web.Request) -> web.Response:
    """DELETE /api/session: end this session."""
    query_of(request)
    made, asker = resources(request), principal(request)
    await made.visitors.close(asker.user_id, asker.session)
    await note(request, made, asker, "logout", asker.user_id, "ok")
    response = web.Response(status=204)
    response.del_cookie(cookie_name(made.settings.public_url), path="/")
    return response


ROUTES: Final = (
    Route("POST", "/api/session", log_in, OPEN, "other", has_body=True),
    Route("GET", "/api/session", me, READ, "other"),
    Route("DELETE", "/api/session", log_out, SESSION, "other"),
)
