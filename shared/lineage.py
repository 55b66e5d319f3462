"""The PostgreSQL door to what becomes of a job later: changes, children, campaigns, histories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import msgspec

from shared.archive import SQL, JobRow, NewJob, accept, guarded
from shared.errors import ConflictError

# Jobs of one family of retries that are looked at; who cannot see all makes no more.
FAMILY_MAX: Final = 1000


class Terms(msgspec.Struct, frozen=True):
    """What may be changed about a job: `rate` 0 = no ceiling, times in ms, 0 = none."""

    name: str | None
    rate: float
    weight: int
    priority: str
    scheduled_ms: int
    expires_ms: int

    @classmethod
    def of(cls, row: JobRow) -> Terms:
        """Return the terms a job has."""
        return cls(
            row.name, row.rate, row.weight, row.priority, row.scheduled_ms, row.expires_ms
        )  # fmt: skip


class Kin(msgspec.Struct, frozen=True):
    """One job of a family of retries, by rising number."""

    number: int
    id: str
    parent: str | None
    state: str


class Lineage:
    """What becomes of jobs later. Every method raises ArchiveError.

    Args:
        pool: opened by `connect.open_postgres`; borrowed.
    """

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        """Borrow the pool."""
        self._pool = pool

    @guarded
    async def change_job(self, job_id: str, owner: str | None, terms: Terms) -> None:
        """Give a job other terms; nothing happens when `owner` may not see it."""
        await self._pool.execute(
            SQL["change_job"], job_id, owner, terms.name, terms.rate, terms.weight, terms.priority,
            terms.scheduled_ms, terms.expires_ms,
        )  # fmt: skip

    @guarded
    async def family(self, job_id: str) -> list[Kin]:
        """Return the job that all retries around this one stem from, and them, in order.

        At most `FAMILY_MAX`: then there may be more.
        """
        return [
            Kin(**dict(row)) for row in await self._pool.fetch(SQL["family"], job_id, FAMILY_MAX)
        ]

    @guarded
    async def add_child(self, job: NewJob, seen: list[Kin], audit: Sequence[str]) -> None:
        """Accept a retry if its family is still the one that was looked at.

        Args:
            job: its row.
            seen: the family.
            audit: columns of a row of the audit log, written with the job or not at all.

        Raises:
            ConflictError: it has changed, or another request with this idempotency key was first.
            UnavailableError: its sender is being moved to another shard, or was just now.
        """
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                # Retries anywhere in a family wait for each other at its root.
                await connection.execute(SQL["lock_root"], seen[0].id)
                rows = await connection.fetch(SQL["family"], seen[0].id, FAMILY_MAX)
                if [row["id"] for row in rows] == [kin.id for kin in seen]:
                    await accept(connection, job)
                    await connection.execute(SQL["audit"], *audit)
                    return
        except asyncpg.UniqueViolationError as error:
            raise ConflictError(
                "idempotency_in_progress",
                "A request with this Idempotency-Key is being worked on.",
                retry_after_s=1,
            ) from error
        raise ConflictError(
            "state_conflict", "Another retry was made meanwhile; ask again.", retry_after_s=1
        )
