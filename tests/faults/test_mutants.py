"""Every fault of ours that reliability 4.7 names, as far as a story here can meet it, is seen."""

from __future__ import annotations

import pytest

from tests.faults.enumerate import Enumeration
from tests.faults.mutants import MUTANTS, Mutant, in_force


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.number}")
def test_a_mutant_is_caught(enumeration: Enumeration, mutant: Mutant) -> None:
    # Named effects are found in the program as it should be.
    plans = [enumeration.plan(text) for text in mutant.plans]
    with in_force(mutant, enumeration):
        runs = [enumeration.run(scenario, plan) for scenario, plan in plans]
    if mutant.number == 12:
        enumeration.execute(
            "DELETE FROM bulk_jobs; CREATE UNIQUE INDEX bulk_jobs_idempotency ON bulk_jobs"
            " (owner, idempotency_route, idempotency_key) WHERE idempotency_key IS NOT NULL"
        )
    found = {violation.invariant for run in runs for violation in run.violations}
    assert found & mutant.invariants, f"{mutant.what} goes unseen: {found}"


def test_a_sender_keeps_its_rate_whatever_the_clock_of_its_workers(
    enumeration: Enumeration,
) -> None:
    run = enumeration.run("rate")
    assert not run.violations, str(run)
