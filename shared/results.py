"""The PostgreSQL door to what recipients came to. Writes nothing; `archive` does."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import msgspec

from shared.archive import SQL, guarded

# As `campaign_logs.receipt` counts them: receipts only move up.
RECEIPTS: Final = ("none", "held", "failed", "delivered", "read")


class RecipientFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What a table of recipients is narrowed by; None or 0 = not by this.

    Attributes:
        outcomes: `pending` means those without one.
        receipts: places in `RECEIPTS`.
        codes: Graph's codes.
        before_ms: only what came to its outcome before, epoch.
        positions: only these.
    """

    outcomes: list[str] | None = None
    receipts: list[int] | None = None
    codes: list[int] | None = None
    before_ms: int = 0
    positions: list[int] | None = None


class ResultRow(msgspec.Struct, frozen=True):
    """What one recipient came to; `outcome` None = nothing yet. Times in ms, 0 = none."""

    position: int
    outcome: str | None
    reason: int
    code: int | None
    error: str | None
    attempts: int
    wamid: str | None
    at_ms: int
    receipt: int
    receipt_at_ms: int


class HistoryRow(msgspec.Struct, frozen=True):
    """One message that somebody was to get, and its job."""

    job_number: int
    job_id: str
    campaign_id: str | None
    kind: str
    template_name: str | None
    sender: str
    result: ResultRow


class CampaignRow(msgspec.Struct, frozen=True):
    """The jobs of a label that are in one state, added up; times in ms since the epoch."""

    state: str
    jobs: int
    total: int
    sent: int
    failed: int
    skipped: int
    cancelled: int
    unknown: int
    delivered: int
    read: int
    undelivered: int
    first_ms: int
    last_ms: int


class Snapshot:
    """One job's results as of one moment; holds a connection until it is closed.

    Attributes:
        recipients: how many the job has.
        chunk_size: recipients a chunk.
        vars: names of the values of each recipient.
        blob: the recipients (`archive.unpack_blob`).
        as_of_ms: the moment, epoch.
    """

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        connection: asyncpg.pool.PoolConnectionProxy,
        row: Any,  # noqa: ANN401 - asyncpg's Record
    ) -> None:
        """Borrow a connection that is inside its transaction."""
        self._pool = pool  # `guarded` closes the others when one does not answer
        self._connection = connection
        self._number: int = row["number"]
        self.recipients: int = row["recipients"]
        self.chunk_size: int = row["chunk_size"]
        self.vars: list[str] = list(row["vars"])
        self.blob: bytes = row["blob"]
        self.as_of_ms: int = row["as_of_ms"]

    @guarded
    async def window(
        self, first: int, last: int, what: RecipientFilter, most: int
    ) -> list[ResultRow]:
        """Return at most `most` of the positions `first` to `last` that the filter lets through."""
        rows = await self._connection.fetch(
            SQL["recipients"], self._number, first, last, what.outcomes, what.receipts, what.codes,
            what.before_ms, what.positions, most,
        )  # fmt: skip
        return [_row(row) for row in rows]


def _row(row: Any) -> ResultRow:  # noqa: ANN401 - asyncpg's Record
    return ResultRow(
        row["position"], row["outcome"], row["reason"] or 0, row["code"], row["error"],
        row["attempts"] or 0, row["wamid"], row["at_ms"] or 0, row["receipt"],
        row["receipt_at_ms"] or 0,
    )  # fmt: skip


class Results:
    """What recipients came to. Every method raises ArchiveError.

    Args:
        pool: opened by `connect.open_postgres`; borrowed.
    """

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        """Borrow the pool."""
        self._pool = pool

    @asynccontextmanager
    async def snapshot(self, job_id: str, owner: str | None) -> AsyncGenerator[Snapshot | None]:
        """Hold a job's results as of now while inside; None when `owner` may not see it.

        What the caller raises inside comes through as it is.
        """
        connection = await self._acquire()
        try:
            yield await self._open(connection, job_id, owner)
        finally:
            await self._release(connection)

    @guarded
    async def history(
        self, phone: int, owner: str | None, before: int, limit: int
    ) -> list[HistoryRow]:
        """Return what a number's messages came to, newest job first; below number `before`."""
        rows = await self._pool.fetch(SQL["history"], phone, owner, before, limit)
        return [
            HistoryRow(
                row["job_number"], row["job_id"], row["campaign_id"], row["kind"],
                row["template_name"], row["sender"], _row(row),
            )
            for row in rows
        ]  # fmt: skip

    @guarded
    async def campaign(self, campaign_id: str, owner: str | None) -> list[CampaignRow]:
        """Return a label's jobs, added up by state; none when there is no such job to see."""
        rows = await self._pool.fetch(SQL["campaign"], campaign_id, owner)
        return [CampaignRow(**dict(row)) for row in rows]

    @guarded
    async def suppressed_count(self, phones: list[int], *, is_marketing: bool) -> int:
        """Return how many of these numbers are on the suppression list."""
        return int(await self._pool.fetchval(SQL["suppressed_count"], phones, is_marketing))

    @guarded
    async def _acquire(self) -> asyncpg.pool.PoolConnectionProxy:
        return await self._pool.acquire()

    @guarded
    async def _open(
        self, connection: asyncpg.pool.PoolConnectionProxy, job_id: str, owner: str | None
    ) -> Snapshot | None:
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        row = await connection.fetchrow(SQL["roster"], job_id, owner)
        return None if row is None else Snapshot(self._pool, connection, row)

    @guarded
    async def _release(self, connection: asyncpg.pool.PoolConnectionProxy) -> None:
        try:
            if not connection.is_closed():
                await connection.execute("ROLLBACK")
        finally:
            await self._pool.release(connection)
