"""From a job's hash to what people see of it: numbers, what is in the way, one event. Pure.

Asks no store and no clock; `api.hub` and `api.jobs` build from here, so that a stream and a
plain GET never disagree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from api.wire import Progress, Wait, encode, time_text
from shared.graph_codes import code_of_reason
from shared.models import FINAL_STATES, JobStatus, Reason

CODES_SHOWN: Final = 20
STORAGE_AFTER_MS: Final = 5000  # a row that Redis lacks for longer is said to wait (interfaces 2.1)
_STREAM_ID: Final = re.compile(r"([0-9]{1,20})-([0-9]{1,20})", re.ASCII)
_U64: Final = 2**64

EventType = Literal["snapshot", "progress", "end"]
Resume = Literal["snapshot", "nothing", "reset", "over"]


class EventId(NamedTuple):
    """A stream id that can be compared; `0-0` is before all of them."""

    ms: int = 0
    number: int = 0

    def __str__(self) -> str:
        """Return it as Redis spells it.

        >>> str(EventId(1795511671402, 0))
        '1795511671402-0'
        """
        return f"{self.ms}-{self.number}"


NO_EVENT: Final = EventId()


def parse_id(text: str) -> EventId | None:
    """Return a stream id; None when `text` is none, whoever sent it.

    >>> parse_id("1795511671402-0") > parse_id("999-7"), parse_id("7"), parse_id("1-2\\n")
    (True, None, None)
    """
    found = _STREAM_ID.fullmatch(text)
    if found is None:
        return None
    ms, number = int(found[1]), int(found[2])
    return EventId(ms, number) if ms < _U64 and number < _U64 else None


class Snapshot(msgspec.Struct, frozen=True):
    """A job's numbers at one moment, whole.

    Attributes:
        event: id of the change note it was built for; `NO_EVENT` while Redis lacks the job.
        is_end: every recipient has an outcome and `event` is the job's last id.
        at_ms: when it was read, epoch, this process's clock.
    """

    job: str
    event: EventId
    is_end: bool
    state: str
    wait: Wait | None
    progress: Progress
    at_ms: int


def progress_of(status: JobStatus) -> Progress:
    """Return the numbers of a job as Redis knows them."""
    tally = status.tally
    by_code, by_reason = fold(status.reasons)
    return Progress(
        total=tally.total,
        queued=tally.queued,
        in_flight=tally.in_flight,
        retrying=tally.retrying,
        sent=tally.sent,
        failed=tally.failed,
        skipped=tally.skipped,
        cancelled=tally.cancelled,
        unknown=tally.unknown,
        done=tally.done,
        delivered=status.delivered,
        read=status.read,
        undelivered=status.undelivered,
        rate=round(status.speed, 1),
        eta_s=_eta_s(status),
        by_code=by_code,
        by_reason=by_reason,
    )


def fold(reasons: Mapping[int, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Return counts by Graph code, at most 20 and `other`, and counts by our own reasons.

    >>> fold({1: 12, 15: 2})
    ({'other': 2}, {'suppressed': 12})
    """
    codes: dict[str, int] = {}
    words: dict[str, int] = {}
    other = 0
    for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
        if not count or reason == Reason.NONE:
            continue
        code = code_of_reason(reason)
        if code is not None and len(codes) < CODES_SHOWN:
            codes[str(code)] = codes.get(str(code), 0) + count
        elif reason < Reason.OTHER:
            words[Reason(reason).name.lower()] = count
        else:
            other += count
    return (codes | {"other": other} if other else codes), words


def _eta_s(status: JobStatus) -> int | None:
    """Return what is left over the smallest of the speed and the limits (interfaces 2.1)."""
    left = status.tally.queued + status.tally.retrying
    if not left:
        return 0
    if status.state not in {"queued", "running"}:
        return None
    speeds = [rate for rate in (status.speed, status.sender.rate, status.rate) if rate > 0]
    return math.ceil(left / min(speeds)) if speeds else None


def wait_of(
    status: JobStatus | None, now_ms: int, state_in_pg: str = "", created_ms: int = 0
) -> Wait | None:
    """Return what stands in a job's way, the most lasting obstacle first.

    Args:
        status: what Redis knows; None when it does not have the job.
        now_ms: the time, epoch.
        state_in_pg: the row's state; only looked at when Redis does not have the job.
        created_ms: when the row was made, epoch.
    """
    if status is None:
        is_late = state_in_pg not in FINAL_STATES and now_ms - created_ms >= STORAGE_AFTER_MS
        return Wait("storage", "accepted; the queue does not have it yet") if is_late else None
    if status.state == "paused":
        by = status.by or None
        if by == "system" and status.reason.startswith("template"):
            return Wait("template_paused", "WhatsApp paused the template", None, by)
        return Wait("paused", status.reason or "paused on request", None, by)
    if status.state not in {"queued", "running"}:
        return None
    if status.off:
        return Wait("kill_switch", "sending is switched off")
    return _sender_wait(status, now_ms)


def _sender_wait(status: JobStatus, now_ms: int) -> Wait | None:
    sender = status.sender
    if sender.paused and sender.why == "token":
        return Wait("token_invalid", "WhatsApp refuses the sender's token")
    if sender.paused:
        return Wait("sender_paused", f"the sender is paused ({sender.why or 'by an operator'})")
    if status.unreachable:
        return Wait("graph_unreachable", "no worker reaches WhatsApp")
    if sender.blocked_until_ms > now_ms:
        why = f"WhatsApp asked for a pause ({sender.why or 'throttled'})"
        return Wait("sender_blocked", why, time_text(sender.blocked_until_ms))
    if not sender.known:
        return Wait("storage", "the queue has not been told the sender's rate yet")
    if not status.tally.queued:
        return None
    if status.rate and (not sender.rate or status.rate < sender.rate):
        return Wait("job_rate", f"this job's own limit {status.rate:g}/s")
    if sender.rate:
        return Wait("sender_rate", f"number limit {sender.rate:g}/s{_shared_by(sender.jobs)}")
    return None


def _shared_by(jobs: int) -> str:
    return f", {jobs} jobs share it" if jobs > 1 else ""


def snapshot_of(status: JobStatus, now_ms: int) -> Snapshot:
    """Return a job's snapshot from its hash."""
    return Snapshot(
        job=status.id,
        event=parse_id(status.event) or NO_EVENT,
        is_end=status.is_ended,
        state=status.state,
        wait=wait_of(status, now_ms),
        progress=progress_of(status),
        at_ms=now_ms,
    )


def resume(
    given: str | None, newest: EventId, last: EventId, *, is_end: bool, exact: bool = True
) -> Resume:
    """Say what a connection that names an id is owed (the table of interfaces' section 3).

    Args:
        given: `Last-Event-ID`, or the query's; None when there was none.
        newest: id of the job's newest event; of several jobs the largest.
        last: the shard's newest change note: what lies above it was never given out.
        is_end: `newest` is the last one there will be.
        exact: False for several jobs: no resume, each connection begins with snapshots.

    >>> resume("5-0", EventId(5), EventId(9), is_end=True)
    'over'
    """
    if not given:
        return "snapshot"
    seen = parse_id(given)
    if seen is None or seen > max(newest, last):
        return "reset"
    if is_end:
        return "over" if seen >= newest else "snapshot"
    if not exact:
        return "snapshot"
    if seen > newest:
        return "reset"
    return "nothing" if seen == newest else "snapshot"


class _Event(msgspec.Struct, frozen=True, rename={"job_id": "jobId"}):
    type: EventType
    job_id: str
    state: str
    wait: Wait | None
    at: str | None
    reset: bool
    progress: Progress


def frame(snapshot: Snapshot, kind: EventType, *, reset: bool = False) -> bytes:
    """Return one SSE event, unnamed: JSON has no raw line break, so the body is one line.

    Without a change note there is no id, and the client keeps the one it has.
    """
    event = _Event(
        "end" if snapshot.is_end else kind,
        snapshot.job,
        snapshot.state,
        snapshot.wait,
        time_text(snapshot.at_ms),
        reset,
        snapshot.progress,
    )
    head = b"" if snapshot.event == NO_EVENT else f"id: {snapshot.event}\n".encode()
    return head + b"data: " + encode(event) + b"\n\n"


def bye(retry_ms: int) -> bytes:
    """Return the last frame before this process stops: come back after `retry_ms`."""
    return f"event: bye\nretry: {retry_ms}\ndata: {{}}\n\n".encode()


REVOKED: Final = b"event: revoked\ndata: {}\n\n"
HEARTBEAT: Final = b": hb\n\n"


def hello(retry_ms: int) -> bytes:
    """Return what every stream begins with, so that proxies flush."""
    return f"retry: {retry_ms}\n: ok\n\n".encode()
