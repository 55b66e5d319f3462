"""Which column of a file is what: guessed from its name, or said by the caller. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from api.wire import Columns, refuse
from shared.phone import e164

_PHONES: Final = (
    "to",
    "phone",
    "phone_number",
    "whatsapp",
    "whatsapp_number",
    "mobile",
    "mobile_number",
    "mobile_phone",
    "cell",
    "cell_phone",
    "number",
    "msisdn",
    "tel",
    "telephone",
    "recipient",
)
_NOT_NAME: Final = re.compile(r"[^a-z0-9]+")
_NAME_MAX: Final = 32
# Half of what is looked at must be a number before a column without a telling name is taken.
_HALF: Final = 2


class Mapping(NamedTuple):
    """Places of columns; -1 = none."""

    to: int
    ref: int
    vars: dict[str, int]


def name_of(column: str) -> str:
    """Return the placeholder that a column fills when nobody says otherwise.

    >>> name_of(" First name")
    'first_name'
    """
    return _NOT_NAME.sub("_", column.casefold()).strip("_")[:_NAME_MAX]


def guess_phone(columns: Sequence[str], rows: Sequence[Sequence[str] | None]) -> str | None:
    """Return the column that holds the numbers, by its name, else by its first rows."""
    names = [name_of(column) for column in columns]
    for word in _PHONES:
        if word in names:
            return columns[names.index(word)]
    best, most = None, 0
    for place, column in enumerate(columns):
        cells = [row[place] for row in rows if row is not None and place < len(row)]
        count = sum(bool(e164(cell)) for cell in cells)
        if count * _HALF > len(cells) and count > most:
            best, most = column, count
    return best


def mapping_of(
    columns: Sequence[str], phone_column: str | None, given: Columns | None, names: Sequence[str]
) -> Mapping:
    """Return which column is what for a message with these placeholders.

    Raises:
        InvalidError: a column that is named is not there, or a placeholder has none.
    """
    to = given.to if given is not None and given.to is not None else phone_column
    if to is None:
        refuse("/columns/to", "say which column holds the numbers")
    place_of = {column: place for place, column in reversed(list(enumerate(columns)))}

    def at(column: str, pointer: str) -> int:
        if column not in place_of:
            refuse(pointer, "the upload has no such column")
        return place_of[column]

    by_name = {name_of(column): place for place, column in reversed(list(enumerate(columns)))}
    ref = by_name.get("ref", -1)
    if given is not None and given.ref is not None:
        ref = at(given.ref, "/columns/ref")
    said = (given.vars if given is not None else None) or {}
    found = {name: at(column, f"/columns/vars/{name}") for name, column in said.items()}
    number = at(to, "/columns/to")
    # A file of numbers alone brings no values: then placeholders go out as they stand.
    if said or len(columns) > 1 + (ref >= 0):
        for name in names:
            if name not in found and name not in by_name:
                refuse(f"/columns/vars/{name}", "no column for this placeholder")
            found.setdefault(name, by_name.get(name, -1))
    return Mapping(number, ref, {name: found[name] for name in names if name in found})


def row_of(cells: Sequence[str], mapping: Mapping) -> dict[str, object]:
    """Return a file's row as a recipient of the request's form."""

    def cell(place: int) -> str:
        return cells[place] if 0 <= place < len(cells) else ""

    return {
        "to": cell(mapping.to),
        "vars": {name: cell(place) for name, place in mapping.vars.items()},
        "ref": cell(mapping.ref) or None,
    }
