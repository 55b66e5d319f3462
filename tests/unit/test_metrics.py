"""Metrics: the whole table of interfaces, labels closed, no second series."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from shared.metrics import SENDERS_MAX, ApiMetrics, WorkerMetrics, names

FLEET = {
    "drumbeat_jobs",
    "drumbeat_unknown_open",
    "drumbeat_backlog_messages",
    "drumbeat_wanted_workers",
    "drumbeat_ready_age_seconds",
    "drumbeat_workers",
    "drumbeat_archive_lag_seconds",
    "drumbeat_redis_persistence_ok",
}


def test_two_processes_in_one_interpreter_do_not_collide() -> None:
    first, second = WorkerMetrics(CollectorRegistry()), WorkerMetrics(CollectorRegistry())
    first.holds_total.inc()
    assert second.registry.get_sample_value("drumbeat_holds_total") == 0


def test_counters_have_no_created_series() -> None:
    for metrics in (WorkerMetrics(CollectorRegistry()), ApiMetrics(CollectorRegistry())):
        assert b"_created" not in generate_latest(metrics.registry)


def test_fleet_figures_belong_to_the_api_alone() -> None:
    assert names(ApiMetrics(CollectorRegistry())) >= FLEET
    assert not names(WorkerMetrics(CollectorRegistry())) & FLEET


def test_every_name_has_the_prefix() -> None:
    both = names(WorkerMetrics(CollectorRegistry()), ApiMetrics(CollectorRegistry()))
    assert all(name.startswith("drumbeat_") for name in both)


def test_the_twenty_first_sender_is_other() -> None:
    metrics = WorkerMetrics(CollectorRegistry())
    shown = [metrics.sender_label(f"s{n}") for n in range(SENDERS_MAX + 1)]
    assert shown[-2:] == [f"s{SENDERS_MAX - 1}", "other"]
    assert metrics.sender_label("s0") == "s0"


@pytest.mark.parametrize("kind", [WorkerMetrics, ApiMetrics])
def test_no_label_can_carry_a_person(kind: type[WorkerMetrics | ApiMetrics]) -> None:
    registry = CollectorRegistry()
    kind(registry)
    labels = {
        label
        for collector in list(registry._collector_to_names)
        for label in getattr(collector, "_labelnames", ())
    }
    assert not labels & {"job", "user", "phone", "template", "campaign", "recipient"}
