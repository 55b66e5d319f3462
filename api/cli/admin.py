"""`drumbeat user`, `key` and `sender`: what an operator keeps in PostgreSQL."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from getpass import getpass
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal, TypeVar

import cyclopts
import msgspec

from api import passwords
from api.cli.acts import (
    ACTOR,
    ids,
    print_line,
    show,
    text_of,
    with_archive,
    with_office,
    with_stores,
)
from api.keyring import cut_key, shown_id
from api.logins import email_of
from api.papers import NewKey, NewSender, NewUser, SenderPatch
from api.senders import changes_of, check_limits, row_of
from api.sessions import Visitors
from api.weak import refuse_weak
from shared import settings
from shared.archive import Archive, KeyRow, SenderRow, UserRow
from shared.clock import Clock
from shared.errors import InvalidError, NotFoundError, RequestError
from shared.office import Act, Office, UserChange
from shared.queue import Queue
from shared.sealing import Sealing

_DAY_MS: Final = 86_400_000
_DAYS_MAX: Final = 36_500
_KEY_ID: Final = 10
_LOOK_S: Final = 1.0
T = TypeVar("T")
Scope = Literal["read", "send", "admin"]

user = cyclopts.App(name="user", help="People who may log in.")
key = cyclopts.App(name="key", help="API keys.")
sender = cyclopts.App(name="sender", help="WhatsApp numbers that messages are sent from.")


@user.command(name="add")
def user_add(
    email: str, /, *, admin: bool = False, stdin: bool = False, file: Path | None = None
) -> None:
    """Add a user; print the id.

    Args:
        email: what he logs in with.
        admin: he may see everybody's jobs.
        stdin: read the password from standard input.
        file: read the password from a file.
    """
    password = _password(stdin=stdin, file=file)
    role = "admin" if admin else "user"
    new = _checked(NewUser, {"email": email_of(email), "password": password, "role": role})

    async def act(office: Office) -> str:
        made = str(ids.user_id())
        hashed = await passwords.hash_password(new.password)
        await office.add_user(Act(ACTOR, "user.add", made), made, new.email, hashed, new.role)
        return made

    print_line(with_office(act))


@user.command(name="list")
def user_list(*, json: bool = False) -> None:
    """Show all users.

    Args:
        json: one JSON document.
    """
    rows = with_archive(lambda archive: archive.list_users())
    show(
        ["id", "email", "role", "disabled"],
        [[row.id, row.email, row.role, row.disabled] for row in rows],
        json=json,
    )


@user.command(name="passwd")
def user_passwd(email: str, /, *, stdin: bool = False, file: Path | None = None) -> None:
    """Give a user another password; every session of his ends.

    Args:
        email: whose.
        stdin: read the password from standard input.
        file: read the password from a file.
    """
    password = _password(stdin=stdin, file=file)

    change = UserChange(password_hash=asyncio.run(passwords.hash_password(password)))
    _change(email, "user.password", change, ends=True)


@user.command(name="role")
def user_role(email: str, role: Literal["user", "admin"], /) -> None:
    """Make a user an admin, or an admin a user; it counts within a second.

    Args:
        email: whose.
        role: what he is from now on.
    """
    _change(email, "user.role", UserChange(role=role))


@user.command(name="disable")
def user_disable(email: str, /) -> None:
    """Lock a user out: his sessions and keys end at once; his jobs go on.

    Args:
        email: whom.
    """
    _change(email, "user.disable", UserChange(disabled=True), ends=True)


@user.command(name="enable")
def user_enable(email: str, /) -> None:
    """Let a user in again.

    Args:
        email: whom.
    """
    _change(email, "user.enable", UserChange(disabled=False))


def _change(email: str, action: str, change: UserChange, *, ends: bool = False) -> None:
    async def act(archive: Archive, office: Office) -> None:
        row = await _user_of(archive, email)
        await office.change_user(Act(ACTOR, action, row.id), row.id, change)
        if ends:
            await _end_sessions(row.id)

    with_stores(act)


async def _user_of(archive: Archive, email: str) -> UserRow:
    row = await archive.user_by_email(email_of(email))
    if row is None:
        raise RequestError("not_found", "There is no such user; `drumbeat user list` shows all.")
    return row


async def _end_sessions(user_id: str) -> None:
    made = settings.load()
    queue = await Queue.open(made)
    try:
        await Visitors(queue, made, ids).close_all(user_id)
    finally:
        await queue.close()


@key.command(name="create")
def key_create(
    email: str,
    /,
    *,
    name: str = "cli",
    scope: tuple[Scope, ...] = ("read", "send"),
    days: int = 0,
) -> None:
    """Make an API key; print it. It is shown this once.

    Args:
        email: in whose name it acts.
        name: to tell it from others.
        scope: what it may do; repeat for several.
        days: until it ends; 0 = never.
    """
    wish = _checked(NewKey, {"name": name, "scopes": list(scope)})
    if not 0 <= days <= _DAYS_MAX:
        raise InvalidError("bad_time", f"--days: 0 to {_DAYS_MAX}.")
    key_id, text = cut_key(ids)

    async def act(archive: Archive, office: Office) -> None:
        row = await _user_of(archive, email)
        if "admin" in scope and row.role != "admin":
            raise RequestError("forbidden", "Only an admin's key can have the scope admin.")
        made = KeyRow(
            id=key_id,
            user_id=row.id,
            name=wish.name,
            sha256=sha256(text.encode()).digest(),
            scopes=sorted(set(wish.scopes)),
            last4=text[-4:],
            expires_at_ms=Clock().now_ms() + days * _DAY_MS if days else 0,
            revoked=False,
            role=row.role,
            disabled=False,
        )
        await office.add_key(Act(ACTOR, "key.add", shown_id(key_id)), made)

    with_stores(act)
    print_line(text)


@key.command(name="list")
def key_list(email: str | None = None, /, *, json: bool = False) -> None:
    """Show API keys, never their secrets.

    Args:
        email: whose; everybody's when left out.
        json: one JSON document.
    """

    async def act(archive: Archive) -> list[KeyRow]:
        if email is None:
            return await archive.list_keys(None)
        row = await _user_of(archive, email)
        return await archive.list_keys(row.id)

    show(
        ["id", "user", "name", "scopes", "ends_with", "expires_ms", "revoked"],
        [
            [k.id, k.user_id, k.name, " ".join(k.scopes), k.last4, k.expires_at_ms, k.revoked]
            for k in with_archive(act)
        ],
        json=json,
    )


@key.command(name="revoke")
def key_revoke(key_id: str, /) -> None:
    """Revoke an API key; it counts within a second.

    Args:
        key_id: the ten characters behind `drb_`, or the id as the API and the audit log have it.
    """
    kept = key_id[-_KEY_ID:]
    if key_id not in {kept, shown_id(kept)}:
        raise NotFoundError
    with_office(
        lambda office: office.revoke_key(Act(ACTOR, "key.revoke", shown_id(kept)), kept, None)
    )


@sender.command(name="add")
def sender_add(
    name: str,
    /,
    *,
    phone_number_id: str,
    number: str = "",
    waba_id: str | None = None,
    graph_version: str | None = None,
    rate: float | None = None,
    burst: float | None = None,
    shard: int | None = None,
    default: bool = False,
    stdin: bool = False,
    file: Path | None = None,
) -> None:
    """Add a sender, or give the one of this name another token and whatever is named; print the id.

    Args:
        name: what jobs call it.
        phone_number_id: Graph's id of the number.
        number: as people dial it.
        waba_id: WhatsApp business account.
        graph_version: such as v23.0; GRAPH_API_VERSION when nobody has said.
        rate: messages per second; BULK_BATCH_SIZE per BULK_PAUSE_MS when nobody has said.
        burst: messages at once; a quarter of a second of the rate when nobody has said.
        shard: where a new one's jobs live; the emptiest when left out.
        default: jobs that name no sender take it; the first sender is that in any case.
        stdin: read the token from standard input.
        file: read the token from a file.
    """
    made = settings.load()
    if shard is not None and not 0 <= shard < made.queue_shards:
        raise InvalidError("validation_failed", "--shard: below QUEUE_SHARDS, from 0.")
    sealing = Sealing(made.bulk_secret_key)
    given = {
        "phone_number_id": phone_number_id,
        "access_token": _secret("Access token", stdin=stdin, file=file),
        "number": number or None,
        "waba_id": waba_id,
        "graph_api_version": graph_version,
        "rate": rate,
        "burst": burst,
        "default": default or None,
    }

    async def act(archive: Archive, office: Office) -> str:
        before = await archive.sender_by_name_or_id(name)
        if before is None:
            new = row_of(
                _checked(NewSender, {"name": name, **given}), ids.object_id("snd"), sealing
            )
            check_limits(new.rate, new.burst, made.default_rate)
            word = Act(ACTOR, "sender.add", new.id)
            await office.add_sender(word, new, made.queue_shards, shard)
            return new.id
        changes = changes_of(_checked(SenderPatch, given), sealing)
        if before.phone_number_id != phone_number_id:
            # Another number may not go by the name of the old one.
            changes.setdefault("number", "")
        after = msgspec.structs.replace(before, **changes)
        check_limits(after.rate, after.burst, made.default_rate)
        await office.change_sender(Act(ACTOR, "sender.change", before.id), before.id, changes)
        return before.id

    print_line(with_stores(act))


@sender.command(name="list")
def sender_list(*, json: bool = False) -> None:
    """Show all senders, never their tokens.

    Args:
        json: one JSON document.
    """
    usual = settings.load().default_rate
    show(
        ["id", "name", "phone_number_id", "rate", "shard", "state", "why", "default"],
        [
            [
                row.id,
                row.name,
                row.phone_number_id,
                usual if row.rate is None else row.rate,
                row.shard,
                row.state,
                row.why,
                row.is_default,
            ]
            for row in with_archive(lambda archive: archive.senders())
        ],
        json=json,
    )


@sender.command(name="rate")
def sender_rate(name: str, rate: float | Literal["default"], /) -> None:
    """Set how fast a sender sends; it counts within two seconds, for running jobs too.

    Args:
        name: of the sender, or its id.
        rate: messages per second, 0 = no limit; `default`: what the settings say.
    """
    value = None if rate == "default" else float(rate)
    _checked(SenderPatch, {"rate": value})
    usual = settings.load().default_rate

    async def act(archive: Archive, office: Office) -> None:
        row = await _sender_of(archive, name)
        check_limits(value, row.burst, usual)
        await office.change_sender(Act(ACTOR, "sender.rate", row.id), row.id, {"rate": value})

    with_stores(act)


@sender.command(name="token")
def sender_token(name: str, /, *, stdin: bool = False, file: Path | None = None) -> None:
    """Give a sender another access token.

    Args:
        name: of the sender, or its id.
        stdin: read the token from standard input.
        file: read the token from a file.
    """
    token = _secret("Access token", stdin=stdin, file=file)
    sealing = Sealing(settings.load().bulk_secret_key)
    changes = changes_of(_checked(SenderPatch, {"access_token": token}), sealing)

    async def act(archive: Archive, office: Office) -> None:
        row = await _sender_of(archive, name)
        await office.change_sender(Act(ACTOR, "sender.token", row.id), row.id, changes)

    with_stores(act)


@sender.command(name="move")
def sender_move(name: str, shard: int, /, *, wait: bool = False) -> None:
    """Let a sender's jobs live in another shard of Redis; refused while it has unfinished ones.

    Args:
        name: of the sender, or its id.
        shard: the new one, 0 to QUEUE_SHARDS - 1.
        wait: accept no more of its jobs, and move it once it has none.
    """
    made = settings.load()
    if not 0 <= shard < made.queue_shards:
        raise InvalidError("validation_failed", "The shard: below QUEUE_SHARDS, from 0.")
    clock = Clock()

    async def tell(jobs: int) -> None:
        sys.stderr.write(f"{jobs} unfinished jobs; none is accepted meanwhile\n")
        await clock.sleep(_LOOK_S)

    async def act(archive: Archive, office: Office) -> None:
        row = await _sender_of(archive, name)
        word = Act(ACTOR, "sender.move", row.id, f"shard {shard}")
        await office.move_sender(word, row.id, shard, tell if wait else None)

    with_stores(act)


@sender.command(name="pause")
def sender_pause(name: str, /, *, reason: str = "operator") -> None:
    """Stop a sender until it is resumed.

    Args:
        name: of the sender, or its id.
        reason: shown with its jobs.
    """
    _set_state(name, "sender.pause", "paused", reason)


@sender.command(name="resume")
def sender_resume(name: str, /) -> None:
    """Let a paused or blocked sender go on.

    Args:
        name: of the sender, or its id.
    """
    _set_state(name, "sender.resume", "active", "")


def _set_state(name: str, action: str, state: str, why: str) -> None:
    async def act(archive: Archive, office: Office) -> None:
        row = await _sender_of(archive, name)
        await office.set_sender_state(Act(ACTOR, action, row.id, why), row.id, state, why)

    with_stores(act)


async def _sender_of(archive: Archive, name: str) -> SenderRow:
    row = await archive.sender_by_name_or_id(name)
    if row is None:
        raise RequestError(
            "not_found", "There is no such sender; `drumbeat sender list` shows all."
        )
    return row


def _checked(kind: type[T], given: Mapping[str, object]) -> T:
    """Return what was given as the API takes it; None = left out.

    Raises:
        InvalidError: it names the field, never the value.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        sentence, _, place = str(error).partition(" - at `$.")
        raise InvalidError("validation_failed", f"{place.rstrip('`')}: {sentence}.") from error


def _password(*, stdin: bool, file: Path | None) -> str:
    text = passwords.normal(_secret("Password", stdin=stdin, file=file))
    refuse_weak(text, "")
    return text


def _secret(what: str, *, stdin: bool, file: Path | None) -> str:
    """Read a secret from where nobody looks: never from the command line."""
    if file is not None:
        text = text_of(file)
    elif stdin:
        text = sys.stdin.read()
    else:
        text = getpass(f"{what}: ")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise InvalidError("bad_format", f"{what}: nothing was given.")
    return text
