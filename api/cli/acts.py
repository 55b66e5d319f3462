"""What an operator's verbs share: one act on PostgreSQL, then lines or a table on stdout."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table

from shared import connect, settings
from shared.archive import Archive
from shared.errors import DrumbeatError, SettingsError
from shared.ids import Ids
from shared.office import Office

ACTOR: Final = "cli"
ids: Final = Ids()
_T = TypeVar("_T")


def with_archive(act: Callable[[Archive], Awaitable[_T]]) -> _T:
    """Run one act on the archive, from a command."""
    return with_stores(lambda archive, _office: act(archive))


def with_office(act: Callable[[Office], Awaitable[_T]]) -> _T:
    """Run one act on the office, from a command."""
    return with_stores(lambda _archive, office: act(office))


def with_stores(act: Callable[[Archive, Office], Awaitable[_T]]) -> _T:
    """Run one act on both doors of PostgreSQL, from a command."""

    async def run() -> _T:
        pool = await connect.open_postgres(settings.load(), size=1)
        try:
            return await act(Archive(pool), Office(pool))
        finally:
            await pool.close()

    return asyncio.run(run())


@asynccontextmanager
async def audited(
    archive: Archive, action: str, object_id: str, reason: str = ""
) -> AsyncGenerator[list[str]]:
    """Write an act of several transactions before and after; yields where its result is put."""
    # The first row stays should we not live to write the second.
    await archive.audit(ACTOR, action, object_id, "asked", reason=reason)
    said: list[str] = []
    try:
        yield said
    except DrumbeatError:
        await archive.audit(ACTOR, action, object_id, "failed", reason=", ".join(said))
        raise
    await archive.audit(ACTOR, action, object_id, "ok", reason=", ".join(said))


def text_of(file: Path) -> str:
    """Return what a file holds, as text.

    Raises:
        SettingsError: it cannot be read, or is not UTF-8; what it holds is not repeated.
    """
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{file} cannot be read as UTF-8 text ({type(error).__name__})"
        ) from None


def print_line(text: str) -> None:
    """Print a line of data."""
    sys.stdout.write(f"{text}\n")


def show(names: list[str], rows: list[list[object]], *, json: bool) -> None:
    """Print rows as a table, or as one JSON document."""
    if json:
        found = [dict(zip(names, row, strict=True)) for row in rows]
        print_line(msgspec.json.encode(found).decode())
        return
    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(str, row))
    Console(highlight=False).print(table)
