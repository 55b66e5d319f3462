"""Read a file of recipients into rows of text; run as a child process, it trusts no byte.

`python -m api.sheets FORMAT ROWS_MAX` reads the file from stdin and writes a `Sheet` to stdout.
"""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import io
import re
import resource
import sys
import zipfile
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import python_calamine

from shared.phone import e164

FORMATS: Final = ("csv", "ndjson", "xlsx", "xls", "ods")
# As many rows a chunk as are looked at between two yields (`api.intake.SLICE`).
CHUNK_ROWS: Final = 500
COLUMNS_MAX: Final = 200
NAME_MAX: Final = 200
SAMPLE_ROWS: Final = 100
UNPACKED_MAX: Final = 200 * 1024 * 1024
_CELLS_MAX: Final = 20_000_000
_LINE_MAX: Final = 65_536
_LINES_LOOKED_AT: Final = 20
_MEMORY_MAX: Final = 2 * 1024**3
_CPU_S: Final = 30
_DELIMITERS: Final = (",", ";", "\t", "|")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]+")
_INTEGRAL_MAX: Final = 1e15
_encode: Final = msgspec.msgpack.Encoder().encode
Cells = list[str] | None


class Sheet(msgspec.Struct, frozen=True):
    """A file as rows of text.

    Attributes:
        columns: their names, each once.
        first_row: number of the first row of `chunks` in the file, from 1.
        rows: rows that hold anything.
        chunks: encoded lists of rows; an empty row is kept for its number, None is a line that
            cannot be read.
        sample: the first rows.
        note: what was guessed, for people.
        error: why the file was not taken: `unreadable_file`, `too_many_recipients`; '' = it was.
        detail: of the error.
    """

    columns: list[str] = []
    first_row: int = 1
    rows: int = 0
    chunks: list[bytes] = []
    sample: list[Cells] = []
    note: str = ""
    error: str = ""
    detail: str = ""


class UnreadableError(Exception):
    """The file is none of its kind; the message says why."""


def text_of(raw: bytes) -> tuple[str, str]:
    """Return a text file's text and what was guessed about it.

    Raises:
        UnreadableError: it is no text.
    """
    note = ""
    try:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            text, note = raw.decode("utf-16"), "read as UTF-16"
        else:
            text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            text, note = raw.decode("cp1252"), "not UTF-8: read as Windows-1252"
        except UnicodeDecodeError as error:
            raise UnreadableError("neither UTF-8 nor Windows-1252 text") from error
    if "\0" in text:
        raise UnreadableError("this is no text")
    return text, note


def delimiter_of(text: str) -> str:
    r"""Return the separator that the first lines share (pitfalls N7).

    >>> delimiter_of("Phone;Name, full;\n+15550000001;Ann, B.;")
    ';'
    """
    lines = [line for line in text[:_LINE_MAX].splitlines() if line.strip()][:_LINES_LOOKED_AT]

    def score(sign: str) -> tuple[int, int]:
        counts = [line.count(sign) for line in lines]
        alike = sum(count == counts[0] for count in counts) if counts and counts[0] else 0
        return alike, sum(counts)

    return max(_DELIMITERS, key=score)


def cell_of(value: object) -> str:
    """Return a spreadsheet's cell as text; whole floats as integers (pitfalls N8).

    >>> cell_of(16505551234.0), cell_of(1.5), cell_of(None)
    ('16505551234', '1.5', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < _INTEGRAL_MAX:
        return str(int(value))
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    return str(value).strip()


def names_of(header: Sequence[str], width: int) -> list[str]:
    """Return names for `width` columns, each once, without control characters.

    >>> names_of(["Phone", "", "Phone"], 3)
    ['Phone', 'Column 2', 'Phone (2)']
    """
    found: list[str] = []
    for place in range(width):
        given = header[place] if place < len(header) else ""
        name = _CONTROL.sub(" ", given).strip()[:NAME_MAX] or f"Column {place + 1}"
        unique, count = name, 1
        while unique in found:
            count += 1
            unique = f"{name} ({count})"
        found.append(unique)
    return found


def sheet_of(rows: list[list[str]], most: int, note: str) -> Sheet:
    """Return rows with or without a header as a sheet; a first row with a number in it is data."""
    start = next((place for place, row in enumerate(rows) if any(row)), len(rows))
    if start == len(rows):
        raise UnreadableError("the file holds no rows")
    has_header = not any(e164(cell) for cell in rows[start])
    header = rows[start] if has_header else []
    data = rows[start + has_header :]
    width = max(len(header), max(map(len, data), default=0))
    columns = names_of(header, width)
    note = (
        note if has_header else "; ".join(filter(None, (note, "no header: the first row is data")))
    )
    return packed(columns, start + has_header + 1, list(data), most, note)


def packed(columns: list[str], first_row: int, rows: list[Cells], most: int, note: str) -> Sheet:
    """Return rows as they are kept.

    Raises:
        UnreadableError: more columns than anybody has.
    """
    if len(columns) > COLUMNS_MAX:
        raise UnreadableError(f"more than {COLUMNS_MAX} columns")
    while rows and rows[-1] is not None and not any(rows[-1]):
        rows.pop()
    count = sum(row is None or any(row) for row in rows)
    if count > most:
        return Sheet(error="too_many_recipients", detail=f"A job has at most {most} recipients.")
    chunks = [_encode(rows[at : at + CHUNK_ROWS]) for at in range(0, len(rows), CHUNK_ROWS)]
    return Sheet(columns, first_row, count, chunks, rows[:SAMPLE_ROWS], note)


def read_csv(raw: bytes, most: int) -> Sheet:
    """Read separated values; a row's number is that of the record."""
    text, note = text_of(raw)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text))
    try:
        rows = [[cell.strip() for cell in row] for row in reader]
    except csv.Error as error:
        raise UnreadableError(f"line {reader.line_num}: {error}") from error
    return sheet_of(rows, most, note)


def read_ndjson(raw: bytes, most: int) -> Sheet:
    """Read a recipient a line: a string, or an object, flat or with `vars` as in a request."""
    found: list[dict[str, str] | None] = []
    columns: dict[str, int] = {}
    for line in raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        fields = _fields_of(line.strip())
        found.append(fields)
        for name in fields or ():
            columns.setdefault(name, len(columns))
        if len(columns) > COLUMNS_MAX:
            raise UnreadableError(f"more than {COLUMNS_MAX} different fields")
    if not any(found) and not any(fields is None for fields in found):
        raise UnreadableError("the file holds no rows")
    rows: list[Cells] = [
        None if fields is None else [fields.get(name, "") for name in columns] if fields else []
        for fields in found
    ]
    return packed(names_of(list(columns), len(columns)), 1, rows, most, "")


def _fields_of(line: bytes) -> dict[str, str] | None:
    """Return a line's fields; {} for an empty line, None for one that cannot be read."""
    if not line:
        return {}
    try:
        value: Any = msgspec.json.decode(line) if len(line) <= _LINE_MAX else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(value, str):
        return {"to": value.strip()}
    if not isinstance(value, dict):
        return None
    inner = value.pop("vars", None)
    if isinstance(inner, dict):
        value = {**value, **inner}
    if any(isinstance(one, dict | list) for one in value.values()):
        return None
    return {_CONTROL.sub(" ", name)[:NAME_MAX]: cell_of(one) for name, one in value.items()}


def read_book(raw: bytes, most: int) -> Sheet:
    """Read the first visible sheet of a workbook, whatever kind it says it is."""
    if raw.startswith(b"PK"):
        _check_zip(raw)
    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(raw))
        visible = python_calamine.SheetVisibleEnum.Visible
        names = [meta.name for meta in book.sheets_metadata if meta.visible == visible]
        if not names:
            raise UnreadableError("the workbook has no visible sheet")
        sheet = book.get_sheet_by_name(names[0])
        if sheet.total_height * sheet.total_width > _CELLS_MAX:
            raise UnreadableError("the sheet is too large")
        table = sheet.to_python(skip_empty_area=False)
    except (python_calamine.CalamineError, ValueError, OSError) as error:
        raise UnreadableError("this is no workbook of its kind") from error
    rows = [[cell_of(cell) for cell in row] for row in table]
    note = f"read the first of {len(names)} sheets" if len(names) > 1 else ""
    return sheet_of(rows, most, note)


def _check_zip(raw: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            size = sum(item.file_size for item in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise UnreadableError("this is no workbook of its kind") from error
    if size > UNPACKED_MAX:
        raise UnreadableError("the workbook unpacks to more than 200 MiB")


def read(raw: bytes, kind: str, most: int) -> Sheet:
    """Read a file of one of `FORMATS`; what cannot be read is an `error` of the sheet."""
    try:
        if kind == "csv":
            return read_csv(raw, most)
        if kind == "ndjson":
            return read_ndjson(raw, most)
        return read_book(raw, most)
    except UnreadableError as error:
        return Sheet(error="unreadable_file", detail=str(error))
    except (MemoryError, RecursionError):
        return Sheet(error="unreadable_file", detail="the file needs too much memory")


def main() -> int:
    """Read stdin, write stdout; limits on memory and time hold whatever the file does."""
    for what, most in ((resource.RLIMIT_AS, _MEMORY_MAX), (resource.RLIMIT_CPU, _CPU_S)):
        with contextlib.suppress(ValueError, OSError):  # macOS knows no limit on memory
            resource.setrlimit(what, (most, most))
    kind, rows_max = sys.argv[1:3]
    sys.stdout.buffer.write(_encode(read(sys.stdin.buffer.read(), kind, int(rows_max))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
