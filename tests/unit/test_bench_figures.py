"""The arithmetic of the benchmarks, and their pages."""

from __future__ import annotations

import msgspec
import pytest

from tests.bench import figures, page, profiling
from tests.bench.__main__ import OUT, PARTS, README, RESULTS
from tests.bench.figures import BULLMQ, SAQ, TASKIQ, THIN, Part, Results, Round
from tests.bench.worker import at_rate

KEYS = {
    "worker_cpu_vs_bullmq",
    "worker_cpu_vs_saq",
    "worker_cpu_vs_saq_chunk",
    "worker_cpu_vs_client_alone",
    "valkey_cpu_vs_bullmq",
    "commands_per_message",
    "core_at_1000_per_s",
    "most_vs_bullmq",
    "accept_50000_s",
    "accept_vs_bullmq",
    "recovery_s",
    "lost",
    "duplicates",
    "cost_1000_jobs_vs_1",
    "cost_1000_senders_vs_1",
    "sse_p99_s",
}
CPU, VALKEY = "worker_cpu_s_per_1000", "valkey_cpu_s_per_1000"


def of(*rounds: Round) -> Part:
    return Part("2026-11-24T12:00+00:00", {"rounds": 4, "messages": 10_000}, list(rounds))


def test_a_median_is_of_the_rounds_that_have_the_figure() -> None:
    rounds = [Round(THIN, turn, {CPU: value}) for turn, value in enumerate((0.3, 0.1, 0.2))]
    rounds += [Round(THIN, 3, not_run="no machine"), Round(BULLMQ, 0, {CPU: 9.0})]
    assert figures.median(rounds, THIN, CPU) == 0.2
    assert figures.median(rounds, SAQ, CPU) is None


def test_a_ratio_compares_the_two_of_one_round() -> None:
    # In the second round everything is ten times as slow: the quotients do not change.
    rounds = [
        Round(THIN, 0, {CPU: 0.1}),
        Round(BULLMQ, 0, {CPU: 0.4}),
        Round(THIN, 1, {CPU: 1.0}),
        Round(BULLMQ, 1, {CPU: 4.0}),
        Round(THIN, 2, {CPU: 0.9}),
        Round(BULLMQ, 2, not_run="ended"),
    ]
    assert figures.ratio(rounds, THIN, BULLMQ, CPU) == pytest.approx(0.25)
    assert figures.ratio(rounds, THIN, SAQ, CPU) is None


def test_a_ratio_may_be_of_a_sum() -> None:
    rounds = [Round("a", 0, {CPU: 1.0, VALKEY: 2.0}), Round("b", 0, {CPU: 2.0, VALKEY: 4.0})]
    assert figures.ratio(rounds, "a", "b", CPU, VALKEY) == 0.5


def test_what_cost_nothing_is_no_ratio() -> None:
    rounds = [Round("a", 0, {CPU: 1.0}), Round("b", 0, {CPU: 0.0})]
    assert figures.ratio(rounds, "a", "b", CPU) is None


def test_a_share_is_by_nearest_rank() -> None:
    values = [float(i) for i in range(1, 101)]
    assert figures.share_at(values, 0.99) == 99.0
    assert figures.share_at(values, 1.0) == 100.0
    assert figures.share_at([5.0], 0.01) == 5.0


def test_a_thousand_a_second_take_what_a_thousand_take() -> None:
    assert at_rate(Round(THIN, 0, {CPU: 0.2})).figures["core_at_1000_per_s"] == 0.2
    assert at_rate(Round(THIN, 0, not_run="no machine")).figures == {}


def test_the_ratios_have_exactly_their_keys_whatever_was_run() -> None:
    assert set(figures.ratios({})) == KEYS
    assert set(figures.ratios({}).values()) == {None}


def test_lost_and_duplicates_are_ours_of_all_parts() -> None:
    parts = {
        "worker": of(Round(THIN, 0, {"lost": 0.0, "duplicates": 1.0})),
        "scaling": of(Round("8 workers", 0, {"lost": 2.0, "duplicates": 0.0})),
        "recovery": of(Round(BULLMQ, 0, {"lost": 0.0, "duplicates": 100.0})),
    }
    found = figures.ratios(parts)
    assert (found["lost"], found["duplicates"]) == (2.0, 1.0)


def test_a_limit_that_is_exceeded_is_a_sentence() -> None:
    queued = of(Round(THIN, 0, {"bytes_per_recipient": 31.0}))
    results = Results(ratios={"lost": 0.0, "accept_50000_s": 0.6}, parts={"queued": queued})
    assert figures.faults(results) == [
        "accept_50000_s is 0.6, more than 0.5",
        "bytes_per_recipient is 31, more than 30",
    ]


def test_a_table_shows_medians_and_who_did_not_run_or_never_came() -> None:
    part = of(
        Round(THIN, 0, {"recovery_s": 11.0, "lost": 0.0}),
        Round(THIN, 1, {"recovery_s": 13.0, "lost": 0.0}),
        Round(BULLMQ, 0, {"recovery_s": 61.0}, is_stored=True),
        Round(TASKIQ, 0, {"recovery_s": None}, is_stored=True),
        Round(SAQ, 0, not_run="not installed: no net"),
    )
    lines = page.table(part, page.TABLES["recovery"]).splitlines()
    assert lines[2:] == [
        "| **Drumbeat** | 12 | 0 | - | - |",
        "| BullMQ | 61 (stored) | - | - | - |",
        "| taskiq | never (stored) | - | - | - |",
        "| saq | not run | not run | not run | not run |",
    ]
    assert "saq: not installed: no net" in page.section("recovery", part)


def test_the_readmes_block_is_replaced_and_nothing_else() -> None:
    text = f"before\n{page.START}\nold\n{page.END}\nafter\n"
    once = page.with_block(text, "new")
    assert once == f"before\n{page.START}\nnew\n{page.END}\nafter\n"
    assert page.with_block(once, "new") == once


def test_self_time_is_of_the_innermost_function() -> None:
    stacks = "run (worker/app.py:1);send (worker/graph.py:2) 6\nrun (worker/app.py:1) 2\nx 2\n"
    times = profiling.self_times(stacks)
    assert times == [("send (worker/graph.py:2)", 0.6), ("run (worker/app.py:1)", 0.2), ("x", 0.2)]
    assert profiling.by_library(times) == [("worker", pytest.approx(0.8)), ("no package", 0.2)]
    assert "| 60.0% | `send (worker/graph.py:2)` |" in profiling.page(times, "So.", "here")


def test_every_part_has_its_table() -> None:
    assert list(page.TABLES) == list(PARTS)


def test_the_readme_has_room_for_the_figures() -> None:
    text = README.read_text(encoding="utf-8")
    assert (text.count(page.START), text.count(page.END)) == (1, 1)


@pytest.mark.skipif(not (OUT / RESULTS).exists(), reason="nothing has been measured here")
def test_the_pages_show_the_results() -> None:
    results = msgspec.json.decode((OUT / RESULTS).read_bytes(), type=Results)
    assert set(results.ratios) == KEYS
    assert (OUT / "README.md").read_text(encoding="utf-8") == page.page(results)
    text = README.read_text(encoding="utf-8")
    assert page.with_block(text, page.block(results)) == text
