"""The PostgreSQL door to what webhooks say: receipts and their totals, wishes of recipients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import asyncpg

from shared.archive import LOCK, SQL, guarded
from shared.graph_codes import TRIPS, row_of
from shared.models import Status

FAILED, DELIVERED, READ = 2, 3, 4  # rungs; 0: sent, 1: held
EARLY_S: Final = 86_400.0  # how long a status waits for the row of its message
_RIPE_MAX: Final = 1000


class Found(NamedTuple):
    """The recipient that a status is about.

    Attributes:
        number: of its job's row.
        job, chunk_size, position: where it stands.
        sender_id: of the job.
        phone: 0 while it has no row of its own.
        outcome: '' while it has none.
        attempts: used for that outcome.
        is_held: Graph took the message and held it back.
        has_failed: a failure was told before.
    """

    number: int
    job: str
    chunk_size: int
    position: int
    sender_id: str
    phone: int
    outcome: str
    attempts: int
    is_held: bool
    has_failed: bool


class Totals(NamedTuple):
    """A job's receipts added up; of two the higher version is newer."""

    job: str
    version: int
    delivered: int
    read: int
    undelivered: int


class LateTrips(NamedTuple):
    """How many content errors webhooks have told of a job, and the code of most of them."""

    job: str
    trips: int
    code: int


class Raised(NamedTuple):
    """What one transaction of receipts did.

    Attributes:
        rows: how many recipients it told something new of.
        first: (status, seconds after the message was taken), for each first time.
        seconds: jobs with a recipient whose message Graph took twice; one each.
        totals: of every job concerned, changed or not.
    """

    rows: int
    first: list[tuple[str, float]]
    seconds: list[str]
    totals: list[Totals]


class Receipts:
    """Receipts of all jobs. Every method raises ArchiveError.

    Args:
        pool: opened by `connect.open_postgres`; borrowed.
    """

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        """Borrow the pool."""
        self._pool = pool

    @guarded
    async def find(self, statuses: Sequence[Status]) -> list[Found | None]:
        """Return the recipient of each status: by the opaque value, else by the message's id."""
        found: list[Found | None] = [None] * len(statuses)
        placed = [i for i, status in enumerate(statuses) if status.job]
        if placed:
            rows = await self._pool.fetch(
                SQL["places_by_position"],
                placed,
                [statuses[i].job for i in placed],
                [statuses[i].position for i in placed],
            )
            for row in rows:
                found[row["i"]] = _found(row)
        others = [i for i in range(len(statuses)) if found[i] is None]
        if others:
            wamids = [statuses[i].wamid for i in others]
            rows = await self._pool.fetch(SQL["places_by_wamid"], others, wamids)
            owners: dict[int, set[tuple[int, int]]] = {}
            for row in rows:
                found[row["i"]] = _found(row)
                owners.setdefault(row["i"], set()).add((row["number"], row["position"]))
            for i, places in owners.items():
                if len(places) > 1:
                    found[i] = None
        return found

    @guarded
    async def record(
        self, settled: Sequence[tuple[Status, Found]], early: Sequence[Status]
    ) -> Raised:
        """Raise receipts of messages that are `sent`, keep what is early; one transaction.

        May be repeated: what is known already moves nothing.
        """
        numbers = sorted({place.number for _, place in settled})
        async with self._pool.acquire() as connection, connection.transaction():
            # Should we vanish without a word, the rows must not stay locked until TCP notices.
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '5s'")
            rows: list[Any] = []
            totals: list[Any] = []
            if settled:
                await connection.execute(SQL["lock_numbers"], numbers)
                rows = await connection.fetch(SQL["raise_receipts"], *_columns(settled))
                await _move(connection, rows)
                await _suppress(connection, settled)
                totals = await connection.fetch(SQL["receipt_totals"], numbers)
            if early:
                kept = [
                    (s.wamid, s.receipt, s.at_ms, s.job, s.position, s.attempt, s.code, s.text)
                    for s in early
                ]
                await connection.execute(SQL["keep_early"], *map(list, zip(*kept, strict=True)))
        jobs = {place.number: place.job for _, place in settled}
        return Raised(
            rows=len(rows),
            first=[
                (status, max(0.0, row[f"{status}_s"]))
                for row in rows
                for status in ("failed", "delivered", "read")
                if row[f"{status}_s"] is not None
            ],
            seconds=[jobs[row["job_number"]] for row in rows if row["is_second"]],
            totals=[Totals(**dict(row)) for row in totals],
        )

    @guarded
    async def trips(self, numbers: Sequence[int]) -> list[LateTrips]:
        """Return the content errors told of these jobs so far; nothing where there are none."""
        rows = await self._pool.fetch(SQL["late_trips"], list(numbers), sorted(TRIPS))
        return [LateTrips(**dict(row)) for row in rows]

    @guarded
    async def ripe(self) -> list[Status]:
        """Return early statuses whose message has a row by now."""
        return [
            Status(
                row["wamid"], row["receipt"], row["at_ms"], row["job_id"], row["position"],
                row["attempt"], row["code"], row["error"],
            )
            for row in await self._pool.fetch(SQL["ripe_early"], _RIPE_MAX)
        ]  # fmt: skip

    @guarded
    async def forget(self, statuses: Sequence[Status]) -> None:
        """Drop early statuses that have come to all they can: also what Redis is told of them."""
        if statuses:
            keys = [(s.wamid, s.receipt, s.at_ms) for s in statuses]
            await self._pool.execute(SQL["drop_early"], *map(list, zip(*keys, strict=True)))

    @guarded
    async def expire(self) -> int:
        """Forget early statuses of which nobody has heard for a day; return how many."""
        return int(await self._pool.fetchval(SQL["expire_early"], EARLY_S))

    @guarded
    async def wish(self, phone: int, at_ms: int, *, is_stop: bool) -> None:
        """Write down that somebody wants no marketing any more, or wants it again."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(SQL["lock_suppressions"], LOCK)
            names = ("stop_marketing",) if is_stop else ("remember_resume", "resume_marketing")
            for name in names:
                await connection.execute(SQL[name], phone, at_ms)


def _found(row: Any) -> Found:  # noqa: ANN401 - asyncpg's Record
    return Found(
        row["number"], row["job"], row["chunk_size"], row["position"], row["sender_id"],
        row["phone"] or 0, row["outcome"] or "", row["attempts"] or 0, row["is_held"],
        row["has_failed"],
    )  # fmt: skip


def _columns(settled: Sequence[tuple[Status, Found]]) -> list[list[Any]]:
    rows = [
        (place.number, place.position, s.wamid, s.receipt, s.at_ms, s.code, s.text)
        for s, place in settled
    ]
    return [list(column) for column in zip(*rows, strict=True)]


async def _move(connection: asyncpg.pool.PoolConnectionProxy, rows: list[Any]) -> None:
    moved: dict[int, list[int]] = {}
    for row in rows:
        was, now = row["was"], row["receipt"]
        counts = moved.setdefault(row["job_number"], [0, 0, 0])
        counts[0] += (now >= DELIVERED) - (was >= DELIVERED)
        counts[1] += (now >= READ) - (was >= READ)
        counts[2] += (now == FAILED) - (was == FAILED)
    moved = {number: counts for number, counts in moved.items() if any(counts)}
    if moved:
        columns = map(list, zip(*moved.values(), strict=True))
        await connection.execute(SQL["move_receipts"], list(moved), *columns)


async def _suppress(
    connection: asyncpg.pool.PoolConnectionProxy, settled: Sequence[tuple[Status, Found]]
) -> None:
    """Put those on the suppression list whom a failure has put there, in its own transaction."""
    found = []
    for status, place in settled:
        scope = row_of(status.code, 400).suppress_scope if status.code is not None else None
        if scope is not None:
            cause = f"{place.number}:{place.position}"
            found.append((cause, place.phone, scope, str(status.code)))
    if found:
        await connection.execute(SQL["lock_suppressions"], LOCK)
        await connection.execute(SQL["suppress"], *map(list, zip(*found, strict=True)))
