"""The state machine: hypothesis makes up stories and shortens the first that breaks a promise."""

from __future__ import annotations

from typing import Final

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.faults.enumerate import Enumeration, Run
from tests.faults.story import (
    ACTS,
    DEEDS,
    HOOK_ACTS,
    LEASE_MS,
    REPLIES,
    SUBMISSIONS_MAX,
    WHOSE,
    WORKERS_MAX,
    Story,
)
from tests.oracle import Violation
from worker.webhooks import RUNGS

STEPS: Final = 60
_AT = st.integers(0, WORKERS_MAX - 1)
_JOB = st.integers(0, SUBMISSIONS_MAX - 1)
_SOON = st.integers(1, 12)
_SHOWN_MAX: Final = 3
CRASHES: Final = ("die_before", "die_after", "cancel", "cancel_after")
STALLS: Final = ("stall", "stall_after", "frozen", "frozen_after")
LOSSES: Final = ("err_before", "lost", "err_after")


class BrokenError(AssertionError):
    """A promise does not hold."""


class Machine(RuleBasedStateMachine):
    """Any move at any time; at the end it is healed and must come to rest.

    A move that nobody can make does nothing: which rules there are must not depend on what came of
    earlier ones, whose timing is real, or Hypothesis gives up a story that it cannot repeat.

    Attributes:
        runs: how many stories were played, the shortening of a failed one included.
        broken: the shortest story that failed.
    """

    enumeration: Enumeration
    runs: list[Run]

    def __init__(self) -> None:
        super().__init__()
        self._is_broken = False
        self.story: Story = self.enumeration.begin_story()

    def _play(self, move: str, *words: object) -> None:
        text = " ".join(map(str, (move, *words)))
        self._judge(self.enumeration.play(self.story, text))

    def _judge(self, violations: list[Violation]) -> None:
        if violations:
            self._is_broken = True
            self.runs.append(self.enumeration.run_of(self.story, violations))
            raise BrokenError("\n".join(map(str, violations[:_SHOWN_MAX])))

    def teardown(self) -> None:
        """Heal, drain, and ask the oracle."""
        if self._is_broken:
            self.enumeration.bury()
            return
        violations = self.enumeration.end_story(self.story)
        self._judge(violations)
        self.runs.append(self.enumeration.run_of(self.story, []))

    # -- moves ------------------------------------------------------------------------------

    @initialize(
        size=st.sampled_from([2, 5]),
        slots=st.sampled_from([1, 8]),
        steps=st.integers(0, 1),
        count=st.integers(1, 10),
        rate=st.sampled_from([0, 0, 1, 4]),
    )
    def begin(self, size: int, slots: int, steps: int, count: int, rate: int) -> None:
        self._play("tune", size, slots, steps)
        if rate:
            self._play("pace", rate)
        self._play("submit", count, 0, 0, "hold")
        self._play("start")

    @precondition(lambda self: len(self.story.asked) < SUBMISSIONS_MAX)
    @rule(
        count=st.integers(1, 10),
        twice=st.integers(0, 2),
        bad=st.integers(0, 1),
        more=st.sampled_from(["hold", "hold", "resend", "later", "short"]),
    )
    def submit(self, count: int, twice: int, bad: int, more: str) -> None:
        self._play("submit", count, twice, bad, more)

    @rule(at=_JOB)
    def again(self, at: int) -> None:
        self._play("again", at)

    @rule(action=st.sampled_from(["pause", "resume", "cancel"]), at=_JOB)
    def control(self, action: str, at: int) -> None:
        self._play("control", action, at)

    @rule()
    def start(self) -> None:
        self._play("start")

    @rule(name=st.sampled_from(ACTS), at=_AT)
    def act(self, name: str, at: int) -> None:
        self._play("act", name, at)

    @rule(name=st.sampled_from(HOOK_ACTS), at=_AT)
    def hear(self, name: str, at: int) -> None:
        self._play("act", name, at)

    @rule(at=_AT)
    def turn(self, at: int) -> None:
        self._play("turn", at)

    @rule(name=st.sampled_from(["tick", "look", "take", "write"]))
    def together(self, name: str) -> None:
        self._play("together", name)

    @rule(at=_AT, requests=st.integers(1, 4))
    def sigterm(self, at: int, requests: int) -> None:
        self._play("serve", at, requests)

    @rule(at=_AT)
    def leave(self, at: int) -> None:
        self._play("leave", at)

    @rule(at=_AT)
    def kill(self, at: int) -> None:
        self._play("kill", at)

    @rule(effects=_SOON, kind=st.sampled_from(CRASHES))
    def crash(self, effects: int, kind: str) -> None:
        self._play("fault", effects, kind)

    @rule(effects=_SOON, kind=st.sampled_from(STALLS))
    def stall(self, effects: int, kind: str) -> None:
        self._play("fault", effects, kind)

    @rule(effects=_SOON, kind=st.sampled_from(LOSSES))
    def lose_answer(self, effects: int, kind: str) -> None:
        self._play("fault", effects, kind)

    @rule(at=_AT)
    def wake(self, at: int) -> None:
        self._play("wake", at)

    @rule(requests=st.integers(1, 5), deed=st.sampled_from(DEEDS), at=_AT)
    def during(self, requests: int, deed: str, at: int) -> None:
        self._play("during", requests, deed, at)

    @rule(
        ms=st.sampled_from([1_000, LEASE_MS - 1_000, LEASE_MS + 1_000, 31_000, 3_600_000]),
        is_calm=st.integers(0, 1),
    )
    def advance(self, ms: int, is_calm: int) -> None:
        self._play("advance", ms, is_calm)

    @rule(
        ahead=st.integers(0, 1),
        position=st.integers(0, 9),
        reply=st.sampled_from(sorted(REPLIES)),
        times=st.integers(1, 4),
    )
    def provider(self, ahead: int, position: int, reply: str, times: int) -> None:
        self._play("answers", ahead, position, reply, times)

    @rule(
        at=st.integers(0, 9),
        whose=st.sampled_from(WHOSE),
        word=st.sampled_from(sorted(RUNGS)),
        times=st.integers(1, 3),
    )
    def webhook(self, at: int, whose: str, word: str, times: int) -> None:
        self._play("webhook", at, whose, word, times)

    @rule(at=_JOB)
    def subscribe(self, at: int) -> None:
        self._play("subscribe", at)

    @rule(at=_AT, after=st.one_of(st.just(0), st.integers(1, 1_500)))
    def cut(self, at: int, after: int) -> None:
        self._play("cut", at, after)

    @rule(at=_AT, site=st.integers(0, 1))
    def reconnect(self, at: int, site: int) -> None:
        self._play("reconnect", at, site)

    @rule(seconds=st.sampled_from([1, 16]))
    def listen(self, seconds: int) -> None:
        self._play("listen", seconds)

    @rule()
    def operator(self) -> None:
        self._play("operator")

    @rule(is_full=st.integers(0, 1))
    def memory(self, is_full: int) -> None:
        self._play("memory", is_full)

    @rule(group=st.sampled_from(["workers", "archive"]))
    def drop_group(self, group: str) -> None:
        self._play("drop", group)

    @rule()
    def trim_events(self) -> None:
        self._play("trim")

    @rule(refusals=st.integers(0, 6))
    def archive(self, refusals: int) -> None:
        self._play("archive", refusals)


def explore(enumeration: Enumeration, examples: int, seed: int) -> list[Run]:
    """Play so many stories; the last run is the shortest that failed, if one did."""

    class Bound(Machine):
        runs: list[Run] = []  # noqa: RUF012 - of this exploration

    Bound.enumeration = enumeration
    chosen = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(hypothesis.seed(seed)(Bound), settings=chosen)
    except (BrokenError, hypothesis.errors.Flaky):
        if not any(run.violations for run in Bound.runs):
            raise  # given up, and not for a promise
        Bound.runs.sort(key=lambda run: bool(run.violations))  # the shortest stays last
    return Bound.runs
