"""Every metric, declared once, on a registry that is handed in; fixed children bound once."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

PREFIX: Final = "drumbeat"
B1: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
B2: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_CLAIM: Final = (*B1, 30.0, 60.0)
_REDIS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0)
# Prometheus keeps each value of a label for ever: sixteen thousand senders must not be labels.
SENDERS_MAX: Final = 20


def ours() -> str:
    """Return our version."""
    try:
        return version("drumbeat")
    except PackageNotFoundError:
        return "0"


class _Declared:
    """Declares metrics under our prefix on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Borrow the registry."""
        # A second series for each counter is a second bill; the switch is the library's, global.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=PREFIX, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=PREFIX, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            name, text, labels, namespace=PREFIX, registry=self.registry, buckets=buckets
        )


class _Both(_Declared):
    """What api and worker both tell of themselves."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Declare the common metrics."""
        super().__init__(registry)
        self.redis_command_duration_seconds = self._histogram(
            "redis_command_duration_seconds", "Round trip of a command or script", _REDIS, "command"
        )
        self.redis_waits_unconfirmed_total = self._counter(
            "redis_waits_unconfirmed_total", "Submissions that a replica did not confirm in time"
        )
        self.redis_up = self._gauge("redis_up", "1 when Redis answered the last probe")
        self.postgres_up = self._gauge("postgres_up", "1 when PostgreSQL answered the last probe")
        self.postgres_pool_connections = self._gauge(
            "postgres_pool_connections", "Connections of this process's pool", "state"
        )
        self.event_loop_lag_seconds = self._histogram(
            "event_loop_lag_seconds", "How late the event loop woke", B1
        )
        self.build_info = self._gauge(
            "build_info", "Always 1; says what runs", "version", "revision", "python"
        )
        self.build_info.labels(ours(), "", platform.python_version()).set(1)


class WorkerMetrics(_Both):
    """Metrics of a worker process; sum them over the fleet.

    >>> metrics = WorkerMetrics(CollectorRegistry())
    >>> metrics.messages_total.labels(metrics.sender_label("shop"), "sent").inc()
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Declare them all."""
        super().__init__(registry)
        self._senders: set[str] = set()
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.jobs_finished_total = counter("jobs_finished_total", "Jobs at their end", "state")
        self.job_duration_seconds = histogram(
            "job_duration_seconds", "From accepted to finished", B2, "kind"
        )
        self.messages_total = counter(
            "messages_total", "Recipients that came to an outcome", "sender", "outcome"
        )
        self.attempts_total = counter("attempts_total", "Requests to Graph", "answer")
        self.message_errors_total = counter(
            "message_errors_total", "Refusals by Graph's code", "code", "action"
        )
        self.message_retries_total = counter("message_retries_total", "Further attempts", "how")
        self.message_queue_seconds = histogram(
            "message_queue_seconds", "From submitted to the first attempt", B2
        )
        self.receipts_total = counter("receipts_total", "Receipts by status", "status")
        self.receipt_delay_seconds = histogram(
            "receipt_delay_seconds", "From sent to the receipt", B2, "status"
        )
        self.duplicates_total = counter(
            "duplicates_total", "Receipts that show a second accepted attempt"
        )
        self.unknown_total = counter("unknown_total", "Recipients nobody knows about", "cause")
        self.unknown_settled_total = counter(
            "unknown_settled_total", "Unknown recipients settled by a webhook", "to"
        )
        self.graph_request_duration_seconds = histogram(
            "graph_request_duration_seconds", "One request to Graph", B1, "outcome"
        )
        self.graph_in_flight = gauge("graph_in_flight", "Requests to Graph without an answer yet")
        self.sender_rate_cuts_total = counter(
            "sender_rate_cuts_total", "Times a throttle cut a sender's rate", "sender"
        )
        self.claims_total = counter("claims_total", "Claims by how they ended", "result")
        self.claim_duration_seconds = histogram(
            "claim_duration_seconds", "From claimed to done", _CLAIM
        )
        self.workers_reaped_total = counter(
            "workers_reaped_total", "Workers whose lease lapsed and whose claims were taken"
        )
        self.holds_total = counter("holds_total", "Holds of a shard after another Redis was met")
        self.worker_slots = gauge("worker_slots", "Claims this worker can hold")
        self.worker_busy_slots = gauge("worker_busy_slots", "Claims this worker holds")
        self.tick_age_seconds = gauge("tick_age_seconds", "Since the last tick that Redis answered")
        self.archive_rows_total = counter("archive_rows_total", "Rows written to campaign_logs")
        self.archive_flush_seconds = histogram(
            "archive_flush_seconds", "One transaction of the archive writer", B1
        )
        self.webhooks_total = counter("webhooks_total", "Webhooks worked off", "result")
        self.notices_total = counter(
            "notices_total", "What was told of templates, accounts and numbers", "field", "action"
        )
        # Bound here because the path of a message must not pay for the look-up (pitfalls O2).
        attempts = self.attempts_total.labels
        self.attempt_accepted = attempts("accepted")
        self.attempt_refused = attempts("refused")
        self.attempt_throttled = attempts("throttled")
        self.attempt_unsent = attempts("unsent")
        self.attempt_lost = attempts("lost")
        seconds = self.graph_request_duration_seconds.labels
        self.graph_seconds = {
            "accepted": seconds("ok"),
            "rejected": seconds("4xx"),
            "throttled": seconds("throttled"),
            "not_sent": seconds("network"),
            "unknown": seconds("timeout"),
        }
        self.retry_in_place = self.message_retries_total.labels("in_place")
        self.retry_moved = self.message_retries_total.labels("moved")
        for result in ("done", "handed_back", "lost", "poison"):
            self.claims_total.labels(result)
        for cause in ("crash", "timeout", "reset", "bad_reply"):
            self.unknown_total.labels(cause)

    def sender_label(self, name: str) -> str:
        """Return `name`, or `other` once this process has shown its twenty."""
        if name in self._senders:
            return name
        if len(self._senders) < SENDERS_MAX:
            self._senders.add(name)
            return name
        return "other"


class ApiMetrics(_Both):
    """Metrics of an API process: its own (sum them) and the fleet's (`max` of them)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Declare them all."""
        super().__init__(registry)
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.jobs_submitted_total = counter(
            "jobs_submitted_total", "Jobs accepted", "kind", "source"
        )
        self.submissions_refused_total = counter(
            "submissions_refused_total", "Submissions not accepted", "reason"
        )
        self.sse_connections = gauge("sse_connections", "Open streams")
        self.sse_events_sent_total = counter("sse_events_sent_total", "Events written")
        self.sse_events_coalesced_total = counter(
            "sse_events_coalesced_total", "Snapshots replaced by a newer one before they were sent"
        )
        self.sse_disconnects_total = counter("sse_disconnects_total", "Ended streams", "reason")
        self.sse_resumes_total = counter(
            "sse_resumes_total", "Streams that came with Last-Event-ID", "result"
        )
        self.sse_delivery_lag_seconds = histogram(
            "sse_delivery_lag_seconds", "From a snapshot's time to written", B1
        )
        self.webhooks_total = counter("webhooks_total", "Webhooks received", "result")
        self.http_request_duration_seconds = histogram(
            "http_request_duration_seconds", "One request, streams left out", B1, "endpoint"
        )
        self.http_requests_total = counter(
            "http_requests_total", "Requests answered", "endpoint", "status"
        )
        self.logins_total = counter("logins_total", "Tried logins", "result")
        self._declare_fleet()

    def _declare_fleet(self) -> None:
        gauge = self._gauge
        self.jobs = gauge("jobs", "Fleet: jobs by state", "state")
        self.unknown_open = gauge("unknown_open", "Fleet: unknown recipients not settled")
        self.sender_rate_limit = gauge(
            "sender_rate_limit", "Fleet: messages per second allowed", "sender"
        )
        self.sender_rate_now = gauge("sender_rate_now", "Fleet: messages per second now", "sender")
        self.sender_blocked = gauge("sender_blocked", "Fleet: 1 when blocked", "sender")
        self.backlog_messages = gauge(
            "backlog_messages", "Fleet: recipients without an outcome", "phase"
        )
        self.demand_messages_per_second = gauge(
            "demand_messages_per_second", "Fleet: rate that would drain the backlog in time"
        )
        self.wanted_workers = gauge("wanted_workers", "Fleet: workers that the demand needs")
        self.ready_age_seconds = gauge(
            "ready_age_seconds", "Fleet: age of the oldest released claim nobody has taken"
        )
        self.stream_length = gauge("stream_length", "Fleet: entries of a stream", "stream")
        self.stream_pending = gauge("stream_pending", "Fleet: entries taken, not done", "stream")
        self.workers = gauge("workers", "Fleet: workers by state", "state")
        self.archive_lag_seconds = gauge(
            "archive_lag_seconds", "Fleet: age of the oldest outcome not in PostgreSQL"
        )
        self.inbox_age_seconds = gauge("inbox_age_seconds", "Fleet: age of the oldest webhook")
        self.postgres_table_bytes = gauge(
            "postgres_table_bytes", "Fleet: size of a table with its indexes", "table"
        )
        self.redis_memory_used_bytes = gauge("redis_memory_used_bytes", "Fleet: memory in use")
        self.redis_memory_max_bytes = gauge("redis_memory_max_bytes", "Fleet: maxmemory; 0 = none")
        self.redis_persistence_ok = gauge(
            "redis_persistence_ok", "Fleet: 1 when the append-only file is written"
        )


def names(*metrics: _Declared) -> frozenset[str]:
    """Return the names of all samples that the registries can expose."""
    found: set[str] = set()
    for metric in (m for each in metrics for m in each.registry.collect()):
        found.add(metric.name)
        if metric.type == "counter":
            found.add(f"{metric.name}_total")
        if metric.type == "histogram":
            found.update(f"{metric.name}_{part}" for part in ("bucket", "count", "sum"))
    return frozenset(found)
