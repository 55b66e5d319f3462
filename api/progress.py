"""From a job's status to its snapshot: numbers, what it waits for, the frame, and how to resume.

Pure: the hub, the job answers and the tests call the same functions.
"""

from __future__ import annotations

import math
import re
from typing import Final, Literal

import msgspec

from api import wire
from shared.graph_codes import FIRST_REASON, code_of_reason, row_of
from shared.models import FINAL_STATES, JobStatus, Reason

Kind = Literal["snapshot", "progress", "end", "receipts"]
Resume = Literal["snapshot", "nothing", "stop", "reset"]

CODES_SHOWN: Final = 20
NO_EVENT: Final = "0-0"
_REASONS: Final = {int(reason): reason.name.lower() for reason in Reason}
_BREAKER: Final = "breaker:"
_STOPPED: Final = re.compile(r"([a-z]+)(_paused)?:(.+)")
_LOW_BITS: Final = 0x7FFF
_REFUSED: Final = 400
_ID: Final = re.compile(r"([0-9]{1,20})-([0-9]{1,20})", re.ASCII)
_U64: Final = 1 << 64


class Event(msgspec.Struct, frozen=True, rename={"job_id": "jobId"}):
    """The data of one live event: a whole snapshot, never a difference."""

    type: Kind
    job_id: str
    state: str
    wait: wire.Wait | None
    at: str | None
    reset: bool
    progress: wire.Progress


def progress_of(status: JobStatus) -> wire.Progress:
    """Return a job's numbers; `total` is the sum of its states, `done` of its outcomes."""
    tally = status.tally
    by_code, by_reason = named(status.reasons)
    return wire.Progress(
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
        eta_s=_eta(status),
        by_code=by_code,
        by_reason=by_reason,
    )


def named(reasons: dict[int, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Return counts by reason number as counts by Graph code and by our own words, most first."""
    by_code: dict[str, int] = {}
    by_reason: dict[str, int] = {}
    for raw, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        reason = raw & _LOW_BITS
        if reason < FIRST_REASON:
            word = _REASONS.get(reason, "other")
            by_reason[word] = by_reason.get(word, 0) + count
            continue
        code = code_of_reason(reason)
        name = "other" if code is None else str(code)
        if name not in by_code and len(by_code) >= CODES_SHOWN - 1:
            name = "other"
        by_code[name] = by_code.get(name, 0) + count
    return by_code, by_reason


def _eta(status: JobStatus) -> int | None:
    left = status.tally.queued + status.tally.retrying
    if status.state in FINAL_STATES or (not left and not status.tally.in_flight):
        return 0
    if status.state not in {"queued", "running"} or status.off or status.sender.paused:
        return None
    speeds = [v for v in (status.speed, status.sender.rate, status.rate) if v >= 0.05]  # noqa: PLR2004 - shown as 0.1
    return math.ceil(left / min(speeds)) if speeds else None


def wait_of(status: JobStatus, now_ms: int) -> wire.Wait | None:
    """Return what stands in a job's way, the most lasting thing first; None when nothing does."""
    if status.state == "paused":
        return pause_of(status.by, status.reason)
    if status.state not in {"queued", "running"}:
        return None
    if status.off:
        return wire.Wait("kill_switch", "sending is switched off")
    sender, tally = status.sender, status.tally
    if sender.paused:
        return _stop_of(sender.why)
    if sender.blocked_until_ms > now_ms:
        until = wire.time_text(sender.blocked_until_ms)
        detail = _said("WhatsApp asked the number to be silent", _cause(sender.why))
        return wire.Wait("sender_blocked", detail, until=until)
    if status.unreachable:
        return wire.Wait("graph_unreachable", "no worker reaches WhatsApp's API")
    if status.stale:
        text = "the storage has not told for 30 s who must not be written to"
        return wire.Wait("storage", text)
    if not sender.known or status.reserved <= status.cursor < tally.total:
        return wire.Wait("storage", "waiting for the storage to note how far it may go")
    left = tally.queued + tally.retrying
    share = sender.rate / max(1, sender.jobs)
    if left and status.rate and (not share or status.rate <= share):
        return wire.Wait("job_rate", f"the job's own limit {status.rate:g}/s")
    if left and sender.rate:
        jobs = f", {sender.jobs} jobs share it" if sender.jobs > 1 else ""
        return wire.Wait("sender_rate", f"number limit {sender.rate:g}/s{jobs}")
    return None


def _stop_of(why: str) -> wire.Wait:
    """Return why a paused number sends nothing; `why` is a scope and a code, or people's words."""
    scope, _, _ = why.partition(":")
    if scope == "token":
        detail = _said("WhatsApp refuses the number's token", _cause(why))
        return wire.Wait("token_invalid", f"{detail}; store another one", by="system")
    if _STOPPED.fullmatch(why):
        whom = "the account of the number" if scope in {"waba", "app"} else "the number"
        return wire.Wait(
            "sender_paused", _said(f"WhatsApp stopped {whom}", _cause(why)), by="system"
        )
    words = "the number is paused"
    return wire.Wait("sender_paused", f"{words}: {why}" if why not in {"", "operator"} else words)


def pause_of(whom: str, reason: str) -> wire.Wait:
    """Return why a job was paused; of a breaker and of an error that stopped it in words."""
    by = whom or None
    if reason.startswith(_BREAKER):
        number = reason.removeprefix(_BREAKER)
        code = code_of_reason(int(number)) if number.isdigit() else None
        shown = f", the last with code {code}" if code else ""
        return wire.Wait("paused", f"too many failures in a row{shown}", by=by)
    if by == "system" and _STOPPED.fullmatch(reason):
        if reason.startswith("template"):
            detail = _said("WhatsApp does not take the template", _cause(reason))
            return wire.Wait("template_paused", detail, by=by)
        return wire.Wait("paused", _said("WhatsApp refuses the whole job", _cause(reason)), by=by)
    return wire.Wait("paused", reason or "paused until somebody resumes it", by=by)


def _cause(why: str) -> str:
    """Return the code in `waba:80007` with Meta's meaning; '' where nobody gave one."""
    found = _STOPPED.fullmatch(why)
    text = found[3] if found else ""
    if not text.isdigit():
        return text.replace("_", " ")
    meaning = row_of(int(text), _REFUSED).meaning
    return f"{text}: {meaning}"


def _said(words: str, cause: str) -> str:
    return f"{words} ({cause})" if cause else words


def encode(event_id: str, event: Event) -> bytes:
    """Return an event as it goes over the wire; JSON has no line break, so it is one data line.

    Without an id the reader keeps the one it has.
    """
    first = b"id: " + event_id.encode() + b"\n" if event_id else b""
    return first + b"data: " + wire.encode(event) + b"\n\n"


def frame(status: JobStatus, now_ms: int, kind: Kind, reset: bool = False) -> bytes:  # noqa: FBT001, FBT002 - the event's own field
    """Return a job's snapshot as a frame; an ended job's is always its `end`."""
    event = Event(
        type="end" if status.is_ended else kind,
        job_id=status.id,
        state=status.state,
        wait=wait_of(status, now_ms),
        at=wire.time_text(now_ms),
        reset=reset,
        progress=progress_of(status),
    )
    return encode(status.event, event)


def order(event_id: str) -> tuple[int, int] | None:
    """Return a stream id as two numbers that compare; None for what is not one.

    >>> order("1795511671402-0") < order("1795511671402-10")
    True
    """
    found = _ID.fullmatch(event_id)
    if found is None:
        return None
    ms, sequence = int(found[1]), int(found[2])
    return (ms, sequence) if ms < _U64 and sequence < _U64 else None


def order_or_zero(event_id: str) -> tuple[int, int]:
    """Return a stream id as two numbers; what is not one is below all."""
    return order(event_id) or (0, 0)


def decide_resume(
    given: str | None, newest: str, end_event: str | None, last_of_shard: str
) -> Resume:
    """Decide what a connection that comes with `given` gets first.

    Args:
        given: `Last-Event-ID`, or None.
        newest: id of the job's newest note; the end's when Redis no longer has the job.
        end_event: id of the job's last note; None while there is none.
        last_of_shard: id of the newest note in the shard's `events`.

    Returns:
        `snapshot` · `nothing` until something changes · `stop`: 204, the browser never returns
        · `reset`: a snapshot that says it may go back, since nobody here gave out that id.

    >>> decide_resume("5-0", "7-0", None, "9-0"), decide_resume("8-0", "7-0", None, "9-0")
    ('snapshot', 'reset')
    """
    if given is None:
        return "snapshot"
    at = order(given)
    if at is None:
        return "reset"
    now = order(newest) or (0, 0)
    if end_event is not None:
        end = order(end_event) or (0, 0)
        # Above the end and above all that was ever noted is an id from before a fail-over:
        # its client has not seen this end.
        if at == end or end < at <= (order(last_of_shard) or (0, 0)):
            return "stop"
    if at == now:
        return "nothing"
    return "snapshot" if at < now else "reset"


def is_past(given: str, end_event: str) -> bool:
    """Tell whether a client has a job's end, and perhaps receipts after it."""
    return order_or_zero(given) >= order_or_zero(end_event)


def after(last: str, now_ms: int) -> str:
    """Return an id above `last`: of the clock, unless that is behind.

    >>> after("5-3", 4), after("5-3", 9)
    ('6-0', '9-0')
    """
    return f"{max(now_ms, order_or_zero(last)[0] + 1)}-0"
