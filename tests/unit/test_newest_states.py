"""What several states of a job in one batch come to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.archive import StateRow, newest_states
from shared.models import OutcomeEntry


def state(version: int, word: str, **more: object) -> OutcomeEntry:
    return OutcomeEntry(
        f"{version}-0", "state", "job_1", job_state=word, version=version, **more  # type: ignore[arg-type]
    )  # fmt: skip


BATCH = [
    state(1, "queued", by="u1"),
    state(2, "running", started_ms=20),
    OutcomeEntry("9-0", "facts", "job_1"),
    state(3, "completed", finished_ms=30, event="7-0"),
]


@given(st.permutations(BATCH))
def test_the_highest_version_counts_and_what_others_alone_say_is_kept(
    batch: list[OutcomeEntry],
) -> None:
    assert newest_states(batch) == [StateRow("job_1", "completed", 3, "", "", 20, 30, "7-0")]


def test_each_job_has_a_row_and_without_states_there_is_none() -> None:
    other = OutcomeEntry("5-0", "state", "job_2", job_state="paused", version=5)
    assert [row.id for row in newest_states([*BATCH, other])] == ["job_1", "job_2"]
    assert newest_states([BATCH[2]]) == []
