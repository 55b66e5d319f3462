"""Who is asking, and may they: session cookie or API key, role and scopes."""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from typing import Final

import msgspec
from aiohttp import web

from api.resources import Resources, resources
from api.sessions import Session
from shared import logs
from shared.archive import KeyRow, UserRow
from shared.errors import ArchiveError, DeniedError, MalformedError

_KEY: Final = re.compile(r"\Adrb_([0-9a-z]{10})_[0-9A-Za-z]{43}\Z")
_BEARER: Final = re.compile(r"\A[Bb]earer +(\S{1,256})\Z")
_TOKEN: Final = re.compile(r"\A[A-Za-z0-9_-]{43}\Z")
SESSION_SCOPES: Final = ("read", "send")
_CACHE_S: Final = 1.0
_CACHE_MAX: Final = 10_000
_USED_EVERY_S: Final = 60.0
_log: Final = logs.get("api.auth")


class Access(msgspec.Struct, frozen=True):
    """Who may use a route.

    Attributes:
        scope: what an API key must have; '' = any.
        is_admin: only the role admin.
        is_open: anybody, asked for nothing.
        is_session: a key will not do.
    """

    scope: str = ""
    is_admin: bool = False
    is_open: bool = False
    is_session: bool = False


OPEN: Final = Access(is_open=True)
READ: Final = Access("read")
SEND: Final = Access("send")
ADMIN: Final = Access("admin", is_admin=True)
SESSION: Final = Access(is_session=True)


class Principal(msgspec.Struct, frozen=True):
    """Who is asking.

    Attributes:
        user_id: whose jobs these are.
        scopes: what the credential may do.
        session: hash of the session; '' with an API key.
        key_id: of the API key; '' with a session.
        expires_ms: when the credential ends, epoch; 0 = never.
    """

    user_id: str
    email: str
    role: str
    scopes: tuple[str, ...]
    session: str = ""
    key_id: str = ""
    expires_ms: int = 0

    @property
    def is_admin(self) -> bool:
        """Tell whether everybody's jobs may be seen."""
        return self.role == "admin" and "admin" in self.scopes

    @property
    def owner(self) -> str | None:
        """Return what store calls are narrowed by; None for an admin."""
        return None if self.is_admin else self.user_id


PRINCIPAL: Final = web.RequestKey("principal", Principal)


def principal(request: web.Request) -> Principal:
    """Return who is asking; only on routes that are not open."""
    return request[PRINCIPAL]


def cookie_name(public_url: str) -> str:
    """Return the session cookie's name: `__Host-` wherever there is TLS."""
    return "__Host-drumbeat" if public_url.startswith("https://") else "drumbeat"


class Credentials:
    """Looks credentials up; rows are kept for a second, so a revocation counts within one.

    Args:
        made: the doors.
    """

    def __init__(self) -> None:
        """Begin with nothing kept."""
        # By the monotonic clock: one that was set back would keep them for as long.
        self._kept: dict[str, tuple[float, UserRow | KeyRow | None]] = {}
        self._used: dict[str, float] = {}

    async def principal_of(self, request: web.Request) -> Principal:
        """Return who is asking.

        Raises:
            DeniedError: nobody: no credential, or one that is unknown, ended or revoked.
            MalformedError: two Authorization headers.
        """
        made = resources(request)
        given = request.headers.getall("Authorization", [])
        if len(given) > 1:
            raise MalformedError("bad_request", "There are two Authorization headers.")
        found = await (self._by_key(made, given[0]) if given else self._by_cookie(made, request))
        if found is None:
            raise DeniedError("unauthenticated", "Log in, or send an API key.")
        return found

    async def _by_key(self, made: Resources, header: str) -> Principal | None:
        bearer = _BEARER.match(header)
        match = _KEY.match(bearer[1]) if bearer else None
        if bearer is None or match is None:
            return None
        row = self._recall(made, match[0][:14])
        if row is None:
            row = await made.archive.key_by_id(match[1])
            self._keep(made, match[0][:14], row)
        if not isinstance(row, KeyRow):
            return None
        is_it = hmac.compare_digest(sha256(bearer[1].encode()).digest(), row.sha256)
        is_over = row.expires_at_ms and row.expires_at_ms <= made.clock.now_ms()
        if not is_it or is_over or row.revoked or row.disabled:
            return None
        await self._note_used(made, row.id)
        scopes = tuple(s for s in row.scopes if s != "admin" or row.role == "admin")
        return Principal(
            row.user_id, "", row.role, scopes, key_id=row.id, expires_ms=row.expires_at_ms
        )

    async def _by_cookie(self, made: Resources, request: web.Request) -> Principal | None:
        token = cookie_of(request, made.settings.public_url)
        if not token:
            return None
        session = await made.visitors.look(token)
        if session is None:
            return None
        row = self._recall(made, session.user_id)
        if row is None:
            row = await made.archive.user(session.user_id)
            self._keep(made, session.user_id, row)
        if not isinstance(row, UserRow) or row.disabled:
            return None
        return in_session(row, session)

    async def _note_used(self, made: Resources, key_id: str) -> None:
        """Note when a key was last used, to the minute; a note that is lost refuses nobody."""
        now_s = made.clock.monotonic()
        if now_s - self._used.get(key_id, -_USED_EVERY_S) < _USED_EVERY_S:
            return
        if len(self._used) >= _CACHE_MAX:
            self._used.clear()
        self._used[key_id] = now_s
        try:
            await made.office.note_key_used(key_id)
        except ArchiveError:
            _log.warning("key.use_not_noted", keyId=key_id)

    def _recall(self, made: Resources, name: str) -> UserRow | KeyRow | None:
        at_s, row = self._kept.get(name, (-_CACHE_S, None))
        return row if made.clock.monotonic() - at_s < _CACHE_S else None

    def _keep(self, made: Resources, name: str, row: UserRow | KeyRow | None) -> None:
        if len(self._kept) >= _CACHE_MAX:
            self._kept.clear()
        self._kept[name] = (made.clock.monotonic(), row)


def in_session(row: UserRow, session: Session) -> Principal:
    """Return a user as one of his sessions lets him act."""
    scopes = (*SESSION_SCOPES, "admin") if row.role == "admin" else SESSION_SCOPES
    return Principal(row.id, row.email, row.role, scopes, session.hash, "", session.expires_ms)


def cookie_of(request: web.BaseRequest, public_url: str) -> str:
    """Return our cookie's value when it came once and has the form; '' otherwise."""
    wanted = cookie_name(public_url)
    found = [
        value
        for header in request.headers.getall("Cookie", [])
        for name, _, value in (part.strip().partition("=") for part in header.split(";"))
        if name == wanted
    ]
    return found[0] if len(found) == 1 and _TOKEN.match(found[0]) else ""


def check_access(access: Access, asker: Principal) -> None:
    """Refuse who may not.

    Raises:
        DeniedError: 403 `forbidden` for the role, `scope_missing` for the key.
    """
    if access.is_admin and asker.role != "admin":
        raise DeniedError("forbidden", "Only an admin may do this.")
    if access.is_session and not asker.session:
        raise DeniedError("forbidden", "This needs a log-in; an API key will not do.")
    if access.scope and access.scope not in asker.scopes:
        raise DeniedError("scope_missing", f"The API key lacks the scope {access.scope}.")
