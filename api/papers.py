"""Bodies in and out of what people decide: users, keys, senders, suppressions, switch, audit.

As in `api.wire`: requests refuse unknown fields, answers always carry every field.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Name = Annotated[str, Meta(min_length=1, max_length=120)]
Email = Annotated[str, Meta(min_length=3, max_length=320, pattern=r"\A[^@\s]+@[^@\s]+\Z")]
Password = Annotated[str, Meta(min_length=1, max_length=1024)]
Role = Literal["user", "admin"]
Scope = Literal["read", "send", "admin"]
Reach = Literal["all", "marketing"]
SenderName = Annotated[str, Meta(pattern=r"\A[a-z0-9-]{1,32}\Z")]
Digits = Annotated[str, Meta(pattern=r"\A[0-9]{1,32}\Z")]
# It ends a header: nothing but what may stand in one.
AccessToken = Annotated[str, Meta(pattern=r"\A[!-~]{1,2048}\Z")]
GraphVersion = Annotated[str, Meta(pattern=r"\Av[0-9]{1,3}\.[0-9]{1,2}\Z")]
Rate = Annotated[float, Meta(ge=0, le=1000)]
Burst = Annotated[float, Meta(ge=1, le=1000)]
Regions = Annotated[list[Annotated[str, Meta(pattern=r"\A[A-Z]{2}\Z")]], Meta(max_length=260)]


class Switched(msgspec.Struct, frozen=True):
    """Whether sending is off; `by` is a user id, or the variable that holds it off."""

    disabled: bool
    reason: str | None
    by: str | None
    since: str | None


class NewUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/users`."""

    email: Email
    password: Password
    role: Role = "user"


class UserPatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PATCH /api/users/{id}`; what is left out stays as it is."""

    email: Email | UnsetType = UNSET
    role: Role | UnsetType = UNSET
    disabled: bool | UnsetType = UNSET
    password: Password | UnsetType = UNSET


class User(msgspec.Struct, frozen=True, rename={"user_id": "userId"}):
    """Somebody who may log in."""

    user_id: str
    email: str
    role: str
    disabled: bool
    created_at: str


class UserList(msgspec.Struct, frozen=True):
    """A page of users, newest first."""

    data: list[User]
    has_more: bool
    next_cursor: str | None


class PasswordChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/session/password`."""

    current: Password
    new: Password


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/keys`; `expires_at` None = never."""

    name: Name
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=3)]
    expires_at: Annotated[str, Meta(max_length=64)] | None = None


class Key(msgspec.Struct, frozen=True):
    """An API key without what opens."""

    id: str
    name: str
    scopes: list[str]
    last4: str
    last_used_at: str | None
    expires_at: str | None


class MadeKey(Key, frozen=True):
    """A key when it is made: `key` is shown this once."""

    key: str


class KeyList(msgspec.Struct, frozen=True):
    """A page of the caller's keys, newest first."""

    data: list[Key]
    has_more: bool
    next_cursor: str | None


class NewSender(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/senders`.

    `rate` None = BULK_BATCH_SIZE per BULK_PAUSE_MS, 0 = no limit; `burst` None = a quarter of a
    second of the rate; no `allowed_regions` = anywhere.
    """

    name: SenderName
    phone_number_id: Digits
    access_token: AccessToken
    number: Annotated[str, Meta(pattern=r"\A\+[1-9][0-9]{6,14}\Z")] | None = None
    waba_id: Digits | None = None
    graph_api_version: GraphVersion | None = None
    rate: Rate | None = None
    burst: Burst | None = None
    allowed_regions: Regions = []
    default: bool = False


class SenderPatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PATCH /api/senders/{id}`; what is left out stays as it is."""

    name: SenderName | UnsetType = UNSET
    phone_number_id: Digits | UnsetType = UNSET
    access_token: AccessToken | UnsetType = UNSET
    number: Annotated[str, Meta(pattern=r"\A\+[1-9][0-9]{6,14}\Z")] | UnsetType | None = UNSET
    waba_id: Digits | UnsetType | None = UNSET
    graph_api_version: GraphVersion | UnsetType | None = UNSET
    rate: Rate | UnsetType | None = UNSET
    burst: Burst | UnsetType | None = UNSET
    allowed_regions: Regions | UnsetType = UNSET
    default: bool | UnsetType = UNSET


class AccessTokenShown(msgspec.Struct, frozen=True):
    """As much of a token as is ever told."""

    set: bool
    last4: str | None
    set_at: str | None


class Sender(msgspec.Struct, frozen=True):
    """A WhatsApp number; `access_token` is there for admins only, never the token itself.

    `rate` and `rate_now` in messages per second, 0 = no limit; `burst` in messages; `jobs` are
    those with something left to send.
    """

    id: str
    name: str
    number: str | None
    phone_number_id: str
    waba_id: str | None
    graph_api_version: str
    state: str
    why: str | None
    until: str | None
    rate: float
    rate_now: float
    burst: float
    allowed_regions: list[str]
    default: bool
    jobs: int
    access_token: AccessTokenShown | UnsetType = UNSET


class SenderList(msgspec.Struct, frozen=True):
    """A page of senders, newest first."""

    data: list[Sender]
    has_more: bool
    next_cursor: str | None


class NewSuppression(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/suppressions`; `marketing` stops marketing templates alone."""

    phone: Annotated[str, Meta(min_length=1, max_length=64)]
    scope: Reach = "all"
    reason: Annotated[str, Meta(max_length=500)] | None = None


class Suppression(msgspec.Struct, frozen=True):
    """Somebody who is not written to; `by` is a user id, `cli` or `system`."""

    id: str
    phone: str
    scope: str
    reason: str | None
    source: str
    by: str
    created_at: str


class SuppressionList(msgspec.Struct, frozen=True):
    """A page of entries in force, newest first."""

    data: list[Suppression]
    has_more: bool
    next_cursor: str | None


class AuditEntry(msgspec.Struct, frozen=True):
    """Who did what to which object; `address` is a keyed hash."""

    at: str
    actor: str
    action: str
    object: str
    address: str | None
    result: str
    reason: str | None
    request_id: str | None


class AuditList(msgspec.Struct, frozen=True):
    """A page of the audit log, newest first."""

    data: list[AuditEntry]
    has_more: bool
    next_cursor: str | None
