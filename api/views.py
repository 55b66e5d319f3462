"""A job as its owner sees it, from Redis where it is newer, else from PostgreSQL. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from api import wire
from api.progress import pause_of, progress_of, wait_of
from shared.archive import JobRow
from shared.graph_codes import row_of
from shared.models import FINAL_STATES, JobStatus
from shared.office import AuditRow

_STORAGE_AFTER_MS: Final = 5000
TIMELINE_MAX: Final = 50
# Acts of the audit log that move a job, and the events they make.
ACTS: Final = {
    "job.pause": "paused",
    "job.resume": "resumed",
    "job.cancel": "cancelling",
    "job.change": "changed",
    "job.retry": "retried",
}


def job_of(row: JobRow, status: JobStatus | None, now_ms: int) -> wire.Job:
    """Return a job as its owner sees it, from Redis where it is newer, else from PostgreSQL."""
    if status is None or row.has_ended:
        state = "queued" if row.state == "accepted" else row.state
        if row.state == "accepted" and row.scheduled_ms > now_ms:
            state = "scheduled"
        progress, wait = _progress_of_row(row), _wait_of_row(row, now_ms)
    else:
        state, progress, wait = status.state, progress_of(status), wait_of(status, now_ms)
    started = max(row.started_ms, status.started_ms if status else 0)
    finished = max(row.finished_ms, status.finished_ms if status else 0)
    template = None
    if row.template_name is not None:
        template = wire.TemplateName(row.template_name, row.template_language or "")
    return wire.Job(
        job_id=row.id,
        user_id=row.owner,
        campaign_id=row.campaign_id,
        name=row.name,
        state=state,
        wait=wait,
        sender=row.sender_name,
        kind=row.kind,
        template=template,
        rate=row.rate or None,
        priority=row.priority,
        on_unknown=row.on_unknown,
        parent=row.parent,
        created_at=wire.time_text(row.created_ms) or "",
        scheduled_at=wire.time_text(row.scheduled_ms),
        started_at=wire.time_text(started),
        finished_at=wire.time_text(finished),
        expires_at=wire.time_text(row.expires_ms),
        intake=msgspec.json.decode(row.intake, type=wire.Intake),
        progress=progress,
        links=wire.links_of(row.id),
        metadata=msgspec.json.decode(row.metadata, type=dict[str, str]),
        sandbox=row.sandbox,
    )


def _progress_of_row(row: JobRow) -> wire.Progress:
    return wire.Progress(
        total=row.recipients,
        queued=row.recipients - row.done,
        sent=row.sent,
        failed=row.failed,
        skipped=row.skipped,
        cancelled=row.cancelled,
        unknown=row.unknown,
        done=row.done,
        delivered=row.delivered,
        read=row.read,
        undelivered=row.undelivered,
        eta_s=0 if row.done == row.recipients else None,
    )


def _wait_of_row(row: JobRow, now_ms: int) -> wire.Wait | None:
    if row.state in FINAL_STATES:
        return None
    if row.state == "accepted" and now_ms - row.created_ms < _STORAGE_AFTER_MS:
        return None
    return wire.Wait("storage", "the queue does not answer for this job now; nothing is lost")


def error_row(code: int, count: int) -> wire.ErrorRow:
    """Return a code with its meaning and what Drumbeat does about it."""
    found = row_of(code, 400)
    return wire.ErrorRow(str(code), count, found.meaning, found.action)


def timeline_of(job: wire.Job, row: JobRow, acts: list[AuditRow]) -> list[wire.TimelineRow]:
    """Return what happened to a job, newest first.

    Args:
        job: as it is shown.
        row: as PostgreSQL has it: who cancelled it.
        acts: what was done to it, newest first; those of `ACTS`.
    """
    found = []
    if job.finished_at is not None:
        # What is kept with a completed job is of its last pause.
        is_cut = row.state == job.state == "cancelled"
        by, reason = (row.by or None, row.reason or None) if is_cut else (None, None)
        found.append(wire.TimelineRow(job.finished_at, job.state, by, reason))
    found += [
        wire.TimelineRow(
            wire.time_text(act.at_ms) or "", ACTS[act.action], act.actor, reason_told(act)
        )
        for act in acts
    ]
    if job.started_at is not None:
        found.append(wire.TimelineRow(job.started_at, "started", None, None))
    found.append(wire.TimelineRow(job.created_at, "accepted", job.user_id, None))
    return sorted(found, key=lambda each: each.at, reverse=True)[:TIMELINE_MAX]


def reason_told(act: AuditRow) -> str | None:
    """Return why something was done, of what stopped a job by itself in words."""
    if (act.actor, act.action) == ("system", "job.pause"):
        return pause_of(act.actor, act.reason).detail
    if (act.actor, act.action) == ("system", "job.resume"):
        return act.reason.replace("_", " ")
    return act.reason or None
