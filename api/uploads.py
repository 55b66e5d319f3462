"""Uploads: a file of recipients is read, looked through and kept for a while."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
from pathlib import Path
from typing import Annotated, Final

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

import api
from api import auth, wire
from api.auth import Principal, principal
from api.columns import Mapping, guess_phone, name_of
from api.exports import csv_of_cells
from api.guard import SMALL_BODY, body_of, check_length
from api.idempotency import key_of
from api.intake import PROBLEMS_MAX, Taken
from api.owned import answer
from api.resources import Resources, resources
from api.router import Route, query_of
from api.sheets import NAME_MAX, Sheet
from api.sources import upload_slices
from api.submit import turn_of
from api.wire import refuse
from shared import ids
from shared.archive import pack_blob
from shared.errors import (
    ConflictError,
    InvalidError,
    MalformedError,
    NotFoundError,
    TooManyError,
)
from shared.message import Text, TextMessage
from shared.phone import regions
from shared.uploads import UploadRow

TYPES: Final = {
    "text/csv": "csv",
    "application/x-ndjson": "ndjson",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.oasis.opendocument.spreadsheet": "ods",
}
KEPT_MAX: Final = 20
FILENAME_MAX: Final = 255
READ_S: Final = 30.0
_ROOT: Final = Path(api.__file__).parent.parent
# Any message will do: only the numbers are looked at.
_MESSAGE: Final = TextMessage(Text("x"))
_Column = Annotated[str, Meta(min_length=1, max_length=NAME_MAX + 20)]


class Column(msgspec.Struct, frozen=True):
    """A column of a file, and what it is taken for: `to`, `ref`, or None."""

    name: str
    guess: str | None


class Counts(msgspec.Struct, frozen=True):
    """What became of the rows of an upload."""

    valid: int = 0
    invalid: int = 0
    duplicates: int = 0
    changed: int = 0
    suspect: int = 0
    problems: list[wire.Row] = []


class Upload(msgspec.Struct, frozen=True):
    """A file as it was read.

    Attributes:
        rows: rows that hold anything, without the header.
        phone_column: None = nobody knows; PATCH says.
        problems: the first hundred; all are in problems.csv.
        note: what was guessed about the file.
    """

    id: str
    filename: str
    format: str
    rows: int
    columns: list[Column]
    phone_column: str | None
    default_region: str | None
    valid: int
    invalid: int
    duplicates: int
    changed: int
    suspect: int
    problems: list[wire.Row]
    note: str | None
    expires_at: str


class UploadPatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PATCH /api/bulk/uploads/{id}`."""

    phone_column: _Column | UnsetType = UNSET
    default_region: Annotated[str, Meta(min_length=2, max_length=2)] | UnsetType | None = UNSET


def upload_of(row: UploadRow) -> Upload:
    """Return an upload as its owner sees it."""
    counts = msgspec.json.decode(row.counts, type=Counts)
    columns = [Column(name, _guess_of(name, row.phone_column)) for name in row.columns]
    return Upload(
        id=row.id,
        filename=row.filename,
        format=row.format,
        rows=row.rows,
        columns=columns,
        phone_column=row.phone_column,
        default_region=row.default_region,
        valid=counts.valid,
        invalid=counts.invalid,
        duplicates=counts.duplicates,
        changed=counts.changed,
        suspect=counts.suspect,
        problems=counts.problems,
        note=row.note or None,
        expires_at=wire.time_text(row.expires_ms) or "",
    )


def _guess_of(name: str, phone_column: str | None) -> str | None:
    if name == phone_column:
        return "to"
    return "ref" if name_of(name) == "ref" else None


def type_of(content_type: str) -> str:
    """Return the format of a media type.

    Raises:
        MalformedError: 415: none of those taken.
    """
    word = content_type.split(";", maxsplit=1)[0].strip().lower()
    if word not in TYPES:
        raise MalformedError("unsupported_media_type", f"An upload is one of: {', '.join(TYPES)}.")
    return TYPES[word]


def check_region(region: str | None, pointer: str) -> None:
    """Refuse what is no region.

    Raises:
        InvalidError: `validation_failed`.
    """
    if region is not None and region not in regions():
        refuse(pointer, "not an ISO 3166 region such as DE")


async def add(request: web.Request) -> web.Response:
    """POST /api/bulk/uploads: read a file and keep it, or nothing."""
    made, asker = resources(request), principal(request)
    kind = type_of(request.headers.get("Content-Type", ""))
    check_length(request, made.settings.upload_max_bytes)
    await made.switch.require_on()
    key = key_of(request)
    query = query_of(request, "filename", "phone_column", "default_region")
    filename = query.get("filename", f"upload.{kind}")
    if not filename.isprintable() or not 1 <= len(filename) <= FILENAME_MAX:
        refuse("", f"filename is 1 to {FILENAME_MAX} printable characters")
    check_region(query.get("default_region"), "")
    settings = made.settings
    async with turn_of(made, f"upload:{asker.user_id}"):
        raw = await body_of(request, settings.upload_max_bytes, settings.body_timeout_s)
        if not raw:
            raise MalformedError("empty_body", "A file is expected; the body is empty.")
        request_hash = None
        if key is not None:
            request_hash = await asyncio.to_thread(_hash_of, raw, query)
            again = await _replay(made, asker, key, request_hash)
            if again is not None:
                return again
        sheet = await _read(made, raw, kind)
        del raw
        row = await _row_of(made, asker, sheet, kind, filename, query)
        row = msgspec.structs.replace(row, idempotency_key=key, request_hash=request_hash)
        try:
            is_kept = await made.uploads.add(row, row.created_ms, KEPT_MAX)
        except ConflictError:
            again = await _replay(made, asker, key or "", request_hash or b"")
            if again is None:
                raise
            return again
    if not is_kept:
        raise TooManyError("rate_limited", f"At most {KEPT_MAX} uploads are kept; delete one.", 60)
    return _created(row)


def _created(row: UploadRow, headers: dict[str, str] | None = None) -> web.Response:
    response = answer(upload_of(row), 201)
    response.headers.update({"Location": f"/api/bulk/uploads/{row.id}", **(headers or {})})
    return response


def _hash_of(raw: bytes, query: dict[str, str]) -> bytes:
    return hashlib.sha256(wire.canonical(query) + hashlib.sha256(raw).digest()).digest()


async def _replay(
    made: Resources, asker: Principal, key: str, request_hash: bytes
) -> web.Response | None:
    row = await made.uploads.idempotent(asker.user_id, key)
    if row is None:
        return None
    if row.request_hash != request_hash:
        raise InvalidError(
            "idempotency_mismatch", "This Idempotency-Key came before with another file."
        )
    return _created(row, {"Idempotent-Replayed": "true"})


async def _read(made: Resources, raw: bytes, kind: str) -> Sheet:
    """Read a file in a child process, which no file can make outlive its time.

    Raises:
        InvalidError: `unreadable_file` or `too_many_recipients`.
    """
    sheet: Sheet | None = None
    async with made.readers:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "api.sheets",
            kind,
            str(made.settings.bulk_hard_cap),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=_ROOT,
            env={},
        )
        try:
            async with asyncio.timeout(READ_S):
                out, _ = await child.communicate(raw)
            if child.returncode == 0:
                sheet = msgspec.msgpack.decode(out, type=Sheet)
        except (TimeoutError, ConnectionError, msgspec.DecodeError):
            sheet = None
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
    if sheet is None:
        raise InvalidError("unreadable_file", "The file cannot be read, or takes too long.")
    if sheet.error:
        raise InvalidError(sheet.error, f"The file was not taken: {sheet.detail}")
    return sheet


async def _row_of(
    made: Resources,
    asker: Principal,
    sheet: Sheet,
    kind: str,
    filename: str,
    query: dict[str, str],
) -> UploadRow:
    phone_column = query.get("phone_column") or guess_phone(sheet.columns, sheet.sample)
    if phone_column is not None and phone_column not in sheet.columns:
        refuse("", "phone_column: the file has no such column")
    now_ms = made.clock.now_ms()
    row = UploadRow(
        id=made.ids.object_id("upl"),
        owner=asker.user_id,
        filename=filename,
        format=kind,
        first_row=sheet.first_row,
        rows=sheet.rows,
        columns=sheet.columns,
        phone_column=phone_column,
        default_region=query.get("default_region"),
        counts=b"",
        note=sheet.note,
        created_ms=now_ms,
        expires_ms=now_ms + made.settings.upload_ttl_s * 1000,
        content=await asyncio.to_thread(pack_blob, sheet.chunks),
    )
    return await counted(made, row)


async def counted(made: Resources, row: UploadRow) -> UploadRow:
    """Return an upload with the counts of its rows as they are looked at now."""
    if row.phone_column is None:
        text = "say which column holds the numbers"
        problem = wire.Row("/phone_column", None, "validation_failed", text)
        return msgspec.structs.replace(row, counts=wire.encode(Counts(problems=[problem])))
    taken = await _look(made, row, PROBLEMS_MAX)
    counts = Counts(
        len(taken.phones),
        taken.invalid,
        taken.duplicates,
        taken.changed,
        taken.suspect,
        [wire.Row(f.pointer, f.row, f.code, f.detail) for f in taken.faults],
    )
    return msgspec.structs.replace(row, counts=wire.encode(counts))


async def _look(made: Resources, row: UploadRow, most: int) -> Taken:
    taken = Taken(
        _MESSAGE,
        made.lengths,
        made.settings.phone_validation,
        row.default_region,
        at="/rows",
        problems_max=most,
    )
    ref = next((at for at, name in enumerate(row.columns) if name_of(name) == "ref"), -1)
    mapping = Mapping(row.columns.index(row.phone_column or ""), ref, {})
    for first, rows in await upload_slices(row, mapping):
        taken.take(rows, first)
        await made.clock.sleep(0)
    return taken


async def _kept(request: web.Request, made: Resources) -> UploadRow:
    upload_id = request.match_info["upload_id"]
    row = None
    if ids.is_object_id(upload_id):
        asker = principal(request)
        row = await made.uploads.one(upload_id, asker.owner, made.clock.now_ms())
    if row is None:
        raise NotFoundError
    return row


async def show_upload(request: web.Request) -> web.Response:
    """GET /api/bulk/uploads/{id}."""
    made = resources(request)
    query_of(request)
    return answer(upload_of(await _kept(request, made)))


async def change_upload(request: web.Request) -> web.Response:
    """PATCH /api/bulk/uploads/{id}: another phone column or region; the counts follow."""
    made, asker = resources(request), principal(request)
    query_of(request)
    raw = await body_of(request, SMALL_BODY, made.settings.body_timeout_s)
    patch = wire.decode(raw, UploadPatch)
    row = await _kept(request, made)
    if patch.phone_column is not UNSET:
        if patch.phone_column not in row.columns:
            refuse("/phone_column", "the upload has no such column")
        row = msgspec.structs.replace(row, phone_column=patch.phone_column)
    if patch.default_region is not UNSET:
        check_region(patch.default_region, "/default_region")
        row = msgspec.structs.replace(row, default_region=patch.default_region)
    row = await counted(made, row)
    is_there = await made.uploads.change(
        row.id, asker.owner, row.phone_column, row.default_region, row.counts
    )
    if not is_there:
        raise NotFoundError
    return answer(upload_of(row))


async def drop_upload(request: web.Request) -> web.Response:
    """DELETE /api/bulk/uploads/{id}: with all it holds; jobs made of it keep theirs."""
    made, asker = resources(request), principal(request)
    query_of(request)
    row = await _kept(request, made)
    if not await made.uploads.drop(row.id, asker.owner):
        raise NotFoundError
    return web.Response(status=204)


async def list_problems(request: web.Request) -> web.Response:
    """GET /api/bulk/uploads/{id}/problems.csv: every bad row of the file, by its number."""
    made = resources(request)
    query_of(request)
    row = await _kept(request, made)
    table: list[list[str | int | None]] = [["row", "code", "detail"]]
    if row.phone_column is not None:
        taken = await _look(made, row, row.rows)
        table += [[fault.row, fault.code, fault.detail] for fault in taken.faults]
    body = await asyncio.to_thread(csv_of_cells, table)
    headers = {
        "Content-Type": "text/csv; charset=utf-8; header=present",
        "Content-Disposition": f'attachment; filename="{row.id}-problems.csv"',
    }
    return web.Response(body=body, headers=headers)


ROUTES: Final = (
    Route("POST", "/api/bulk/uploads", add, auth.SEND, "intake"),
    Route("GET", "/api/bulk/uploads/{upload_id}", show_upload, auth.SEND, "intake"),
    Route("PATCH", "/api/bulk/uploads/{upload_id}", change_upload, auth.SEND, "intake",
          has_body=True),
    Route("DELETE", "/api/bulk/uploads/{upload_id}", drop_upload, auth.SEND, "intake"),
    Route("GET", "/api/bulk/uploads/{upload_id}/problems.csv", list_problems, auth.SEND, "intake"),
)  # fmt: skip
