"""Transactions of the archive writer: bounded, in order, nothing cut and nothing lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.models import TRIP, Fact, OutcomeEntry, Reason, State
from worker.log_writer import _size, _unknown, batches


def entry_of(rows: int) -> OutcomeEntry:
    facts = b"".join(Fact(i, State.SENT, 1).pack() for i in range(rows))
    return OutcomeEntry(f"{rows}-0", "facts", "job", facts=facts)


@given(st.lists(st.integers(0, 25)))
def test_order_is_kept_and_only_one_large_entry_may_exceed(sizes: list[int]) -> None:
    entries = [entry_of(size) for size in sizes]
    made = batches(entries, rows_max=10)
    assert [entry for batch in made for entry in batch] == entries
    for batch in made:
        assert sum(map(_size, batch)) <= 10 or len([e for e in batch if _size(e)]) == 1


def test_a_state_makes_no_row_and_a_range_one_for_each_position() -> None:
    assert _size(OutcomeEntry("1-0", "state", "job")) == 0
    assert _size(OutcomeEntry("1-0", "range", "job", ranges=[(0, 0), (5, 9)])) == 6


def test_unknown_recipients_are_told_by_their_cause() -> None:
    facts = Fact(0, State.SENT, 1).pack() + Fact(1, State.UNKNOWN, 1, Reason.TIMEOUT | TRIP).pack()
    assert _unknown(OutcomeEntry("1-0", "facts", "job", facts=facts)) == [Reason.TIMEOUT]
    crash = OutcomeEntry(
        "1-0", "range", "job", state=State.UNKNOWN, reason=Reason.CRASH, ranges=[(3, 4)]
    )
    assert _unknown(crash) == [Reason.CRASH] * 2
    assert _unknown(entry_of(3)) == []
