"""The PostgreSQL door to what becomes of a job later: changes, children, campaigns, histories."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec

from shared.archive import SQL, JobRow, guarded


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
