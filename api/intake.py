"""From raw rows to clean recipients and a list of what is wrong. Pure; the caller yields.

The caller hands over slices (pitfalls A7), so that one answer can list every bad row while the
loop never stalls.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from api.roster import People
from shared.errors import Fault
from shared.message import Message, Slot, fill, placeholders, slots, text_fault
from shared.phone import PossibleLengths, e164, is_in, is_valid, normalise, why_not

SLICE: Final = 500
PROBLEMS_MAX: Final = 100
VARS_MAX: Final = 20
VALUE_MAX: Final = 1024
REF_MAX: Final = 64
# What a file may hold in place of a row.
BLANK: Final = object()
UNREADABLE: Final = object()
_FIELDS: Final = frozenset({"to", "vars", "ref"})
_VAR: Final = re.compile(r"\A[a-z0-9_]{1,32}\Z")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_ANY_CONTROL: Final = re.compile(r"[\x00-\x1f]")


def has_vars(rows: Sequence[object]) -> bool:
    """Tell whether any row brings values: only then are placeholders filled at all."""
    return any(isinstance(row, dict) and bool(row.get("vars")) for row in rows)


class Taken(People):
    """What has been taken so far.

    Args:
        message: whose placeholders the rows must fill.
        lengths: possible lengths by calling code.
        validation: `e164`, `possible` or `valid`.
        region: numbers written otherwise are read as dialled there; None: strict E.164 only.
        allowed: regions that the sender may write to; none = all.
        is_filled: placeholders are filled (`has_vars`).
        wholes: texts of the template around them, which have a limit of their own.
        at: JSON pointer of the rows.
        problems_max: how many faults are kept.

    Attributes:
        rows: number of each accepted row.
        faults: the first of them, in the order of the rows.
    """

    def __init__(
        self,
        message: Message,
        lengths: PossibleLengths,
        validation: str = "e164",
        region: str | None = None,
        *,
        allowed: frozenset[str] = frozenset(),
        is_filled: bool = False,
        wholes: Sequence[Slot] = (),
        at: str = "/recipients",
        problems_max: int = PROBLEMS_MAX,
    ) -> None:
        """Begin with nothing."""
        super().__init__(placeholders(message) if is_filled else [])
        self.rows: list[int] = []
        self.faults: list[Fault] = []
        self.submitted = self.duplicates = self.invalid = self.changed = self.suspect = 0
        self._slots = [slot for slot in (*slots(message), *wholes) if self.vars]
        self._lengths = lengths
        self._validation = validation
        self._region = region
        self._allowed = allowed
        self._at = at
        self._problems_max = problems_max
        self._seen: set[int] = set()

    def take(self, rows: Sequence[object], first: int) -> None:
        """Look at rows `first`, `first + 1` …; at most `SLICE` of them a call."""
        self.submitted += len(rows)
        for row, given in enumerate(rows, start=first):
            if given is BLANK:
                self.submitted -= 1
                continue
            if given is UNREADABLE:
                self._wrong(row, "bad_format", "the line cannot be read")
                continue
            text: object = given
            fields: dict[str, object] | None = None
            if isinstance(given, dict):
                fields = given
                text = given.get("to")
            if not isinstance(text, str):
                place = "/to" if fields is not None else ""
                self._wrong(row, "not_string", "a number is a string such as +15550000001", place)
                continue
            phone = e164(text)
            is_changed = False
            if not phone:
                phone = self._read(text, row)
                if not phone:
                    continue
                is_changed = True
            is_possible = phone in self._lengths
            if self._validation != "e164" and not self._is_allowed(phone, row, is_possible):
                continue
            if self._allowed and not is_in(phone, self._allowed):
                text = "the sender may not write to this region"
                self._wrong(row, "region_not_allowed", text)
                continue
            values: list[str] = []
            if fields is not None and not self._are_fields_right(fields, row):
                continue
            if self.vars:
                found = self._values_of(fields, row)
                if found is None:
                    continue
                values = found
            if phone in self._seen:
                self.duplicates += 1
                continue
            self._seen.add(phone)
            self.phones.append(phone)
            self.rows.append(row)
            self.changed += is_changed
            self.suspect += not is_possible
            if self.vars:
                self.values.append(values)
            ref = fields.get("ref") if fields is not None else None
            self.refs.append(ref if isinstance(ref, str) else None)

    def _wrong(self, row: int, code: str, detail: str, place: str = "") -> None:
        self.invalid += 1
        if len(self.faults) < self._problems_max:
            self.faults.append(Fault(f"{self._at}/{row}{place}", code, detail, row))

    def _read(self, text: str, row: int) -> int:
        if _CONTROL.search(text):
            self._wrong(row, "control_char", "control characters are not allowed")
            return 0
        if self._region is not None:
            phone = normalise(text, self._region)
            if phone:
                return phone
        self._wrong(row, *why_not(text))
        return 0

    def _is_allowed(self, phone: int, row: int, is_possible: bool) -> bool:  # noqa: FBT001
        if not is_possible:
            self._wrong(row, "not_possible", "no country has numbers of this form")
            return False
        if self._validation == "valid" and not is_valid(phone):
            self._wrong(row, "not_valid", "the number is not in use in its country")
            return False
        return True

    def _are_fields_right(self, fields: dict[str, object], row: int) -> bool:
        """Look at the form of an object's fields; say what is wrong with the first bad one."""
        if not fields.keys() <= _FIELDS:
            self._wrong(row, "unknown_field", "a recipient has to, vars and ref only")
            return False
        ref, values = fields.get("ref"), fields.get("vars")
        if ref is not None:
            if not isinstance(ref, str) or len(ref) > REF_MAX:
                self._wrong(row, "too_long", f"a ref is at most {REF_MAX} characters", "/ref")
                return False
            if _ANY_CONTROL.search(ref):
                self._wrong(row, "control_char", "control characters are not allowed", "/ref")
                return False
        if values is None:
            return True
        if not isinstance(values, dict) or len(values) > VARS_MAX:
            self._wrong(row, "too_long", f"vars is an object of at most {VARS_MAX}", "/vars")
            return False
        for name, value in values.items():
            if not _VAR.match(name):
                self._wrong(row, "bad_format", "a name is 1 to 32 of a-z, 0-9 and _", "/vars")
                return False
            if not isinstance(value, str):
                self._wrong(row, "not_string", "a value is a string", f"/vars/{name}")
                return False
            if len(value) > VALUE_MAX:
                text = f"more than {VALUE_MAX} characters"
                self._wrong(row, "too_long", text, f"/vars/{name}")
                return False
            if _CONTROL.search(value):
                text = "control characters are not allowed"
                self._wrong(row, "control_char", text, f"/vars/{name}")
                return False
        return True

    def _values_of(self, fields: dict[str, object] | None, row: int) -> list[str] | None:
        """Return the row's values in the order of `vars`; None when one is missing or too much."""
        given = fields.get("vars") if fields is not None else None
        have: dict[str, str] = given if isinstance(given, dict) else {}
        values = []
        for name in self.vars:
            value = have.get(name)
            if value is None:
                text = "a placeholder of the message has no value here"
                self._wrong(row, "missing_variable", text, f"/vars/{name}")
                return None
            values.append(value)
        for slot in self._slots:
            found = self._slot_fault(slot, values)
            if found is not None:
                self._wrong(row, found[0], found[1], "/vars")
                return None
        return values

    def _slot_fault(self, slot: Slot, values: list[str]) -> tuple[str, str] | None:
        found = text_fault(
            fill(slot.text, self.vars, values), slot.limit, is_parameter=slot.is_parameter
        )
        if found is not None and found[0] == "validation_failed":
            return "missing_variable", "the filled text is empty"
        if found is not None and found[0] == "too_long":
            return "too_long", f"the filled text has more than {slot.limit} characters"
        return found
