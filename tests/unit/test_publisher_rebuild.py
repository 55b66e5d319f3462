"""What a lost job is rebuilt to: logged is final, doubt is unknown, the rest is pending."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.models import OUTCOMES, State, attempts_of, state_of
from worker.publisher import rebuild

LOGS = st.dictionaries(
    st.integers(0, 39), st.tuples(st.sampled_from(OUTCOMES), st.integers(0, 200)), max_size=40
)


def test_a_shard_that_was_not_wiped_has_no_doubt() -> None:
    made = rebuild(4, {1: (State.SENT, 2)}, 3, same_born=True)
    assert made.states == bytes([0, State.SENT | 2 << 3, 0, 0])
    assert (made.cursor, made.counters, made.doubtful) == (0, {"sent": 1}, [])


def test_after_a_wipe_what_may_have_left_is_unknown() -> None:
    made = rebuild(5, {1: (State.FAILED, 1)}, 3, same_born=False)
    assert [state_of(byte) for byte in made.states] == [
        State.UNKNOWN,
        State.FAILED,
        State.UNKNOWN,
        State.PENDING,
        State.PENDING,
    ]
    assert made.cursor == 3
    assert made.counters == {"failed": 1, "unknown": 2}
    assert made.doubtful == [(0, 0), (2, 2)]


def test_a_mark_beyond_the_end_leaves_nothing_to_send() -> None:
    made = rebuild(3, {}, 1000, same_born=False)
    assert made.cursor == 3
    assert made.doubtful == [(0, 2)]


@given(logged=LOGS, reserved=st.integers(0, 60), same_born=st.booleans())
def test_every_recipient_is_counted_once(
    *, logged: dict[int, tuple[State, int]], reserved: int, same_born: bool
) -> None:
    recipients = 40
    made = rebuild(recipients, logged, reserved, same_born=same_born)
    states = [state_of(byte) for byte in made.states]
    assert len(states) == recipients
    pending = states.count(State.PENDING)
    assert sum(made.counters.values()) + pending == recipients
    for state in OUTCOMES:
        assert made.counters.get(state.name.lower(), 0) == states.count(state)
    for position, (state, attempts) in logged.items():
        assert states[position] is state
        assert attempts_of(made.states[position]) == min(31, attempts)
    first = states.index(State.PENDING) if pending else recipients
    assert made.cursor == first
    doubt = [p for a, b in made.doubtful for p in range(a, b + 1)]
    edge = 0 if same_born else min(reserved, recipients)
    assert doubt == [p for p in range(edge) if p not in logged]
