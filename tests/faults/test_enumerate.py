"""The smallest size of the enumeration: every fault of the two stories that everything passes."""

from __future__ import annotations

import pytest

from tests.faults.enumerate import Enumeration, kept_plans, plan_of, singles, text_of
from tests.faults.machine import explore
from tests.faults.scenarios import SCENARIOS

# The kinds that leave most behind; `make faults` has them all.
SMALL = ("die_before", "die_after", "err_after", "stall_after")


def test_enumerate_plans_that_failed_once(
    enumeration: Enumeration, request: pytest.FixtureRequest
) -> None:
    """With `--plan` that one alone, and what it did is printed."""
    text = request.config.getoption("--plan", default="")
    for kept in [text] if text else kept_plans():
        run = enumeration.replay(kept)
        assert not run.violations, str(run)


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_enumerate_two_clean_runs_have_the_same_effects(
    enumeration: Enumeration, scenario: str
) -> None:
    first, second = enumeration.run(scenario), enumeration.run(scenario)
    assert not first.violations, str(first)
    assert first.trace == second.trace


@pytest.mark.parametrize("scenario", ["submit", "send"])
def test_enumerate_single_faults_break_no_promise(enumeration: Enumeration, scenario: str) -> None:
    clean = enumeration.run(scenario)
    # Every third: `make faults` takes them by chance, `make torture` all.
    plans = list(singles(clean.trace, SMALL))[::3]
    failed = [run for plan in plans if (run := enumeration.run(scenario, plan)).violations]
    assert not failed, "\n".join(map(str, failed[:3]))


def test_stories_made_up_break_no_promise(enumeration: Enumeration) -> None:
    # `make faults` plays 200.
    runs = explore(enumeration, 6, seed=1)
    assert len(runs) >= 6
    assert not runs[-1].violations, str(runs[-1])


def test_a_clock_that_has_come_far_still_lets_timers_fire(enumeration: Enumeration) -> None:
    # Each drain that waits in vain moves it by a day and more; it is never set back.
    enumeration.stage.world.loop.now_s += 1e8
    run = enumeration.run("submit")
    assert not run.violations, str(run)


def test_a_plan_reads_back_as_it_was_written() -> None:
    text = "17:die_after,31:err_before"
    assert text_of(plan_of(f"send:{text}")[1]) == text
