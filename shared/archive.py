"""The PostgreSQL door: users, senders, jobs, outcomes. One method, one statement or transaction."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from importlib.resources import files
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar, cast

import asyncpg
import msgspec

from shared import keys
from shared.errors import ArchiveError, ConflictError, UnavailableError
from shared.graph_codes import code_of_reason, row_of
from shared.models import (
    FINAL_STATES,
    OUTCOMES,
    RANK,
    Chunk,
    Detail,
    Fact,
    OutcomeEntry,
    State,
    unpack_facts,
)

_P = ParamSpec("_P")
_T = TypeVar("_T")
LOCK: Final = 0x64727562
_NAMES: Final = ("sent", "failed", "skipped", "unknown", "cancelled")
# About what is to be written, whenever it is tried again. (A schema that is behind is not.)
_HOPELESS: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
_decode_details: Final = msgspec.msgpack.Decoder(list[Detail]).decode
_NO_DETAILS: Final = b"\x90"
_encode_rows: Final = msgspec.json.Encoder().encode
_WORDS: Final = tuple(state.name.lower() for state in State)
_decode_blob: Final = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_chunk: Final = msgspec.msgpack.Decoder(Chunk).decode


def _load() -> dict[str, str]:
    """Read every `-- name:` query of our files, once."""
    out: dict[str, str] = {}
    for item in (files("shared") / "sql" / "queries").iterdir():
        for part in re.split(r"^-- name: ", item.read_text("utf-8"), flags=re.MULTILINE)[1:]:
            name, sql = part.split("\n", 1)
            if name in out:
                raise ValueError(f"two queries are called {name}")
            out[name] = sql
    return out


SQL: Final = _load()


class UserRow(msgspec.Struct, frozen=True):
    """Somebody who may ask; `id` is a UUID as text."""

    id: str
    email: str
    password_hash: str
    role: str
    disabled: bool


class KeyRow(msgspec.Struct, frozen=True):
    """An API key with its user's role; `expires_at_ms` 0 = never."""

    id: str
    user_id: str
    name: str
    sha256: bytes
    scopes: list[str]
    last4: str
    expires_at_ms: int
    revoked: bool
    role: str
    disabled: bool


class _LogRow(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What `upsert_logs` takes of a recipient; its columns' names, `rank` that of the outcome."""

    job_number: int
    position: int
    phone: int
    outcome: str
    rank: int
    reason: int
    attempts: int
    at_ms: int
    wamid: str | None = None
    code: int | None = None
    error: str | None = None
    trace: str | None = None
    message_status: str | None = None


class StateRow(msgspec.Struct, frozen=True):
    """What `set_states` takes of a job; its columns' names."""

    id: str
    state: str
    version: int
    by_whom: str
    reason: str
    started_ms: int
    finished_ms: int
    end_event: str | None


class SenderRow(msgspec.Struct, frozen=True):
    """A WhatsApp phone number; `rate` None = the settings' default, messages per second.

    `allowed_regions` are ISO 3166 alpha-2; none = it may write anywhere.
    """

    id: str
    name: str
    phone_number_id: str
    token_sealed: bytes
    number: str = ""
    waba_id: str | None = None
    graph_api_version: str | None = None
    rate: float | None = None
    burst: float | None = None
    shard: int = 0
    state: str = "active"
    why: str = ""
    until_ms: int = 0
    is_default: bool = False
    version: int = 1
    parks: int = 0
    allowed_regions: list[str] = []


class Suppression(msgspec.Struct, frozen=True):
    """Somebody who is not to be written to; `is_lifted`: who may be again; by rising `change`."""

    id: str
    phone: int
    scope: str
    reason: str
    source: str
    is_lifted: bool
    change: int


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job to be accepted; `blob` from `pack_blob`, times in ms since the epoch."""

    id: str
    owner: str
    campaign_id: str | None
    name: str | None
    kind: str
    template_name: str | None
    template_language: str | None
    sender_id: str
    sender_name: str
    message: bytes
    vars: list[str]
    chunk_size: int
    recipients: int
    blob: bytes
    intake: bytes
    rate: float
    weight: int
    priority: str
    scheduled_ms: int
    expires_ms: int
    on_unknown: str
    reserved: int
    step: int
    born: str
    created_ms: int
    idempotency_key: str | None = None
    idempotency_route: str | None = None
    request_hash: bytes | None = None
    response: bytes | None = None
    parent: str | None = None
    sandbox: bool = False
    metadata: str = "{}"
    is_retry: bool = False
    template_category: str | None = None


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """A job as PostgreSQL knows it; `state` may be `accepted` (Redis had it not yet)."""

    number: int
    id: str
    owner: str
    campaign_id: str | None
    name: str | None
    state: str
    version: int
    by: str
    reason: str
    kind: str
    template_name: str | None
    template_language: str | None
    sender_id: str
    sender_name: str
    message: bytes
    vars: list[str]
    chunk_size: int
    recipients: int
    intake: bytes
    rate: float
    weight: int
    priority: str
    scheduled_ms: int
    expires_ms: int
    on_unknown: str
    reserved: int
    step: int
    born: str
    request_hash: bytes | None
    response: bytes | None
    created_ms: int
    started_ms: int
    finished_ms: int
    parent: str | None
    sandbox: bool
    sent: int
    failed: int
    skipped: int
    unknown: int
    cancelled: int
    delivered: int
    read: int
    undelivered: int
    end_event: str | None
    metadata: str = "{}"
    is_retry: bool = False
    receipts_version: int = 0
    template_category: str | None = None

    @property
    def done(self) -> int:
        """Return how many recipients have an outcome here."""
        return self.sent + self.failed + self.skipped + self.cancelled + self.unknown

    @property
    def has_ended(self) -> bool:
        """Tell whether it is over with all its outcomes here: its state may come before them."""
        return self.state in FINAL_STATES and self.done == self.recipients


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What a list of jobs is narrowed by; `owner` None = everybody's, `before` a job number.

    `metadata` is a JSON object that the job's own must contain.
    """

    owner: str | None = None
    states: list[str] | None = None
    sender: str | None = None
    campaign_id: str | None = None
    q: str | None = None
    from_ms: int = 0
    to_ms: int = 0
    metadata: str | None = None
    before: int = 0
    limit: int = 20


class Moved(NamedTuple):
    """How many recipients came to an outcome in one transaction."""

    sender: str
    outcome: str
    recipients: int


class Recorded(msgspec.Struct, frozen=True):
    """What one transaction of the archive writer did.

    Attributes:
        rows: rows written or raised.
        moved: by sender and outcome.
        ended: (job, version) of every job of the batch whose end and rows are all committed.
        accepted: job that the batch ends → (kind, when it was accepted, ms).
        shared: job → recipients whose message id another recipient has too.
        raised: jobs of which a row had another outcome before.
    """

    rows: int
    moved: list[Moved]
    ended: list[tuple[str, int]]
    accepted: dict[str, tuple[str, int]] = {}
    shared: dict[str, int] = {}
    raised: frozenset[str] = frozenset()


async def accept(connection: asyncpg.pool.PoolConnectionProxy, job: NewJob) -> None:
    """Write a job's row in a transaction under way.

    Raises:
        UnavailableError: its sender is being moved to another shard, or was just now.
    """
    is_free = await connection.fetchval(SQL["accept_for"], job.sender_id)
    shard = await connection.fetchval(SQL["shard_of_sender"], job.sender_id) if is_free else None
    if not is_free or shard not in {None, keys.shard_of(job.id)}:
        text = "Its sender is being moved to another shard; ask again."
        raise UnavailableError("sender_moving", text)
    await connection.execute(SQL["add_job"], *_columns_of(job))


def _columns_of(job: NewJob) -> tuple[Any, ...]:
    return (
        job.id, job.owner, job.campaign_id, job.name, job.kind, job.template_name,
        job.template_language, job.sender_id, job.sender_name, job.message, job.vars,
        job.chunk_size, job.recipients, job.blob, job.intake, job.rate, job.weight,
        job.priority, job.scheduled_ms, job.expires_ms, job.on_unknown, job.reserved,
        job.step, job.born, job.idempotency_key, job.idempotency_route, job.request_hash,
        job.response, job.created_ms, job.parent, job.sandbox,
        job.metadata, job.is_retry, job.template_category,
    )  # fmt: skip


def pack_blob(chunks: list[bytes]) -> bytes:
    """Return encoded chunks as one compressed blob; 10 ms for 50,000 numbers at level 1."""
    return zlib.compress(msgspec.msgpack.encode(chunks), 1)


def unpack_blob(blob: bytes) -> list[bytes]:
    """Return the encoded chunks of a blob."""
    return _decode_blob(zlib.decompress(blob))


def guarded(
    method: Callable[_P, Coroutine[Any, Any, _T]],
) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Translate what asyncpg raises at the door."""

    @wraps(method)
    async def act(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await method(*args, **kwargs)
        except _HOPELESS as error:
            raise ArchiveError(f"PostgreSQL: {type(error).__name__}", hopeless=True) from error
        except TimeoutError as error:
            # The others may be as dead, and to find that out takes as long for each of them.
            await cast("Archive", args[0])._pool.expire_connections()  # noqa: SLF001 - a door of ours
            raise ArchiveError("PostgreSQL: TimeoutError") from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise ArchiveError(f"PostgreSQL: {type(error).__name__}") from error

    return act


class Archive:
    """PostgreSQL, as we use it. Every method raises ArchiveError.

    Args:
        pool: opened by `connect.open_postgres`; borrowed.
    """

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        """Borrow the pool."""
        self._pool = pool

    # -- people ----------------------------------------------------------------------------

    @guarded
    async def add_user(self, user_id: str, email: str, password_hash: str, role: str) -> None:
        """Add a user.

        Raises:
            ConflictError: the address is taken.
        """
        try:
            await self._pool.execute(SQL["add_user"], user_id, email, password_hash, role)
        except asyncpg.UniqueViolationError as error:
            raise ConflictError("name_taken", "There is a user with this address.") from error

    @guarded
    async def user_by_email(self, email: str) -> UserRow | None:
        """Return the user with this address."""
        return _user(await self._pool.fetchrow(SQL["user_by_email"], email))

    @guarded
    async def user(self, user_id: str) -> UserRow | None:
        """Return the user with this id."""
        return _user(await self._pool.fetchrow(SQL["user"], user_id))

    @guarded
    async def list_users(self) -> list[UserRow]:
        """Return all users, by address."""
        rows = [_user(row) for row in await self._pool.fetch(SQL["users"])]
        return [row for row in rows if row is not None]

    @guarded
    async def set_password(self, user_id: str, password_hash: str) -> None:
        """Replace a user's password hash."""
        await self._pool.execute(SQL["set_password"], user_id, password_hash)

    @guarded
    async def add_key(self, key: KeyRow) -> None:
        """Add an API key."""
        await self._pool.execute(
            SQL["add_key"],
            key.id,
            key.user_id,
            key.name,
            key.sha256,
            key.scopes,
            key.last4,
            key.expires_at_ms or None,
        )

    @guarded
    async def key_by_id(self, key_id: str) -> KeyRow | None:
        """Return an API key with its user's role."""
        return _key(await self._pool.fetchrow(SQL["key"], key_id))

    @guarded
    async def list_keys(self, user_id: str | None) -> list[KeyRow]:
        """Return a user's keys, or everybody's."""
        rows = [_key(row) for row in await self._pool.fetch(SQL["keys"], user_id)]
        return [row for row in rows if row is not None]

    @guarded
    async def revoke_key(self, key_id: str) -> bool:
        """Revoke a key; False when there is none to revoke."""
        return bool(await self._pool.execute(SQL["revoke_key"], key_id) == "UPDATE 1")

    @guarded
    async def audit(
        self,
        actor: str,
        action: str,
        object_id: str,
        result: str,
        *,
        reason: str = "",
        request_id: str = "",
        address: str = "",
    ) -> None:
        """Append one act to the audit log; no personal data in any of it."""
        await self._pool.execute(
            SQL["audit"], actor, action, object_id, result, reason, request_id, address
        )

    @guarded
    async def is_off(self) -> bool:
        """Tell whether somebody has switched sending off for everybody (`office.set_switch`)."""
        row = await self._pool.fetchrow(SQL["switch"])
        return row is not None and bool(row["is_off"])

    # -- senders ---------------------------------------------------------------------------

    @guarded
    async def add_sender(self, sender: SenderRow) -> None:
        """Add a sender, or replace the one of this name."""
        async with self._pool.acquire() as connection, connection.transaction():
            if sender.is_default:
                await connection.execute(SQL["no_default"], sender.name)
            await connection.execute(
                SQL["add_sender"],
                sender.id,
                sender.name,
                sender.phone_number_id,
                sender.number,
                sender.token_sealed,
                sender.waba_id,
                sender.graph_api_version,
                sender.rate,
                sender.burst,
                sender.shard,
                sender.is_default,
            )

    @guarded
    async def senders(self) -> list[SenderRow]:
        """Return all senders, by name."""
        return [_sender(row) for row in await self._pool.fetch(SQL["senders"])]

    @guarded
    async def sender_by_name_or_id(self, text: str) -> SenderRow | None:
        """Return the sender of this name or id."""
        row = await self._pool.fetchrow(SQL["sender"], text)
        return None if row is None else _sender(row)

    @guarded
    async def default_sender(self) -> SenderRow | None:
        """Return the default sender."""
        row = await self._pool.fetchrow(SQL["sender"], None)
        return None if row is None else _sender(row)

    @guarded
    async def set_rate(self, sender_id: str, rate: float | None) -> bool:
        """Set a sender's rate, messages per second; None = the settings' default."""
        return bool(await self._pool.execute(SQL["set_rate"], sender_id, rate) == "UPDATE 1")

    @guarded
    async def set_sender_state(
        self, sender_id: str, state: str, why: str, until_ms: int, by: str
    ) -> None:
        """Pause, block or free a sender, with its audit row, in one transaction."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(SQL["set_sender_state"], sender_id, state, why, until_ms)
            await connection.execute(
                SQL["audit"], by, f"sender.{state}", sender_id, "ok", why, "", ""
            )

    @guarded
    async def move_sender(
        self,
        row: SenderRow,
        state: str,
        why: str,
        until_ms: int,
        parks: int,
        by: str,
        *,
        version: int = 0,
    ) -> bool:
        """Stop a sender as `row` stands, with its audit row; False: it has changed since.

        Its version becomes the next one, or `version` where a shard is ahead of us.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            moved = await connection.fetchval(
                SQL["move_sender"], row.id, row.version, state, why, until_ms, parks, version
            )
            if moved is not None:
                await connection.execute(
                    SQL["audit"], by, f"sender.{state}", row.id, "ok", why, "", ""
                )
        return moved is not None

    @guarded
    async def has_sent(self, sender_id: str, since_ms: int) -> bool:
        """Tell whether Graph has taken a message of this sender since then."""
        return bool(await self._pool.fetchval(SQL["has_sent"], sender_id, since_ms))

    @guarded
    async def suppressions(self, after: int = 0, limit: int = 10_000) -> list[Suppression]:
        """Return what changed in the suppression list after change number `after`, in order."""
        rows = await self._pool.fetch(SQL["suppressions_since"], after, limit)
        return [Suppression(**dict(row)) for row in rows]

    # -- jobs ------------------------------------------------------------------------------

    @guarded
    async def same_template(self, job_id: str) -> list[str]:
        """Return the other unfinished jobs of the WABA with this job's template and language."""
        return [row["id"] for row in await self._pool.fetch(SQL["same_template"], job_id)]

    @guarded
    async def jobs_of_template(self, waba_id: str, name: str, language: str) -> list[str]:
        """Return the unfinished jobs of a WABA with this template and language."""
        rows = await self._pool.fetch(SQL["jobs_of_template"], waba_id, name, language)
        return [row["id"] for row in rows]

    @guarded
    async def add_job(self, job: NewJob, audit: Sequence[str] = ()) -> None:
        """Accept a job with all its recipients, and note who did it, in one transaction.

        Args:
            job: its row.
            audit: columns of a row of the audit log; () = nobody did it.

        Raises:
            ConflictError: another request with this idempotency key was first.
            UnavailableError: its sender is being moved to another shard, or was just now.
        """
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                await accept(connection, job)
                if audit:
                    await connection.execute(SQL["audit"], *audit)
        except asyncpg.UniqueViolationError as error:
            raise ConflictError(
                "idempotency_in_progress",
                "A request with this Idempotency-Key is being worked on.",
                retry_after_s=1,
            ) from error

    @guarded
    async def drop_job(self, job_id: str) -> None:
        """Take back an acceptance that Redis refused."""
        await self._pool.execute(SQL["drop_job"], job_id)

    @guarded
    async def job(self, job_id: str, owner: str | None) -> JobRow | None:
        """Return a job if `owner` may see it; None asks as an admin."""
        row = await self._pool.fetchrow(SQL["job"], job_id, owner)
        return None if row is None else _job(row)

    @guarded
    async def jobs(self, what: JobFilter) -> list[JobRow]:
        """Return jobs, newest first."""
        rows = await self._pool.fetch(
            SQL["jobs"],
            what.owner, what.states, what.sender, what.campaign_id, what.q, what.from_ms,
            what.to_ms, what.before, what.limit, what.metadata,
        )  # fmt: skip
        return [_job(row) for row in rows]

    @guarded
    async def idempotent(self, owner: str, route: str, key: str) -> JobRow | None:
        """Return the job that this key made."""
        row = await self._pool.fetchrow(SQL["idempotent"], owner, route, key)
        return None if row is None else _job(row)

    @guarded
    async def pending_jobs(self, limit: int, after: int = 0) -> list[JobRow]:
        """Return jobs that are not final, by rising number from above `after`."""
        return [_job(row) for row in await self._pool.fetch(SQL["pending_jobs"], after, limit)]

    @guarded
    async def recipients(self, job_id: str) -> list[bytes]:
        """Return a job's encoded chunks; empty when there is no such job."""
        blob = await self._pool.fetchval(SQL["blob"], job_id)
        return [] if blob is None else unpack_blob(blob)

    @guarded
    async def logged(self, job_id: str) -> dict[int, tuple[State, int]]:
        """Return position → (outcome, attempts) of what is logged of a job."""
        rows = await self._pool.fetch(SQL["logged"], job_id)
        return {r["position"]: (State[r["outcome"].upper()], r["attempts"]) for r in rows}

    @guarded
    async def latest(self, for_s: float) -> dict[str, tuple[int, list[tuple[int, Fact]]]]:
        """Return what was logged lately: job → (chunk size, [(chunk, fact)])."""
        out: dict[str, tuple[int, list[tuple[int, Fact]]]] = {}
        for row in await self._pool.fetch(SQL["latest"], for_s):
            size = row["chunk_size"]
            chunk, index = divmod(row["position"], size)
            state = State[row["outcome"].upper()]
            fact = Fact(index, state, row["attempts"], row["reason"])
            out.setdefault(row["job_id"], (size, []))[1].append((chunk, fact))
        return out

    @guarded
    async def set_reserved(self, marks: Sequence[tuple[str, int]]) -> None:
        """Raise the `reserved` marks of jobs, committed when this returns."""
        if marks:
            ids, numbers = [job for job, _ in marks], [mark for _, mark in marks]
            await self._pool.execute(SQL["set_reserved"], ids, numbers)

    @guarded
    async def counts_by_state(self) -> dict[str, int]:
        """Return how many unfinished jobs there are in each state."""
        return {row["state"]: row["n"] for row in await self._pool.fetch(SQL["counts_by_state"])}

    @guarded
    async def active_jobs(self, limit: int) -> list[str]:
        """Return ids of jobs that are begun or waiting to be, those that run first."""
        return [str(row["id"]) for row in await self._pool.fetch(SQL["active_jobs"], limit)]

    @guarded
    async def unknown_open(self) -> int:
        """Return how many recipients are `unknown` and not settled."""
        return int(await self._pool.fetchval(SQL["unknown_open"]))

    @guarded
    async def error_counts(self, job_id: str) -> dict[int, int]:
        """Return failures by Graph's code."""
        rows = await self._pool.fetch(SQL["error_counts"], job_id)
        return {row["code"]: row["n"] for row in rows}

    @guarded
    async def reason_counts(self, job_id: str) -> dict[int, int]:
        """Return failed and skipped by reason number."""
        rows = await self._pool.fetch(SQL["reason_counts"], job_id)
        return {row["reason"]: row["n"] for row in rows}

    # -- outcomes --------------------------------------------------------------------------

    @guarded
    async def record(self, batch: list[OutcomeEntry]) -> Recorded:
        """Write a batch of outcome entries in one transaction; may be repeated.

        Rows are raised by rank only, counters move by what changed, states by version.
        """
        ids = sorted({entry.job for entry in batch})
        async with self._pool.acquire() as connection, connection.transaction():
            # Should we vanish without a word, the rows must not stay locked until TCP notices.
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '5s'")
            locked = await connection.fetch(SQL["lock_jobs"], ids)
            numbers = {row["id"]: (row["number"], row["chunk_size"]) for row in locked}
            try:
                rows = await self._rows(connection, batch, numbers)
            except (ValueError, LookupError, struct.error) as error:
                message = f"an outcome cannot be read: {type(error).__name__}"
                raise ArchiveError(message, hopeless=True) from error
            moved = []
            if rows:
                moved = await connection.fetch(SQL["upsert_logs"], _encode_rows(rows).decode())
                await _move(connection, moved)
                await _suppress(connection, rows)
                await _forget_parks(connection, rows, locked)
            await _set_states(connection, batch)
            ended = await connection.fetch(SQL["ended"], ids)
            over = [entry.job for entry in batch if entry.kind == "state" and entry.event]
            accepted = await connection.fetch(SQL["accepted"], over) if over else []
            wamids = [row.wamid for row in rows if row.wamid is not None]
            shared = await connection.fetch(SQL["shared_wamids"], wamids) if wamids else []
        raised = {row["job_number"] for row in moved if row["was"] is not None}
        found: dict[tuple[str, str], int] = {}
        for row in moved:
            key = (row["sender"], row["outcome"])
            found[key] = found.get(key, 0) + row["n"]
        return Recorded(
            rows=sum(found.values()),
            moved=[Moved(sender, outcome, n) for (sender, outcome), n in found.items()],
            ended=[(row["id"], row["version"]) for row in ended],
            accepted={row["id"]: (row["kind"], row["created_ms"]) for row in accepted},
            shared={row["job_id"]: row["n"] for row in shared},
            raised=frozenset(job for job, (number, _) in numbers.items() if number in raised),
        )

    async def _rows(
        self,
        connection: asyncpg.pool.PoolConnectionProxy,
        batch: list[OutcomeEntry],
        numbers: dict[str, tuple[int, int]],
    ) -> list[_LogRow]:
        rows: list[_LogRow] = []
        phones: dict[str, list[int]] = {}
        for entry in batch:
            if entry.job not in numbers or entry.kind == "state":
                continue
            number, chunk_size = numbers[entry.job]
            if entry.kind == "facts":
                # Intents that are told again bring no details.
                details = {d.index: d for d in _decode_details(entry.record or _NO_DETAILS)}
                base = entry.chunk * chunk_size
                for fact in unpack_facts(entry.facts):
                    if fact.state not in OUTCOMES:
                        continue  # a job gone from Redis passes on what it was told, as it came
                    detail = details.get(fact.index)
                    if detail is None or not detail.phone:
                        known = await _phones(connection, entry.job, phones)
                        phone = known[base + fact.index]
                        if detail is None:
                            detail = Detail(fact.index, phone, _at_ms(entry))
                        # A webhook was first: it names no number as we wrote it.
                        detail = msgspec.structs.replace(detail, phone=phone)
                    rows.append(_log_row(number, base + fact.index, fact.state, fact.reason,
                                         fact.attempt, detail))  # fmt: skip
                continue
            known = await _phones(connection, entry.job, phones)
            for first, last in entry.ranges:
                for position in range(first, last + 1):
                    detail = Detail(0, known[position], _at_ms(entry))
                    rows.append(_log_row(number, position, entry.state, entry.reason, 0, detail))
        return rows

    # -- the server ------------------------------------------------------------------------

    @guarded
    async def ping(self) -> None:
        """Ask for anything at all."""
        await self._pool.fetchval("SELECT 1")

    @guarded
    async def server_version(self) -> str:
        """Return PostgreSQL's version, such as `18.6`."""
        return str(await self._pool.fetchval("SHOW server_version")).split(" ")[0]

    @guarded
    async def schema_version(self) -> str:
        """Return the newest migration applied; '' when there is none."""
        return str(await self._pool.fetchval("SELECT max(version) FROM schema_migrations") or "")

    @guarded
    async def table_sizes(self) -> dict[str, int]:
        """Return bytes by table, indexes included."""
        return {row["name"]: row["bytes"] for row in await self._pool.fetch(SQL["table_sizes"])}

    def pool_sizes(self) -> tuple[int, int]:
        """Return (busy, all) connections of the pool."""
        size = self._pool.get_size()
        return size - self._pool.get_idle_size(), size

    @asynccontextmanager
    async def advisory(self, number: int) -> AsyncGenerator[bool]:
        """Hold a lock of the whole fleet while inside; yields whether it was got."""
        try:
            async with self._pool.acquire() as connection:
                got = bool(
                    await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", LOCK, number)
                )
                try:
                    yield got
                finally:
                    if got:
                        await connection.execute("SELECT pg_advisory_unlock($1, $2)", LOCK, number)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            raise ArchiveError(f"PostgreSQL: {type(error).__name__}") from error


def affected(done: str) -> int:
    """Return how many rows a statement has changed, as PostgreSQL says it.

    >>> affected("DELETE 7"), affected("INSERT 0 1")
    (7, 1)
    """
    return int(done.rsplit(" ", 1)[1])


def _at_ms(entry: OutcomeEntry) -> int:
    """Return when the entry was written: a stream id begins with the server's time."""
    return int(entry.entry.split("-", 1)[0])


def _log_row(
    number: int, position: int, state: int, reason: int, attempts: int, detail: Detail
) -> _LogRow:
    reason &= 0x7FFF
    code = detail.code
    if code is None and state == State.FAILED:
        code = code_of_reason(reason)
    return _LogRow(
        number, position, detail.phone, _WORDS[state], RANK[state], reason, attempts,
        detail.at_ms, detail.wamid, code, detail.text, detail.trace, detail.message_status,
    )  # fmt: skip


async def _phones(
    connection: asyncpg.pool.PoolConnectionProxy, job_id: str, known: dict[str, list[int]]
) -> list[int]:
    if job_id not in known:
        blob = await connection.fetchval(SQL["blob"], job_id)
        known[job_id] = [n for raw in unpack_blob(blob) for n in _decode_chunk(raw).phones]
    return known[job_id]


async def _move(connection: asyncpg.pool.PoolConnectionProxy, moved: list[Any]) -> None:
    by_job: dict[int, dict[str, int]] = {}
    for row in moved:
        counters = by_job.setdefault(row["job_number"], dict.fromkeys(_NAMES, 0))
        counters[row["outcome"]] += row["n"]
        if row["was"] is not None:
            counters[row["was"]] -= row["n"]
    if by_job:
        columns = [[counters[name] for counters in by_job.values()] for name in _NAMES]
        await connection.execute(SQL["move_counters"], list(by_job), *columns)


async def _suppress(connection: asyncpg.pool.PoolConnectionProxy, rows: list[_LogRow]) -> None:
    """Put those on the suppression list whom Graph's answer has put there.

    In the transaction of the outcome itself, so that it cannot be lost between the two.
    """
    found = []
    for row in rows:
        code = row.code
        scope = row_of(code, 400).suppress_scope if code and row.outcome == "failed" else None
        if scope is not None:
            found.append((f"{row.job_number}:{row.position}", row.phone, scope, str(code)))
    if found:
        await connection.execute(SQL["lock_suppressions"], LOCK)
        await connection.execute(SQL["suppress"], *map(list, zip(*found, strict=True)))


async def _forget_parks(
    connection: asyncpg.pool.PoolConnectionProxy, rows: list[_LogRow], locked: list[Any]
) -> None:
    parked = {row["number"]: row["sender_id"] for row in locked if row["parks"]}
    newest: dict[str, int] = {}
    for row in rows:
        if row.job_number in parked and row.outcome == "sent":
            sender = parked[row.job_number]
            newest[sender] = max(newest.get(sender, 0), row.at_ms)
    if newest:
        await connection.execute(SQL["forget_parks"], list(newest), list(newest.values()))


async def _set_states(
    connection: asyncpg.pool.PoolConnectionProxy, batch: list[OutcomeEntry]
) -> None:
    rows = newest_states(batch)
    if rows:
        await connection.execute(SQL["set_states"], _encode_rows(rows).decode())


def newest_states(batch: list[OutcomeEntry]) -> list[StateRow]:
    """Return what a batch's state entries come to, a row for each job. Pure.

    That of the highest version counts; what an earlier one alone says, such as when the job
    started, is kept.
    """
    found: dict[str, StateRow] = {}
    entries = (entry for entry in batch if entry.kind == "state")
    for entry in sorted(entries, key=lambda each: each.version):
        last = found.get(entry.job)
        found[entry.job] = StateRow(
            entry.job,
            entry.job_state,
            entry.version,
            entry.by,
            entry.text,
            max(entry.started_ms, last.started_ms if last else 0),
            max(entry.finished_ms, last.finished_ms if last else 0),
            entry.event or (last.end_event if last else None),
        )
    return list(found.values())


def _user(row: Any) -> UserRow | None:  # noqa: ANN401 - asyncpg's Record
    if row is None:
        return None
    return UserRow(
        str(row["id"]), row["email"], row["password_hash"], row["role"], row["is_disabled"]
    )


def _key(row: Any) -> KeyRow | None:  # noqa: ANN401 - asyncpg's Record
    if row is None:
        return None
    expires = row["expires_at"]
    return KeyRow(
        id=row["id"],
        user_id=str(row["user_id"]),
        name=row["name"],
        sha256=row["sha256"],
        scopes=list(row["scopes"]),
        last4=row["last4"],
        expires_at_ms=int(expires.timestamp() * 1000) if expires else 0,
        revoked=row["revoked_at"] is not None,
        role=row["role"],
        disabled=row["is_disabled"],
    )


def _sender(row: Any) -> SenderRow:  # noqa: ANN401 - asyncpg's Record
    return SenderRow(**{name: row[name] for name in SenderRow.__struct_fields__})


_RENAMED: Final = {"by": "by_whom", "sandbox": "is_sandbox"}


def _job(row: Any) -> JobRow:  # noqa: ANN401 - asyncpg's Record
    fields = {name: row[_RENAMED.get(name, name)] for name in JobRow.__struct_fields__}
    fields["owner"] = str(fields["owner"])
    return JobRow(**fields)
