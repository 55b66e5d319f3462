"""The PostgreSQL door to what has outlived its time: files nobody used, keys nobody repeats.

PostgreSQL's clock decides: a process whose own is ahead must not forget what is still promised.
"""

from __future__ import annotations

from typing import Any, Final

import asyncpg

from shared.archive import SQL, affected, guarded

FILES_AT_ONCE: Final = 100
KEYS_AT_ONCE: Final = 1_000


class Leftovers:
    """What may go. Every method raises ArchiveError.

    Args:
        pool: opened by `connect.open_postgres`; borrowed.
    """

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        """Borrow the pool."""
        self._pool = pool

    @guarded
    async def drop_uploads(self) -> int:
        """Delete at most `FILES_AT_ONCE` uploads whose time is over; return how many."""
        return affected(await self._pool.execute(SQL["drop_old_uploads"], FILES_AT_ONCE))

    @guarded
    async def drop_keys(self, older_s: int) -> int:
        """Forget Idempotency-Keys this old, with the answers beside them; return how many.

        At most `KEYS_AT_ONCE` of jobs and as many of uploads; the rows themselves stay.
        """
        jobs = await self._pool.execute(SQL["drop_job_keys"], older_s, KEYS_AT_ONCE)
        files = await self._pool.execute(SQL["drop_upload_keys"], older_s, KEYS_AT_ONCE)
        return affected(jobs) + affected(files)
