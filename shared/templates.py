"""The PostgreSQL door to lists of templates: asked for by the API, fetched by one worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import msgspec

from shared.archive import SQL, guarded
from shared.definitions import Definition

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Definition).decode


class ListState(msgspec.Struct, frozen=True):
    """How the list of a WhatsApp business account stands.

    Attributes:
        synced_ms: as of when it is, epoch; 0 = it was never read.
        age_ms: of it, by the server's clock.
        error: why the last try failed; '' = it did not.
        is_settled: whoever asked last has been served.
        rest_ms: how long nobody will try, whoever asks.
    """

    synced_ms: int = 0
    age_ms: int = 0
    error: str = ""
    is_settled: bool = False
    rest_ms: int = 0


class ListedTemplate(msgspec.Struct, frozen=True):
    """A template in a list; `number` is where the list goes on."""

    number: int
    definition: Definition


class Templates:
    """Templates as Meta had them. Every method raises ArchiveError.

    Args:
        pool: opened by `connect.open_postgres`; borrowed.
    """

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        """Borrow the pool."""
        self._pool = pool

    # -- whoever wants to know ---------------------------------------------------------------

    @guarded
    async def ask(self, waba_id: str) -> int:
        """Ask for a fresh list; return when that was (ms, epoch)."""
        return int(await self._pool.fetchval(SQL["ask_for_list"], waba_id))

    @guarded
    async def state(self, waba_id: str) -> ListState:
        """Return how a list stands."""
        row = await self._pool.fetchrow(SQL["template_list"], waba_id)
        return ListState() if row is None else ListState(**dict(row))

    @guarded
    async def page(self, waba_id: str, before: int, limit: int) -> list[ListedTemplate]:
        """Return at most `limit` templates, newest first."""
        rows = await self._pool.fetch(SQL["templates"], waba_id, before, limit)
        return [ListedTemplate(row["number"], _decode(row["definition"])) for row in rows]

    @guarded
    async def named(self, waba_id: str, name: str) -> list[Definition]:
        """Return every language of a template."""
        rows = await self._pool.fetch(SQL["templates_named"], waba_id, name)
        return [_decode(row["definition"]) for row in rows]

    # -- whoever fetches ---------------------------------------------------------------------

    @guarded
    async def due(self, waba_ids: Sequence[str]) -> list[str]:
        """Return whose lists are to be fetched now."""
        return [row["waba_id"] for row in await self._pool.fetch(SQL["due_lists"], list(waba_ids))]

    @guarded
    async def take(self, waba_id: str, for_s: float) -> bool:
        """Be the one who fetches a list; False: another is. Due again after `for_s`, if ever."""
        return await self._pool.fetchval(SQL["take_list"], waba_id, for_s) is not None

    @guarded
    async def missed(self, waba_id: str, error: str, rest_s: float, again_s: float) -> None:
        """Note that a list could not be read.

        Args:
            waba_id: whose.
            error: why, in our own words.
            rest_s: until somebody may ask for it.
            again_s: until it is tried unasked.
        """
        await self._pool.execute(SQL["list_missed"], waba_id, error, rest_s, again_s)

    @guarded
    async def keep(
        self, waba_id: str, found: Sequence[Definition], rest_s: float, again_s: float
    ) -> None:
        """Replace a list by what was read, in one transaction; the times are those of `missed`."""
        names = [each.name for each in found]
        languages = [each.language for each in found]
        packed = [_encode(each) for each in found]
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(SQL["keep_templates"], waba_id, names, languages, packed)
            await connection.execute(SQL["drop_templates"], waba_id, names, languages)
            await connection.execute(SQL["list_read"], waba_id, rest_s, again_s)
