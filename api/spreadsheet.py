"""An .xlsx written row by row: one sheet, every cell text or a number, nothing a formula. Pure.

The file is a zip of five small XML parts (ECMA-376, part 1); a writer that needs the whole table,
or a temporary file, would be a library more and a stream less.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from typing import Final
from xml.sax.saxutils import escape

_HEAD: Final = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_MAIN: Final = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_RELS: Final = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE: Final = "http://schemas.openxmlformats.org/package/2006"
_TYPE: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_PARTS: Final = {
    "[Content_Types].xml": (
        f'<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_TYPE}.worksheet+xml"/>'
        "</Types>"
    ),
    "_rels/.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_RELS}/officeDocument" Target="xl/workbook.xml"/>'
        "</Relationships>"
    ),
    "xl/workbook.xml": (
        f'<workbook xmlns="{_MAIN}" xmlns:r="{_RELS}"><sheets>'
        '<sheet name="recipients" sheetId="1" r:id="rId1"/></sheets></workbook>'
    ),
    "xl/_rels/workbook.xml.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_RELS}/worksheet" Target="worksheets/sheet1.xml"/>'
        "</Relationships>"
    ),
}
# What XML 1.0 has no way to write.
_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
# A fixed date: equal tables give equal files.
_DATE: Final = (1980, 1, 1, 0, 0, 0)


class _Pieces(io.RawIOBase):
    """What has been written since it was last taken; cannot be sought in."""

    def __init__(self) -> None:
        super().__init__()
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        before = len(self._written)
        self._written += memoryview(data)  # type: ignore[arg-type]  # zipfile writes bytes
        return len(self._written) - before

    def taken(self) -> bytes:
        out = bytes(self._written)
        self._written.clear()
        return out


class Spreadsheet:
    """A workbook of one sheet that gives its bytes away as they come to be.

    Nothing but what compression holds back stays in memory.
    """

    def __init__(self) -> None:
        """Write the parts that do not depend on the rows."""
        self._pieces = _Pieces()
        self._zip = zipfile.ZipFile(self._pieces, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        for name, text in _PARTS.items():
            with self._zip.open(zipfile.ZipInfo(name, _DATE), "w") as part:
                part.write((_HEAD + text).encode())
        sheet = zipfile.ZipInfo("xl/worksheets/sheet1.xml", _DATE)
        sheet.compress_type = zipfile.ZIP_DEFLATED
        self._sheet = self._zip.open(sheet, "w")
        self._sheet.write(f'{_HEAD}<worksheet xmlns="{_MAIN}"><sheetData>'.encode())

    def add(self, rows: Iterable[Sequence[str | int | None]]) -> bytes:
        """Return the bytes that these rows bring forth, perhaps none yet."""
        for row in rows:
            self._sheet.write(f"<row>{''.join(map(_cell, row))}</row>".encode())
        return self._pieces.taken()

    def end(self) -> bytes:
        """Return the last bytes."""
        if not self._sheet.closed:
            self._sheet.write(b"</sheetData></worksheet>")
        self.close()
        return self._pieces.taken()

    def close(self) -> None:
        """Let go of a sheet, finished or not; may be called twice."""
        self._sheet.close()
        self._zip.close()


def _cell(value: str | int | None) -> str:
    if value is None:
        return "<c/>"
    if isinstance(value, int):
        return f"<c><v>{value}</v></c>"
    text = escape(_NOT_XML.sub("", value))
    return f'<c t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'
