"""How an error leaves a sender: parks double and end, a pause stays, the second is nothing."""

from __future__ import annotations

import pytest

from shared.archive import SenderRow
from shared.models import Answer
from worker.retry import Decision, decide
from worker.scopes import PARKS_MAX, Standing, standing

NOW = 1_000_000


def row(state: str = "active", until_ms: int = 0, parks: int = 0) -> SenderRow:
    return SenderRow("s", "main", "1", b"", state=state, until_ms=until_ms, parks=parks)


def refused(code: int, regain_s: float = 0.0) -> Decision:
    return decide(Answer("rejected", 400, code=code, regain_s=regain_s), 1, 3, 500, 0.5)


@pytest.mark.parametrize(
    ("code", "parks", "hold_s"),
    [
        (80007, 0, 60),
        (80007, 1, 120),
        (80007, 3, 480),
        (80007, 4, 900),
        (80007, 8, 900),
        (4, 1, 120),
        (131057, 2, 240),
        (131057, 3, 300),
    ],
)
def test_a_park_doubles_while_it_repeats(code: int, parks: int, hold_s: int) -> None:
    found = standing(row(parks=parks), refused(code), "x", NOW)
    assert found == Standing("blocked", "x", NOW + 1000 * hold_s, parks + 1)


def test_the_time_that_graph_names_counts_whatever_was_before() -> None:
    found = standing(row(parks=5), refused(80007, regain_s=300), "x", NOW)
    assert found == Standing("blocked", "x", NOW + 300_000, 6)


def test_the_others_in_the_air_do_not_park_again() -> None:
    held = row("blocked", NOW + 60_000, 1)
    assert standing(held, refused(80007), "x", NOW + 5000) is None
    assert standing(held, refused(80007, regain_s=60), "x", NOW + 500) is None
    assert standing(held, refused(80007, regain_s=300), "x", NOW) == Standing(
        "blocked", "x", NOW + 300_000, 1
    )


def test_ten_parks_in_a_row_become_a_pause() -> None:
    found = standing(row(parks=PARKS_MAX - 1), refused(80007), "x", NOW)
    assert found == Standing("paused", "x", 0, 0)


def test_a_pause_goes_over_a_park_and_nothing_over_a_pause() -> None:
    held = row("blocked", NOW + 60_000, 1)
    assert standing(held, refused(190), "token:190", NOW) == Standing("paused", "token:190", 0, 1)
    for code in (80007, 190, 131048):
        assert standing(row("paused"), refused(code), "x", NOW) is None
