"""The PostgreSQL door to what is forgotten: old jobs, old audit entries, one person's number.

For the role that owns the tables. Short transactions throughout: whoever sends or reads meanwhile
waits for none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import asyncpg

from shared.archive import SQL, affected, guarded, pack_blob, unpack_blob

# Looks at whole tables; nobody waits for them.
_LOOK_S: Final = 120.0
_JOBS_AT_ONCE: Final = 100
_BLOBS_AT_ONCE: Final = 8
ROWS_AT_ONCE: Final = 5_000
LIFTED_DAYS: Final = 30


class OldJob(NamedTuple):
    """A job that may go, by its number, and how many recipients it has."""

    number: int
    recipients: int


class Unfinished(NamedTuple):
    """A job that has not ended, or not every outcome of which is logged; encoded chunks."""

    number: int
    id: str
    chunks: list[bytes]


class Places(NamedTuple):
    """Where in a job somebody is: positions in the job of this number."""

    number: int
    positions: list[int]


class Retention:
    """What is forgotten. Every method raises ArchiveError.

    Args:
        pool: opened by `connect.open_postgres`; borrowed.
    """

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        """Borrow the pool."""
        self._pool = pool

    # -- what is old -------------------------------------------------------------------------

    @guarded
    async def undeletable(self) -> list[str]:
        """Return the tables that this role may not delete from and a purge would."""
        return [row["name"] for row in await self._pool.fetch(SQL["undeletable"])]

    @guarded
    async def old_jobs(self, before_ms: int) -> list[OldJob]:
        """Return the jobs that ended before, with all that stems from them; newest first."""
        rows = await self._pool.fetch(SQL["old_jobs"], before_ms, timeout=_LOOK_S)
        return [OldJob(row["number"], row["recipients"]) for row in rows]

    @guarded
    async def unlogged_jobs(self, before_ms: int) -> int:
        """Return how many jobs ended before and miss outcomes: they are never purged."""
        found = await self._pool.fetchval(SQL["unlogged_jobs"], before_ms, timeout=_LOOK_S)
        return int(found)

    async def drop_jobs(self, jobs: Sequence[OldJob]) -> int:
        """Forget jobs as `old_jobs` returned them; return how many are gone, without their logs.

        From then on nobody finds them; `drop_lost_logs` does the rest, also another day.
        """
        numbers = [job.number for job in jobs]
        gone = 0
        for at in range(0, len(numbers), _JOBS_AT_ONCE):
            gone += await self._drop_some(numbers[at : at + _JOBS_AT_ONCE])
        return gone

    @guarded
    async def _drop_some(self, numbers: list[int]) -> int:
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(SQL["lock_numbers"], numbers)
            return affected(await connection.execute(SQL["drop_jobs"], numbers))

    async def drop_lost_logs(self) -> int:
        """Delete the rows of jobs that are gone; return how many."""
        gone = 0
        for number in await self._lost_logs():
            while rows := await self._drop_logs(number):
                gone += rows
        return gone

    @guarded
    async def _lost_logs(self) -> list[int]:
        rows = await self._pool.fetch(SQL["lost_logs"], timeout=_LOOK_S)
        return [row["job_number"] for row in rows]

    @guarded
    async def _drop_logs(self, number: int) -> int:
        return affected(await self._pool.execute(SQL["drop_logs"], number, ROWS_AT_ONCE))

    @guarded
    async def old_audit(self, before_ms: int) -> int:
        """Return how many audit entries are older."""
        return int(await self._pool.fetchval(SQL["old_audit"], before_ms, timeout=_LOOK_S))

    async def drop_audit(self, before_ms: int) -> int:
        """Delete the audit entries that are older; return how many."""
        gone = 0
        while rows := await self._drop_audit(before_ms):
            gone += rows
        return gone

    @guarded
    async def _drop_audit(self, before_ms: int) -> int:
        done = await self._pool.execute(SQL["drop_audit"], before_ms, ROWS_AT_ONCE, timeout=_LOOK_S)
        return affected(done)

    # -- one person --------------------------------------------------------------------------

    @guarded
    async def unfinished(self, after: int) -> list[Unfinished]:
        """Return a few jobs above number `after` whose recipients Redis may still hold."""
        rows = await self._pool.fetch(SQL["unfinished_blobs"], after, _BLOBS_AT_ONCE)
        return [Unfinished(row["number"], row["id"], unpack_blob(row["blob"])) for row in rows]

    @guarded
    async def places(self, phone: int) -> list[Places]:
        """Return where a number was written to; of ended jobs that is wherever it stands."""
        rows = await self._pool.fetch(SQL["places_of_phone"], phone)
        return [Places(row["job_number"], list(row["positions"])) for row in rows]

    @guarded
    async def blank(
        self, place: Places, without: Callable[[list[bytes], int, Sequence[int]], list[bytes]]
    ) -> None:
        """Blank recipients of an ended job, in its row and its log; outcomes and counts stay.

        Args:
            place: which.
            without: encoded chunks, recipients a chunk, positions → the chunks without them.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(SQL["job_for_erasure"], place.number)
            if row is not None:
                chunks = without(unpack_blob(row["blob"]), row["chunk_size"], place.positions)
                await connection.execute(SQL["set_blob"], place.number, pack_blob(chunks))
                await connection.execute(SQL["drop_early_of"], row["id"], place.positions)
            await connection.execute(SQL["blank_logs"], place.number, place.positions)

    @guarded
    async def upload_ids(self) -> list[str]:
        """Return every file of recipients that is kept."""
        return [row["id"] for row in await self._pool.fetch(SQL["upload_ids"])]

    @guarded
    async def blank_upload(
        self, upload_id: str, without: Callable[[list[bytes], str | None], tuple[list[bytes], int]]
    ) -> int:
        """Blank rows of a file; return how many.

        Args:
            upload_id: which.
            without: encoded chunks, the file's region → the chunks without them, how many rows.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(SQL["upload_for_erasure"], upload_id)
            if row is None:
                return 0
            chunks, rows = without(unpack_blob(row["content"]), row["default_region"])
            if rows:
                await connection.execute(SQL["set_content"], upload_id, pack_blob(chunks))
        return rows

    @guarded
    async def blank_lifted(self, phone: int) -> int:
        """Blank entries of the suppression list that were lifted `LIFTED_DAYS` ago; how many."""
        return affected(await self._pool.execute(SQL["blank_lifted"], phone, LIFTED_DAYS))

    @guarded
    async def entries(self, phone: int) -> int:
        """Return how many entries of the suppression list hold a number, lifted ones too."""
        return int(await self._pool.fetchval(SQL["entries_of_phone"], phone))
