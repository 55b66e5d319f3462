"""Rows: all faults in one answer, the first of equal numbers, values in the order of the text."""

from __future__ import annotations

from typing import Any

import msgspec

from api.intake import Taken, has_vars
from shared.message import Text, TextMessage, fill, placeholders
from shared.models import Chunk
from shared.phone import PossibleLengths

LENGTHS = PossibleLengths()
PLAIN = TextMessage(Text("Hello {{first_name}}"))


def take(rows: list[Any], **options: Any) -> Taken:
    taken = Taken(PLAIN, LENGTHS, is_filled=has_vars(rows), **options)
    for first in range(0, len(rows), 2):
        taken.take(rows[first : first + 2], first)
    return taken


def to(last: int, **fields: Any) -> dict[str, Any]:
    return {"to": f"+1555000000{last}", **fields}


def test_without_values_placeholders_stay() -> None:
    taken = take(["+15550000001", to(2), to(3, vars={})])
    assert (taken.vars, taken.values, len(taken.phones)) == ([], [], 3)


def test_values_come_in_the_order_of_the_text() -> None:
    taken = take(
        [to(1, vars={"first_name": "Ann", "other": "x"}), to(2, vars={"first_name": "Bo"})]
    )
    assert taken.vars == placeholders(PLAIN) == ["first_name"]
    assert taken.values == [["Ann"], ["Bo"]]
    assert fill(PLAIN.text.body, taken.vars, taken.values[1]) == "Hello Bo"


def test_a_missing_value_names_row_and_variable() -> None:
    taken = take([to(1, vars={"first_name": "Ann"}), "+15550000002", to(3, vars={"x": "y"})])
    found = [(f.pointer, f.code, f.row) for f in taken.faults]
    assert found == [
        ("/recipients/1/vars/first_name", "missing_variable", 1),
        ("/recipients/2/vars/first_name", "missing_variable", 2),
    ]


def test_a_filled_text_keeps_its_limit() -> None:
    message = TextMessage(Text("x" * 4000 + "{{a}}"))
    taken = Taken(message, LENGTHS, is_filled=True)
    taken.take([to(1, vars={"a": "y" * 96}), to(2, vars={"a": "y" * 97})], 0)
    assert [(f.row, f.code) for f in taken.faults] == [(1, "too_long")]


def test_a_hundred_faults_are_listed_and_all_are_counted() -> None:
    taken = take([str(n) for n in range(250)])
    assert (taken.invalid, len(taken.faults)) == (250, 100)
    assert taken.faults[99].pointer == "/recipients/99"


def test_validation_may_ask_for_more() -> None:
    rows = ["+1234567890", "+15550000001", "+16502530000"]
    assert (len(take(rows).phones), take(rows).suspect) == (3, 1)
    assert take(rows, validation="possible").phones == [15550000001, 16502530000]
    taken = take(rows, validation="valid")
    assert taken.phones == [16502530000]
    assert [f.code for f in taken.faults] == ["not_possible", "not_valid"]


def test_equal_numbers_are_sent_once_after_normalisation_too() -> None:
    taken = take(["+15550000001", "555 000 0001", "+15550000001"], region="US")
    assert (taken.phones, taken.duplicates, taken.changed) == ([15550000001], 2, 0)


def test_chunks_are_read_as_chunks_with_and_without_refs() -> None:
    taken = take([to(1, ref="crm-9"), to(2), to(3)])
    chunks = taken.chunks(2)
    decode = msgspec.msgpack.Decoder(Chunk).decode
    wanted = [Chunk([15550000001, 15550000002]), Chunk([15550000003])]
    assert [decode(c) for c in chunks] == wanted
    kept = taken.kept(2, chunks)
    assert [decode(c) for c in kept] == wanted
    assert msgspec.msgpack.decode(kept[0])[2] == ["crm-9", None]
