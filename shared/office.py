"""The PostgreSQL door for what people decide: each act and its audit row, one transaction.

Users, keys, senders, suppressions, the switch and the audit log. Nothing here is about a job.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec

from shared.archive import SQL, KeyRow, SenderRow, guarded
from shared.errors import ConflictError, NotFoundError

_LOCK: Final = 0x64727562  # as the archive's: change numbers are given out one after another


class Act(NamedTuple):
    """Who did what to which object; no personal data in any of it.

    Attributes:
        actor: a user id, `cli` or `system`.
        action: such as `sender.pause`.
        object: an id.
        reason: people's words; '' = none.
        request_id: of the HTTP request; '' = there was none.
        address: keyed hash of the client's address.
    """

    actor: str
    action: str
    object: str
    reason: str = ""
    request_id: str = ""
    address: str = ""


class SwitchRow(msgspec.Struct, frozen=True):
    """Whether sending is off for everybody, by whom and since when (ms, epoch; 0 = never)."""

    is_off: bool = False
    reason: str = ""
    by_whom: str = ""
    since_ms: int = 0


class AuditRow(msgspec.Struct, frozen=True):
    """One line of the audit log."""

    number: int
    at_ms: int
    actor: str
    action: str
    object: str
    result: str
    reason: str
    request_id: str
    address: str


class AuditFilter(msgspec.Struct, frozen=True):
    """What the audit log is narrowed by; None or 0 = not by this. Times in ms, epoch."""

    actor: str | None = None
    action: str | None = None
    object: str | None = None
    from_ms: int = 0
    to_ms: int = 0


class ListedUser(msgspec.Struct, frozen=True):
    """A user in a list; `number` is where the list goes on."""

    number: int
    id: str
    email: str
    role: str
    disabled: bool
    created_ms: int


class UserChange(msgspec.Struct, frozen=True):
    """What becomes of a user; None = as it was."""

    email: str | None = None
    role: str | None = None
    disabled: bool | None = None
    password_hash: str | None = None


class ListedKey(msgspec.Struct, frozen=True):
    """A key in a list, without anything that opens; times in ms, 0 = never."""

    number: int
    id: str
    name: str
    scopes: list[str]
    last4: str
    last_used_ms: int
    expires_ms: int


class ListedSender(msgspec.Struct, frozen=True):
    """A sender in a list, and since when it has its token (ms, epoch)."""

    number: int
    row: SenderRow
    token_set_ms: int


class ListedSuppression(msgspec.Struct, frozen=True):
    """An entry in force: who (digits of the number), for what, why, from where, by whom."""

    number: int
    id: str
    phone: int
    scope: str
    reason: str
    source: str
    created_by: str
    created_ms: int


class Office:
    """PostgreSQL, as people use it. Every method raises ArchiveError.

    Args:
        pool: opened by `connect.open_postgres`; borrowed.
    """

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        """Borrow the pool."""
        self._pool = pool

    @asynccontextmanager
    async def _acting(self, act: Act) -> AsyncGenerator[asyncpg.pool.PoolConnectionProxy]:
        """Give a connection whose transaction ends with the act's audit row."""
        async with self._pool.acquire() as connection, connection.transaction():
            yield connection
            await _note(connection, act)

    # -- the switch --------------------------------------------------------------------------

    @guarded
    async def switch(self) -> SwitchRow:
        """Return the switch as it stands."""
        row = await self._pool.fetchrow(SQL["switch"])
        return SwitchRow() if row is None else SwitchRow(**dict(row))

    @guarded
    async def set_switch(self, act: Act, *, is_off: bool) -> SwitchRow:
        """Switch sending off or on; who was first stays the one who is shown."""
        async with self._acting(act) as connection:
            await connection.execute(SQL["set_switch"], is_off, act.reason, act.actor)
            row = await connection.fetchrow(SQL["switch"])
        return SwitchRow(**dict(row or {}))

    # -- the audit log -----------------------------------------------------------------------

    @guarded
    async def audit(self, what: AuditFilter, before: int, limit: int) -> list[AuditRow]:
        """Return at most `limit` lines older than number `before` (0 = the newest)."""
        rows = await self._pool.fetch(
            SQL["audit_list"], what.actor, what.action, what.object, what.from_ms, what.to_ms,
            before, limit,
        )  # fmt: skip
        return [AuditRow(**dict(row)) for row in rows]

    @guarded
    async def acts_on(self, object_id: str, actions: list[str], limit: int) -> list[AuditRow]:
        """Return at most `limit` acts of these kinds that were done to an object, newest first."""
        rows = await self._pool.fetch(SQL["acts_on"], object_id, actions, limit)
        return [AuditRow(**dict(row)) for row in rows]

    # -- users -------------------------------------------------------------------------------

    @guarded
    async def users(self, before: int, limit: int) -> list[ListedUser]:
        """Return at most `limit` users, newest first."""
        return [_user(row) for row in await self._pool.fetch(SQL["user_list"], before, limit)]

    @guarded
    async def add_user(
        self, act: Act, user_id: str, email: str, password_hash: str, role: str
    ) -> ListedUser:
        """Add a user.

        Raises:
            ConflictError: the address is taken.
        """
        try:
            async with self._acting(act) as connection:
                await connection.execute(SQL["add_user"], user_id, email, password_hash, role)
                row = await connection.fetchrow(SQL["change_user"], user_id, None, None, None, None)
        except asyncpg.UniqueViolationError as error:
            raise ConflictError("name_taken", "There is a user with this address.") from error
        return _user(row)

    @guarded
    async def change_user(self, act: Act, user_id: str, change: UserChange) -> ListedUser:
        """Change a user.

        Raises:
            NotFoundError: there is no such user.
            ConflictError: the address is taken, or nobody would be left to be admin.
        """
        try:
            async with self._acting(act) as connection:
                if change.role == "user" or change.disabled:
                    admins = [str(row["id"]) for row in await connection.fetch(SQL["lock_admins"])]
                    if admins == [user_id]:
                        text = "This is the last admin; make another one first."
                        raise ConflictError("state_conflict", text)
                row = await connection.fetchrow(
                    SQL["change_user"], user_id, change.email, change.role, change.disabled,
                    change.password_hash,
                )  # fmt: skip
                if row is None:
                    raise NotFoundError
        except asyncpg.UniqueViolationError as error:
            raise ConflictError("name_taken", "There is a user with this address.") from error
        return _user(row)

    # -- keys --------------------------------------------------------------------------------

    @guarded
    async def keys(self, user_id: str, before: int, limit: int) -> list[ListedKey]:
        """Return a user's keys that are not revoked, newest first."""
        rows = await self._pool.fetch(SQL["key_list"], user_id, before, limit)
        return [ListedKey(**{"number": row["number_in_list"], **_but_number(row)}) for row in rows]

    @guarded
    async def add_key(self, act: Act, key: KeyRow) -> None:
        """Add an API key."""
        async with self._acting(act) as connection:
            await connection.execute(
                SQL["add_key"], key.id, key.user_id, key.name, key.sha256, key.scopes, key.last4,
                key.expires_at_ms or None,
            )  # fmt: skip

    @guarded
    async def revoke_key(self, act: Act, key_id: str, user_id: str | None) -> None:
        """Revoke a user's own key; None asks as an operator, who may revoke any.

        Raises:
            NotFoundError: he has no such key, or it is revoked already.
        """
        async with self._acting(act) as connection:
            if await connection.execute(SQL["own_key_revoked"], key_id, user_id) != "UPDATE 1":
                raise NotFoundError

    @guarded
    async def note_key_used(self, key_id: str) -> None:
        """Note that a key was used just now, to the minute."""
        await self._pool.execute(SQL["key_used"], key_id)

    # -- senders -----------------------------------------------------------------------------

    @guarded
    async def senders(self, before: int, limit: int) -> list[ListedSender]:
        """Return at most `limit` senders, newest first."""
        return [_listed(row) for row in await self._pool.fetch(SQL["sender_list"], before, limit)]

    @guarded
    async def sender(self, sender_id: str) -> ListedSender:
        """Return one sender.

        Raises:
            NotFoundError: there is no such sender.
        """
        row = await self._pool.fetchrow(SQL["sender_of_id"], sender_id)
        if row is None:
            raise NotFoundError
        return _listed(row)

    @guarded
    async def add_sender(
        self, act: Act, sender: SenderRow, shards: int, shard: int | None = None
    ) -> None:
        """Add a sender; the first is the default in any case.

        Args:
            act: for the audit log.
            sender: whose shard is not looked at.
            shards: the emptiest of so many is taken.
            shard: that one instead.

        Raises:
            ConflictError: the name is taken.
        """
        try:
            async with self._acting(act) as connection:
                counts = {
                    r["shard"]: r["n"] for r in await connection.fetch(SQL["senders_by_shard"])
                }
                if shard is None:
                    shard = min(range(shards), key=lambda each: counts.get(each, 0))
                is_default = sender.is_default or not counts
                if is_default:
                    await connection.execute(SQL["no_default"], sender.name)
                await connection.execute(
                    SQL["new_sender"], sender.id, sender.name, sender.phone_number_id,
                    sender.number, sender.token_sealed, sender.waba_id, sender.graph_api_version,
                    sender.rate, sender.burst, shard, is_default, sender.allowed_regions,
                )  # fmt: skip
        except asyncpg.UniqueViolationError as error:
            raise ConflictError("name_taken", "There is a sender of this name.") from error

    @guarded
    async def change_sender(self, act: Act, sender_id: str, changes: dict[str, object]) -> None:
        """Change fields of a sender; its workers hear of it within a second.

        Args:
            act: for the audit log.
            sender_id: which.
            changes: names of `SenderRow` with their new values.

        Raises:
            NotFoundError: there is no such sender.
            ConflictError: the name is taken.
        """
        try:
            async with self._acting(act) as connection:
                found = await connection.fetchrow(SQL["sender_for_change"], sender_id)
                if found is None:
                    raise NotFoundError
                row = msgspec.structs.replace(_sender(found), **changes)
                if row.is_default:
                    await connection.execute(SQL["no_default"], found["name"])
                await connection.execute(
                    SQL["change_sender"], row.id, row.name, row.phone_number_id, row.number,
                    row.token_sealed, row.waba_id, row.graph_api_version, row.rate, row.burst,
                    row.is_default, row.allowed_regions,
                )  # fmt: skip
        except asyncpg.UniqueViolationError as error:
            raise ConflictError("name_taken", "There is a sender of this name.") from error

    @guarded
    async def move_sender(
        self, act: Act, sender_id: str, shard: int, wait: Callable[[int], Awaitable[None]] | None
    ) -> None:
        """Let a sender's jobs live in another shard from now on.

        Args:
            act: for the audit log.
            sender_id: which.
            shard: where to.
            wait: told how many unfinished jobs there are, before they are counted again; no new
                ones are accepted meanwhile. None refuses to wait.

        Raises:
            NotFoundError: there is no such sender.
            ConflictError: it has unfinished jobs, and they are not waited for.
        """
        async with self._pool.acquire() as connection:
            await connection.execute(SQL["stop_accepting"], sender_id)
            try:
                while jobs := await connection.fetchval(SQL["unfinished_of_sender"], sender_id):
                    if wait is None:
                        text = f"It has {jobs} unfinished jobs; --wait accepts no more and waits."
                        raise ConflictError("state_conflict", text)
                    await wait(jobs)
                async with connection.transaction():
                    moved = await connection.execute(SQL["reshard_sender"], sender_id, shard)
                    if moved != "UPDATE 1":
                        raise NotFoundError
                    await _note(connection, act)
            finally:
                await connection.execute(SQL["accept_again"], sender_id)

    @guarded
    async def set_sender_state(self, act: Act, sender_id: str, state: str, why: str) -> None:
        """Pause a sender or let it go on.

        Raises:
            NotFoundError: there is no such sender.
        """
        async with self._acting(act) as connection:
            done = await connection.execute(SQL["set_sender_state"], sender_id, state, why, 0)
            if done != "UPDATE 1":
                raise NotFoundError

    # -- suppressions ------------------------------------------------------------------------

    @guarded
    async def suppressions(
        self, scope: str | None, before: int, limit: int
    ) -> list[ListedSuppression]:
        """Return at most `limit` entries in force, newest first."""
        rows = await self._pool.fetch(SQL["suppression_list"], scope, before, limit)
        return [_suppression(row) for row in rows]

    @guarded
    async def suppress(
        self, act: Act, phone: int, scope: str, reason: str, source: str
    ) -> tuple[ListedSuppression, bool]:
        """Put a number on the list; return its entry, and whether it is a new one.

        The entry that is there for this scope stays as it is.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(SQL["lock_suppressions"], _LOCK)
            done = await connection.execute(
                SQL["add_suppression"], act.object, phone, scope, reason, source, act.actor
            )
            row = _suppression(await connection.fetchrow(SQL["suppression_of"], phone, scope))
            await _note(connection, act._replace(object=row.id))
        return row, done == "INSERT 0 1"

    @guarded
    async def suppress_all(
        self, act: Act, entries: Sequence[tuple[str, int]], scope: str, reason: str, source: str
    ) -> int:
        """Put many numbers on the list in one transaction; return how many were not there.

        Args:
            act: for the audit log; its reason becomes their number.
            entries: id and number of each.
            scope: of all.
            reason: of all.
            source: of all.
        """
        entry_ids, phones = [each[0] for each in entries], [each[1] for each in entries]
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(SQL["lock_suppressions"], _LOCK)
            new = await connection.fetch(
                SQL["add_suppressions"], entry_ids, phones, scope, reason, source, act.actor
            )
            await _note(connection, act._replace(reason=f"{len(new)} new"))
        return len(new)

    @guarded
    async def suppression(self, phone: int, scope: str) -> ListedSuppression | None:
        """Return the entry in force of a number and scope."""
        row = await self._pool.fetchrow(SQL["suppression_of"], phone, scope)
        return None if row is None else _suppression(row)

    @guarded
    async def lift(self, act: Act, entry_id: str) -> None:
        """Take an entry off the list.

        Raises:
            NotFoundError: there is none in force of this id.
        """
        async with self._acting(act) as connection:
            await connection.execute(SQL["lock_suppressions"], _LOCK)
            if await connection.execute(SQL["lift_suppression"], entry_id) != "UPDATE 1":
                raise NotFoundError

    @guarded
    async def now_ms(self) -> int:
        """Return the server's clock, epoch."""
        return int(await self._pool.fetchval(SQL["server_clock"]))

    @guarded
    async def lacking(self) -> list[str]:
        """Return the rights that api and worker need and this role lacks, `RIGHT table`."""
        rows = await self._pool.fetch(SQL["lacking"])
        return [f"{row['needed']} {row['name']}" for row in rows]


async def _note(connection: asyncpg.pool.PoolConnectionProxy, act: Act) -> None:
    await connection.execute(
        SQL["audit"], act.actor, act.action, act.object, "ok", act.reason, act.request_id,
        act.address,
    )  # fmt: skip


def _but_number(row: Any) -> dict[str, Any]:  # noqa: ANN401 - asyncpg's Record
    return {name: value for name, value in dict(row).items() if name != "number_in_list"}


def _user(row: Any) -> ListedUser:  # noqa: ANN401 - asyncpg's Record
    return ListedUser(
        row["number_in_list"], str(row["id"]), row["email"], row["role"], row["is_disabled"],
        row["created_ms"],
    )  # fmt: skip


def _sender(row: Any) -> SenderRow:  # noqa: ANN401 - asyncpg's Record
    return SenderRow(**{name: row[name] for name in SenderRow.__struct_fields__})


def _listed(row: Any) -> ListedSender:  # noqa: ANN401 - asyncpg's Record
    return ListedSender(row["number_in_list"], _sender(row), row["token_set_ms"])


def _suppression(row: Any) -> ListedSuppression:  # noqa: ANN401 - asyncpg's Record
    return ListedSuppression(**{"number": row["number_in_list"], **_but_number(row)})
