"""The PostgreSQL door to notices: what Meta has told last of an account or a template."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from shared.archive import SQL, guarded


class Notices:
    """The last notice about each subject. Every method raises ArchiveError.

    Args:
        pool: opened by `connect.open_postgres`; borrowed.
    """

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        """Borrow the pool."""
        self._pool = pool

    @guarded
    async def once(
        self, waba_id: str, subject: str, at_s: int, event: str, act: Callable[[], Awaitable[None]]
    ) -> bool:
        """Act on a notice that is newer than the last one about its subject; False: it is not.

        It is noted when `act` is done. Until then another notice about the subject waits, and
        whoever dies leaves it to be acted on again.

        Args:
            waba_id: of the account.
            subject: what it is about.
            at_s: when it was told, epoch.
            event: its words; of two in one second they tell a repeated one from another.
            act: may be done twice; what it raises comes through.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            # Should we vanish without a word, the row must not stay locked until TCP notices.
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '30s'")
            is_new = await connection.fetchval(SQL["take_notice"], waba_id, subject, at_s, event)
            if is_new:
                await act()
        return bool(is_new)
