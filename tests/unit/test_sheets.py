"""Files become rows of text with the file's own numbers, or one sentence of what is wrong."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import msgspec
import pytest

from api.columns import guess_phone, mapping_of, row_of
from api.sheets import Sheet, cell_of, delimiter_of, read
from api.spreadsheet import Spreadsheet
from api.wire import Columns
from shared.errors import InvalidError


def rows(sheet: Sheet) -> list[Any]:
    assert not sheet.error, sheet.detail
    return [row for chunk in sheet.chunks for row in msgspec.msgpack.decode(chunk)]


def workbook(*table: list[str | int | None]) -> bytes:
    made = Spreadsheet()
    return made.add(table) + made.end()


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_separators_and_encodings_are_found_out(sign: str, encoding: str) -> None:
    text = f"Phone{sign}Name\r\n+15550000001{sign}Zoë\r\n\r\n+15550000002{sign}Bo\r\n"
    sheet = read(text.encode(encoding), "csv", 10)
    assert (sheet.columns, sheet.first_row, sheet.rows) == (["Phone", "Name"], 2, 2)
    assert rows(sheet) == [["+15550000001", "Zoë"], [], ["+15550000002", "Bo"]]
    assert bool(sheet.note) is (encoding in {"cp1252", "utf-16"})


def test_a_file_of_one_column_needs_no_separator_and_no_header() -> None:
    sheet = read(b"+15550000001\n+15550000002\n", "csv", 10)
    assert (sheet.columns, sheet.first_row, sheet.rows) == (["Column 1"], 1, 2)
    assert "no header" in sheet.note
    assert delimiter_of("Phone\n+15550000001\n") == ","


def test_quotes_breaks_and_ragged_rows_are_kept() -> None:
    raw = b'Phone,Name\n+15550000001,"Ann, \n""the"" one"\n+15550000002\n+15550000003,Cy,x\n'
    sheet = read(raw, "csv", 10)
    assert sheet.columns == ["Phone", "Name", "Column 3"]
    assert rows(sheet)[0] == ["+15550000001", 'Ann, \n"the" one']
    assert rows(sheet)[2] == ["+15550000003", "Cy", "x"]


def test_lines_of_json_may_be_strings_or_objects() -> None:
    raw = (
        b'"+15550000001"\n{"to":"+15550000002","ref":"r","vars":{"first_name":"Ann"}}\n\n'
        b'{"to":15550000003,"first_name":"Bo"}\n{bad\n[1]\n{"to":{"a":1}}\n'
    )
    sheet = read(raw, "ndjson", 10)
    assert sheet.columns == ["to", "ref", "first_name"]
    assert rows(sheet) == [
        ["+15550000001", "", ""], ["+15550000002", "r", "Ann"], [], ["15550000003", "", "Bo"],
        None, None, None,
    ]  # fmt: skip
    assert (sheet.first_row, sheet.rows) == (1, 6)


def test_a_workbooks_numbers_are_text_again() -> None:
    raw = workbook(["Phone", "Name"], [16505551234, "Ann"], [None, None], ["+15550000001", "=1"])
    sheet = read(raw, "xlsx", 10)
    assert rows(sheet) == [["16505551234", "Ann"], ["", ""], ["+15550000001", "=1"]]
    assert sheet.rows == 2
    assert cell_of(value=True) == "true"


def bomb() -> bytes:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x", "w") as part,
    ):
        for _ in range(210):
            part.write(bytes(1024 * 1024))
    return out.getvalue()


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"\n\n", "csv"),
        (b" , \n", "csv"),
        (b"\0\1\2", "csv"),
        (b"\x81\x8d\xff", "csv"),
        (b"Phone\n" + b'"' + b"x" * 200_000, "csv"),
        (b",".join(b"c" for _ in range(201)) + b"\n", "csv"),
        (b"\n", "ndjson"),
        (b"not a zip", "xlsx"),
        (b"not a zip", "ods"),
        (b"not a workbook", "xls"),
        (b"PK\x03\x04" + bytes(100), "xlsx"),
        (workbook()[:300], "xlsx"),
        (workbook(), "xlsx"),
    ],
    ids=range(13),
)
def test_what_cannot_be_read_is_said_so(raw: bytes, kind: str) -> None:
    sheet = read(raw, kind, 10)
    assert sheet.error == "unreadable_file"
    assert sheet.detail


def test_a_bomb_is_not_unpacked() -> None:
    raw = bomb()
    for kind in ("xlsx", "xls", "ods"):
        assert "200 MiB" in read(raw, kind, 10).detail


def test_more_rows_than_a_job_takes_are_refused() -> None:
    raw = b"Phone\n" + b"+15550000001\n" * 11
    assert read(raw, "csv", 10).error == "too_many_recipients"
    assert not read(raw, "csv", 11).error


def test_the_phone_column_is_guessed_by_name_then_by_content() -> None:
    assert guess_phone(["Name", "Mobile number"], []) == "Mobile number"
    sample = [["Ann", "+15550000001"], None, [], ["Bo", "+15550000002"], ["Cy", "x"]]
    assert guess_phone(["A", "B"], sample) == "B"
    assert guess_phone(["A", "B"], [["Ann", "x"]]) is None


def test_columns_fill_placeholders_of_their_name_or_as_told() -> None:
    columns = ["Phone", "First name", "ref", "Town"]
    mapping = mapping_of(columns, "Phone", None, ["first_name"])
    assert mapping == (0, 2, {"first_name": 1})
    told = Columns(ref="Town", vars={"first_name": "ref", "unused": "Town"})
    assert mapping_of(columns, "Phone", told, ["first_name"]) == (0, 3, {"first_name": 2})
    assert mapping_of(["Phone"], "Phone", None, ["first_name"]).vars == {}
    assert row_of(["+1", "Ann"], mapping) == {
        "to": "+1",
        "vars": {"first_name": "Ann"},
        "ref": None,
    }


@pytest.mark.parametrize(
    ("given", "pointer"),
    [
        (Columns(to="Nope"), "/columns/to"),
        (Columns(ref="Nope"), "/columns/ref"),
        (Columns(vars={"a": "Nope"}), "/columns/vars/a"),
        (Columns(vars={"b": "Town"}), "/columns/vars/a"),
        (None, "/columns/vars/a"),
    ],
)
def test_columns_that_are_not_there_are_named(given: Columns | None, pointer: str) -> None:
    with pytest.raises(InvalidError) as caught:
        mapping_of(["Phone", "Town"], "Phone", given, ["a"])
    assert caught.value.faults[0].pointer == pointer
    with pytest.raises(InvalidError):
        mapping_of(["A", "B"], None, None, [])
