"""Where a submission's recipients come from: the body, an upload, or an earlier job."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from api import wire
from api.auth import Principal
from api.columns import Mapping, mapping_of, row_of
from api.intake import BLANK, SLICE, UNREADABLE, has_vars
from api.jobs import settled_state
from api.recipients import WINDOW, filter_of, narrowed
from api.resources import Resources
from api.roster import Roster
from api.wire import refuse
from shared import ids
from shared.archive import unpack_blob
from shared.errors import Fault, InvalidError
from shared.message import placeholders
from shared.uploads import UploadRow

Slices = Iterator[tuple[int, Sequence[object]]]
_GONE: Final = "there is no such upload of yours, or its time is over"
# Rows of an upload as they are kept: None = the line could not be read.
decode_rows: Final = msgspec.msgpack.Decoder(list[list[str] | None]).decode


class Source(NamedTuple):
    """Rows that are still to be looked at.

    Attributes:
        slices: number of the first row, and at most `SLICE` rows.
        is_filled: placeholders are filled.
        region: numbers written otherwise are read as dialled there.
        at: JSON pointer of the rows.
        parent: the job they come from.
        origins: position in it, by row.
    """

    slices: Slices
    is_filled: bool
    region: str | None
    at: str = "/recipients"
    parent: str | None = None
    origins: list[int] | None = None


def check_source(body: wire.SendRequest, most: int) -> None:
    """Refuse a body that names no source, or several, or too many rows.

    Raises:
        InvalidError: `validation_failed`, `empty_recipients` or `too_many_recipients`.
    """
    is_listed = not isinstance(body.recipients, msgspec.UnsetType)
    count = is_listed + (body.upload_id is not None) + (body.recipients_from is not None)
    if not count:
        refuse("/recipients", "This field is required, or upload_id, or recipients_from.")
    if count > 1:
        refuse("/recipients", "Only one of recipients, upload_id and recipients_from may be given.")
    if body.columns is not None and body.upload_id is None:
        refuse("/columns", "only with an upload_id")
    if not isinstance(body.recipients, msgspec.UnsetType):
        check_count(len(body.recipients), most)


def check_count(count: int, most: int, at: str = "/recipients") -> None:
    """Refuse nobody, and too many.

    Raises:
        InvalidError: `empty_recipients` or `too_many_recipients`.
    """
    if not count:
        raise InvalidError(
            "empty_recipients",
            "There is nobody to send to.",
            [Fault(at, "empty_recipients", "at least one recipient")],
        )
    if count > most:
        text = f"A job has at most {most} recipients."
        raise InvalidError("too_many_recipients", text, [Fault(at, "too_many_recipients", text)])


async def source_of(body: wire.SendRequest, made: Resources, asker: Principal) -> Source:
    """Return where the recipients come from; `check_source` came before.

    Raises:
        InvalidError: the upload is gone, a column is not there, the job is not the asker's.
        ConflictError: the job's last outcomes are still being written.
    """
    if body.upload_id is not None:
        return await _of_upload(body, body.upload_id, made, asker)
    if body.recipients_from is not None:
        return await _of_job(body.recipients_from, body.default_region, made, asker)
    rows = body.recipients
    assert not isinstance(rows, msgspec.UnsetType)  # noqa: S101 - `check_source` came before
    slices = ((at, rows[at : at + SLICE]) for at in range(0, len(rows), SLICE))
    return Source(slices, has_vars(rows), body.default_region)


# -- uploads ---------------------------------------------------------------------------------


async def _of_upload(
    body: wire.SendRequest, upload_id: str, made: Resources, asker: Principal
) -> Source:
    row = None
    if ids.is_object_id(upload_id):
        row = await made.uploads.one(upload_id, asker.owner, made.clock.now_ms())
    if row is None:
        refuse("/upload_id", _GONE, "upload_gone")
    check_count(row.rows, made.settings.bulk_hard_cap, "/upload_id")
    mapping = mapping_of(row.columns, row.phone_column, body.columns, placeholders(body.message))
    region = body.default_region or row.default_region
    slices = await upload_slices(row, mapping)
    return Source(slices, bool(mapping.vars), region, "/rows")


async def upload_slices(row: UploadRow, mapping: Mapping) -> Slices:
    """Return the rows of an upload as recipients, numbered as in the file."""
    chunks = await asyncio.to_thread(unpack_blob, row.content)
    return _upload_slices(chunks, row.first_row, mapping)


def _upload_slices(chunks: list[bytes], first: int, mapping: Mapping) -> Slices:
    for chunk in chunks:
        rows = decode_rows(chunk)
        yield first, [_recipient(cells, mapping) for cells in rows]
        first += len(rows)


def _recipient(cells: list[str] | None, mapping: Mapping) -> object:
    if cells is None:
        return UNREADABLE
    return row_of(cells, mapping) if any(cells) else BLANK


# -- earlier jobs ----------------------------------------------------------------------------


async def _of_job(
    what: wire.RecipientsFrom, region: str | None, made: Resources, asker: Principal
) -> Source:
    given = {"outcome": what.outcome, "receipt": what.receipt, "code": what.code}
    query = {name: str(text) for name, text in given.items() if text is not None}
    narrow = filter_of(query, "/recipients_from")
    if what.older_than_s:
        before_ms = made.clock.now_ms() - what.older_than_s * 1000
        narrow = msgspec.structs.replace(narrow, before_ms=before_ms)
    row = await made.archive.job(what.job, asker.owner) if ids.is_job_id(what.job) else None
    if row is None:
        refuse("/recipients_from/job", "there is no such job of yours")
    await settled_state(made, row)
    positions: list[int] = []
    async with made.results.snapshot(what.job, asker.owner) as snapshot:
        if snapshot is None:
            refuse("/recipients_from/job", "there is no such job of yours")
        roster, narrow = await narrowed(snapshot, narrow, "")
        for first in range(0, snapshot.recipients, WINDOW):
            last = min(first + WINDOW, snapshot.recipients) - 1
            rows = await snapshot.window(first, last, narrow, WINDOW)
            positions += [row.position for row in rows]
    check_count(len(positions), made.settings.bulk_hard_cap, "/recipients_from")
    names = snapshot.vars
    slices = _job_slices(roster, names, positions)
    return Source(slices, bool(names), region, "/recipients_from", what.job, positions)


def _job_slices(roster: Roster, names: list[str], positions: list[int]) -> Slices:
    for at in range(0, len(positions), SLICE):
        rows: list[object] = []
        for position in positions[at : at + SLICE]:
            person = roster.at(position)
            if not person.phone:
                rows.append(BLANK)
                continue
            values = dict(zip(names, person.values or [], strict=False))
            rows.append({"to": f"+{person.phone}", "vars": values, "ref": person.ref})
        yield at, rows
