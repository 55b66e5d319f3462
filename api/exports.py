"""A job's recipients as a file, streamed: one snapshot, the same filters as the table."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, closing
from typing import Final

import msgspec
from aiohttp import web

from api import auth, wire
from api.audit import note
from api.auth import principal
from api.owned import id_of, visible
from api.recipients import FILTERS, WINDOW, Recipient, filter_of, narrowed, recipient_of
from api.resources import Resources, resources
from api.router import Route, query_of
from api.spreadsheet import Spreadsheet
from shared import logs
from shared.errors import NotFoundError, StoreError, TooManyError
from shared.results import RecipientFilter

COLUMNS: Final = Recipient.__struct_fields__
_PHONE: Final = COLUMNS.index("to")
# A client that takes less than a piece in this time holds a connection for nobody's good.
SEND_S: Final = 30.0
EXPORT_S: Final = 600.0
_TURN_S: Final = 5.0
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_log: Final = logs.get("api.exports")
Slices = AsyncGenerator[list[Recipient]]
Pieces = AsyncGenerator[bytes]


def safe_cell(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula (OWASP, CSV injection).

    >>> safe_cell("=1+1"), safe_cell("crm-9")
    ("'=1+1", 'crm-9')
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def cells_of(row: Recipient) -> list[str | int | None]:
    """Return a row of a file as it is, `pending` where there is no outcome yet."""
    cells = list(msgspec.structs.astuple(row))
    cells[COLUMNS.index("outcome")] = row.outcome or "pending"
    return cells


def csv_of_cells(rows: Sequence[Sequence[str | int | None]], phone: int = -1) -> bytes:
    r"""Return rows as CSV (RFC 4180); the cells of column `phone` are E.164 and stay as they are.

    >>> csv_of_cells([[0, "+15550000001", "=x"]], 1)
    b"0,+15550000001,'=x\r\n"
    """
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\r\n").writerow
    for cells in rows:
        write(
            [
                safe_cell(cell) if isinstance(cell, str) and place != phone else cell
                for place, cell in enumerate(cells)
            ]
        )
    return out.getvalue().encode()


async def _slices(
    made: Resources, job_id: str, owner: str | None, what: RecipientFilter, q: str
) -> Slices:
    """Yield a job's recipients in one consistent snapshot, a window at a time."""
    async with made.results.snapshot(job_id, owner) as snapshot:
        if snapshot is None:
            raise NotFoundError
        roster, what = await narrowed(snapshot, what, q)
        for first in range(0, snapshot.recipients, WINDOW):
            last = min(first + WINDOW, snapshot.recipients) - 1
            rows = await snapshot.window(first, last, what, WINDOW)
            if rows:
                yield [recipient_of(row, roster.at(row.position)) for row in rows]


async def _csv(slices: Slices) -> Pieces:
    yield csv_of_cells([COLUMNS])
    async for rows in slices:
        yield await asyncio.to_thread(csv_of_cells, [cells_of(row) for row in rows], _PHONE)


async def _ndjson(slices: Slices) -> Pieces:
    async for rows in slices:
        yield b"".join(wire.encode(row) + b"\n" for row in rows)


async def _xlsx(slices: Slices) -> Pieces:
    with closing(Spreadsheet()) as sheet:
        yield sheet.add([COLUMNS])
        async for rows in slices:
            yield await asyncio.to_thread(sheet.add, [cells_of(row) for row in rows])
        yield await asyncio.to_thread(sheet.end)


async def export_csv(request: web.Request) -> web.StreamResponse:
    """GET /api/bulk/jobs/{jobId}/recipients.csv."""
    return await _export(request, "csv", "text/csv; charset=utf-8; header=present", _csv)


async def export_ndjson(request: web.Request) -> web.StreamResponse:
    """GET /api/bulk/jobs/{jobId}/recipients.ndjson."""
    return await _export(request, "ndjson", "application/x-ndjson", _ndjson)


async def export_xlsx(request: web.Request) -> web.StreamResponse:
    """GET /api/bulk/jobs/{jobId}/recipients.xlsx."""
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    return await _export(request, "xlsx", kind, _xlsx)


async def _export(
    request: web.Request, suffix: str, kind: str, render: Callable[[Slices], Pieces]
) -> web.StreamResponse:
    made, asker = resources(request), principal(request)
    job_id = id_of(request, made)
    query = query_of(request, *FILTERS)
    what, q = filter_of(query), query.get("q", "").strip()
    await visible(made, asker, job_id)
    headers = {
        "Content-Type": kind,
        "Content-Disposition": f'attachment; filename="{job_id}.{suffix}"',
    }
    if request.method == "HEAD":
        return web.Response(headers=headers)
    async with _place(made):
        await note(request, made, asker, "job.export", job_id, "ok", suffix)
        slices = _slices(made, job_id, asker.owner, what, q)
        async with aclosing(slices), aclosing(render(slices)) as pieces:
            # What fails before the first byte is still an answer of its own.
            first = await anext(pieces, b"")
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            try:
                await _write_all(response, first, pieces)
            except (ConnectionError, TimeoutError, StoreError) as error:
                # Half a file must not look like a whole one.
                _log.info("export.broken", jobId=job_id, cause=type(error).__name__)
                if request.transport is not None:
                    request.transport.abort()
    return response


class _place:  # noqa: N801 - used like a function
    """One of the few places for exports.

    Raises:
        TooManyError: none became free within some seconds.
    """

    def __init__(self, made: Resources) -> None:
        self._places = made.exports

    async def __aenter__(self) -> None:
        try:
            async with asyncio.timeout(_TURN_S):
                await self._places.acquire()
        except TimeoutError as error:
            raise TooManyError("rate_limited", "Other exports are under way.", 5) from error

    async def __aexit__(self, *_: object) -> None:
        self._places.release()


async def _write_all(response: web.StreamResponse, first: bytes, pieces: Pieces) -> None:
    async with asyncio.timeout(EXPORT_S):
        await _write(response, first)
        async for piece in pieces:
            await _write(response, piece)
        await response.write_eof()


async def _write(response: web.StreamResponse, piece: bytes) -> None:
    async with asyncio.timeout(SEND_S):
        await response.write(piece)


ROUTES: Final = (
    Route("GET", "/api/bulk/jobs/{job_id}/recipients.csv", export_csv, auth.READ, "jobs"),
    Route("GET", "/api/bulk/jobs/{job_id}/recipients.ndjson", export_ndjson, auth.READ, "jobs"),
    Route("GET", "/api/bulk/jobs/{job_id}/recipients.xlsx", export_xlsx, auth.READ, "jobs"),
)
