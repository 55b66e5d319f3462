"""The PostgreSQL door to uploads: files of recipients, kept for a while."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec

from shared.archive import SQL, guarded
from shared.errors import ConflictError


class UploadRow(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was read; `content` from `archive.pack_blob`, times in ms since the epoch.

    Attributes:
        first_row: number of the first row of `content` in the file.
        rows: how many rows hold anything.
        columns: their names, in the file's order.
        counts: what became of the rows, as JSON.
        note: what was guessed about the file, for people.
    """

    id: str
    owner: str
    filename: str
    format: str
    first_row: int
    rows: int
    columns: list[str]
    phone_column: str | None
    default_region: str | None
    counts: bytes
    note: str
    created_ms: int
    expires_ms: int
    content: bytes = b""
    idempotency_key: str | None = None
    request_hash: bytes | None = None


class Uploads:
    """Uploads, as we use them. Every method raises ArchiveError; the owner is part of each.

    Args:
        pool: opened by `connect.open_postgres`; borrowed.
    """

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        """Borrow the pool."""
        self._pool = pool

    @guarded
    async def add(self, row: UploadRow, now_ms: int, most: int) -> bool:
        """Keep an upload and forget those whose time is over; False: the owner has too many.

        Raises:
            ConflictError: another request with this idempotency key was first.
        """
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(SQL["forget_uploads"], now_ms)
                added = await connection.fetchval(
                    SQL["add_upload"], row.id, row.owner, row.filename, row.format, row.first_row,
                    row.rows, row.columns, row.phone_column, row.default_region, row.counts,
                    row.note, row.content, row.created_ms, row.expires_ms, row.idempotency_key,
                    row.request_hash, most,
                )  # fmt: skip
        except asyncpg.UniqueViolationError as error:
            raise ConflictError(
                "idempotency_in_progress",
                "A request with this Idempotency-Key is being worked on.",
                retry_after_s=1,
            ) from error
        return added is not None

    @guarded
    async def one(self, upload_id: str, owner: str | None, now_ms: int) -> UploadRow | None:
        """Return an upload with its content, if `owner` may see it; None asks as an admin."""
        return _row(await self._pool.fetchrow(SQL["upload"], upload_id, owner, now_ms))

    @guarded
    async def idempotent(self, owner: str, key: str) -> UploadRow | None:
        """Return the upload that this key made, without its content."""
        return _row(await self._pool.fetchrow(SQL["idempotent_upload"], owner, key))

    @guarded
    async def change(
        self, upload_id: str, owner: str | None, phone_column: str | None,
        default_region: str | None, counts: bytes,
    ) -> bool:  # fmt: skip
        """Read an upload otherwise; False when there is none."""
        done = await self._pool.execute(
            SQL["change_upload"], upload_id, owner, phone_column, default_region, counts
        )
        return bool(done == "UPDATE 1")

    @guarded
    async def drop(self, upload_id: str, owner: str | None) -> bool:
        """Forget an upload; False when there is none."""
        return bool(await self._pool.execute(SQL["drop_upload"], upload_id, owner) == "DELETE 1")


def _row(row: Any) -> UploadRow | None:  # noqa: ANN401 - asyncpg's Record
    if row is None:
        return None
    fields = {name: row[name] for name in UploadRow.__struct_fields__ if name in row}
    return UploadRow(**{**fields, "owner": str(fields["owner"]), "columns": list(row["columns"])})
