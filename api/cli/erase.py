"""`drumbeat erase`: one person's number, and what stood beside it, is forgotten."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Final

import cyclopts
import msgspec

from api.cli.acts import audited, print_line
from api.cli.suppress import phone_of
from api.roster import without
from api.sources import decode_rows
from shared import connect, settings
from shared.archive import Archive
from shared.errors import ConflictError, InvalidError, SettingsError
from shared.models import Chunk
from shared.phone import home_of, mark, normalise, regions, why_not
from shared.retention import Places, Retention
from shared.settings import Settings

_TAIL: Final = 6  # digits that every spelling of a number ends with
_NAMED_MAX: Final = 5
_NO_DIGIT: Final = re.compile(r"[^0-9]+")
_decode: Final = msgspec.msgpack.Decoder(Chunk).decode
_encode: Final = msgspec.msgpack.Encoder().encode
Json = Annotated[bool, cyclopts.Parameter(name="--json")]


class Erased(msgspec.Struct, frozen=True):
    """Where somebody was, and is no more.

    Attributes:
        jobs, recipients: jobs, and his places in them.
        files, rows: files of recipients, and rows of theirs.
        lifted: old entries of the suppression list.
        kept: entries that stay, so that nobody writes to him.
    """

    jobs: int
    recipients: int
    files: int
    rows: int
    lifted: int
    kept: int


def erase(phone: str, /, *, region: str | None = None, as_json: Json = False) -> None:
    """Blank a number, and name, values and message ids beside it, in jobs, log and uploads.

    What became of the messages stays, and so do all counts. The suppression list keeps the number,
    or somebody would write to it again. A job that has not ended needs its recipients: as long as
    one holds the number nothing is erased.

    Args:
        phone: such as +15550000001.
        region: ISO 3166, for a number without a country code.
        as_json: one JSON document.
    """
    given = settings.load()
    if not given.bulk_secret_key:
        raise SettingsError("BULK_SECRET_KEY is needed: the audit log names nobody but by its hash")
    if region is not None and region not in regions():
        raise InvalidError("validation_failed", "--region is an ISO 3166 region such as DE.")
    found = phone_of(phone, region)
    if not found:
        raise InvalidError("bad_format", f"This is no number: {why_not(phone)[1]}.")
    done = asyncio.run(_erase(given, found))
    if as_json:
        print_line(msgspec.json.encode(done).decode())
        return
    for line in lines_of(done):
        print_line(line)


def lines_of(done: Erased) -> list[str]:
    """Return what is said about an erasure. Pure."""
    places = f"{done.recipients} places in {done.jobs} jobs"
    out = [f"erased from {places}, and {done.rows} rows of {done.files} uploads"]
    if done.lifted:
        out.append(f"{done.lifted} lifted entries of the suppression list are blank")
    if done.kept:
        out.append(f"{done.kept} entries of the suppression list keep the number")
    return out


def is_spelling(cell: str, phone: int, places: Sequence[str]) -> bool:
    """Tell whether a cell holds a number, however it is written. Pure.

    Args:
        cell: of a file.
        phone: digits of the number.
        places: regions in which it may have been dialled.

    >>> is_spelling("(0151) 123 456 78", 4915112345678, ["DE"])
    True
    """
    digits, whole = _NO_DIGIT.sub("", cell), str(phone)
    if digits[-_TAIL:] != whole[-_TAIL:]:
        return False
    return digits == whole or any(normalise(cell, place) == phone for place in places)


def rows_without(
    chunks: list[bytes], region: str | None, phone: int, home: str | None
) -> tuple[list[bytes], int]:
    """Return a file's chunks with the rows that hold a number made empty, and how many. Pure.

    Args:
        chunks: encoded lists of rows; an empty row is passed over by all who read them.
        region: that numbers of the file are dialled in; None = nobody has said.
        phone: digits of the number.
        home: its own region.
    """
    places = [place for place in dict.fromkeys((region, home)) if place is not None]
    out, count = [], 0
    for chunk in chunks:
        rows = decode_rows(chunk)
        hit = [
            at for at, cells in enumerate(rows)
            if cells is not None and any(is_spelling(cell, phone, places) for cell in cells)
        ]  # fmt: skip
        for at in hit:
            rows[at] = [""] * len(rows[at] or ())
        count += len(hit)
        out.append(_encode(rows) if hit else chunk)
    return out, count


async def _erase(given: Settings, phone: int) -> Erased:
    secret = given.bulk_secret_key[0].reveal().encode()
    pool = await connect.open_postgres(given, size=2)
    try:
        archive, retention = Archive(pool), Retention(pool)
        async with audited(archive, "recipient.erase", mark(phone, secret)) as said:
            await _refuse_unfinished(retention, phone)
            places = await retention.places(phone)
            for place in places:
                await retention.blank(place, without)
            files, rows = await _erase_uploads(retention, phone)
            done = Erased(
                jobs=len(places),
                recipients=_count(places),
                files=files,
                rows=rows,
                lifted=await retention.blank_lifted(phone),
                kept=await retention.entries(phone),
            )
            said.append(
                f"{done.recipients} places in {done.jobs} jobs, {done.rows} rows of uploads"
            )
        return done
    finally:
        await pool.close()


def _count(places: Sequence[Places]) -> int:
    return sum(len(place.positions) for place in places)


async def _refuse_unfinished(retention: Retention, phone: int) -> None:
    """Refuse while a job may still send to the number, or needs it to write down what it sent.

    Raises:
        ConflictError: names such jobs.
    """
    found: list[str] = []
    after = 0
    while jobs := await retention.unfinished(after):
        after = jobs[-1].number
        found += [job.id for job in jobs if any(phone in _decode(raw).phones for raw in job.chunks)]
    if found:
        names = ", ".join(found[:_NAMED_MAX]) + (" …" if len(found) > _NAMED_MAX else "")
        raise ConflictError(
            "state_conflict",
            f"Nothing was erased: {names} holds the number and has not ended. `drumbeat suppress "
            "add` keeps it from being written to from now on; let the job end, or cancel it with "
            "`drumbeat jobs cancel`, then erase again.",
        )


async def _erase_uploads(retention: Retention, phone: int) -> tuple[int, int]:
    files = rows = 0
    blank = partial(rows_without, phone=phone, home=home_of(phone))
    for upload_id in await retention.upload_ids():
        count = await retention.blank_upload(upload_id, blank)
        rows += count
        files += bool(count)
    return files, rows
