"""Show, list, pause, resume, cancel. The owner is part of every question to a store."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import msgspec
from aiohttp import web

from api import wire
from api.audit import note, note_done
from api.auth import Principal, principal
from api.cursors import cursor_of, number_of
from api.draft import REDIS_S
from api.guard import SMALL_BODY, body_of
from api.idempotency import key_of
from api.owned import answer, id_of, limit_of, note_foreign, visible
from api.resources import Resources, resources
from api.router import query_of
from api.times import moment_of
from api.views import ACTS, TIMELINE_MAX, error_row, job_of, timeline_of
from api.wire import refuse
from shared import logs
from shared.archive import JobFilter, JobRow
from shared.errors import (
    ArchiveError,
    ConflictError,
    DeniedError,
    QueueError,
    UnavailableError,
)
from shared.ids import is_user_id
from shared.models import FINAL_STATES, JOB_STATES, JobStatus

_LIST: Final = (
    "limit", "cursor", "state", "sender", "campaignId", "q", "from", "to", "userId", "metadata",
)  # fmt: skip
_log: Final = logs.get("api.jobs")


# -- show and list ---------------------------------------------------------------------------


async def statuses_of(made: Resources, rows: list[JobRow]) -> list[JobStatus | None]:
    """Return what Redis knows of jobs; nothing while it is away: PostgreSQL still answers."""
    try:
        async with asyncio.timeout(REDIS_S):
            return await made.queue.statuses([row.id for row in rows])
    except (QueueError, TimeoutError):
        return [None] * len(rows)


async def settled_state(made: Resources, row: JobRow) -> str:
    """Return a job's state; a final one's recipients are all logged.

    Raises:
        ConflictError: the job is over, and its last outcomes are on their way to PostgreSQL.
    """
    if row.has_ended:
        return row.state
    state = row.state
    if state not in FINAL_STATES:
        state = job_of(row, (await statuses_of(made, [row]))[0], made.clock.now_ms()).state
    if state in FINAL_STATES:
        text = "The job's last results are still being written; ask again."
        raise ConflictError("state_conflict", text, state, retry_after_s=1)
    return state


async def show(request: web.Request) -> web.Response:
    """GET /api/bulk/jobs/{jobId}."""
    made, asker = resources(request), principal(request)
    job_id = id_of(request, made)
    wanted = query_of(request, "expand").get("expand", "")
    expand = set(wanted.split(",")) if wanted else set()
    if not expand <= {"errors", "timeline"}:
        refuse("", "expand takes errors and timeline", "unknown_parameter")
    row = await visible(made, asker, job_id)
    await note_foreign(request, made, asker, row)
    job = job_of(row, (await statuses_of(made, [row]))[0], made.clock.now_ms())
    if row.state in FINAL_STATES or "errors" in expand:
        counts = await made.archive.error_counts(job_id)
        if row.state in FINAL_STATES:
            top = sorted(counts.items(), key=lambda item: -item[1])
            by_code = {str(code): count for code, count in top[:19]}
            rest = sum(count for _, count in top[19:])
            if rest:
                by_code["other"] = rest
            progress = msgspec.structs.replace(job.progress, by_code=by_code)
            job = msgspec.structs.replace(job, progress=progress)
        if "errors" in expand:
            rows = [error_row(code, count) for code, count in sorted(counts.items())]
            job = msgspec.structs.replace(job, errors=rows)
    if "timeline" in expand:
        acts = await made.office.acts_on(job_id, list(ACTS), TIMELINE_MAX)
        job = msgspec.structs.replace(job, timeline=timeline_of(job, row, acts))
    return answer(job)


async def list_jobs(request: web.Request) -> web.Response:
    """GET /api/bulk/jobs: own jobs, an admin's everybody's, newest first."""
    made, asker = resources(request), principal(request)
    query = query_of(request, *_LIST)
    limit = limit_of(query)
    what = _filter_of(query, asker)
    scope = wire.canonical([asker.user_id, what])
    before = number_of(query["cursor"], scope, made.secret) if "cursor" in query else 0
    rows = await made.archive.jobs(msgspec.structs.replace(what, before=before, limit=limit + 1))
    has_more, rows = len(rows) > limit, rows[:limit]
    now_ms, statuses = made.clock.now_ms(), await statuses_of(made, rows)
    jobs = [job_of(row, status, now_ms) for row, status in zip(rows, statuses, strict=True)]
    cursor = cursor_of(rows[-1].number, scope, made.secret) if has_more else None
    return answer(wire.JobList(jobs, has_more, cursor))


def _filter_of(query: dict[str, str], asker: Principal) -> JobFilter:
    states = query["state"].split(",") if "state" in query else None
    if states is not None and (len(states) > len(JOB_STATES) or not set(states) <= set(JOB_STATES)):
        refuse("", f"state takes a comma list of {', '.join(JOB_STATES)}", "bad_filter")
    if states is not None and "queued" in states:
        states.append("accepted")
    owner = asker.owner
    if "userId" in query:
        wanted = query["userId"].lower()
        if not is_user_id(wanted):
            refuse("", "userId is not a user id", "bad_filter")
        if owner is not None and wanted != owner:
            raise DeniedError("user_mismatch", "You may list your own jobs only.")
        owner = wanted
    for name, most in (("sender", 64), ("campaignId", 128), ("q", 200), ("metadata", 541)):
        if len(query.get(name, "")) > most or "\0" in query.get(name, ""):
            refuse("", f"{name} is at most {most} characters", "bad_filter")
    return JobFilter(
        owner=owner,
        states=states,
        sender=query.get("sender"),
        campaign_id=query.get("campaignId"),
        q=query.get("q") or None,
        from_ms=moment_of(query.get("from"), "", None),
        to_ms=moment_of(query.get("to"), "", None),
        metadata=_pair_of(query["metadata"]) if "metadata" in query else None,
    )


def _pair_of(text: str) -> str:
    """Return `name:value` as a JSON object of one pair."""
    name, colon, value = text.partition(":")
    if not name or not colon:
        refuse("", "metadata is a name, a colon and a value", "bad_filter")
    return wire.encode({name: value}).decode()


# -- control ---------------------------------------------------------------------------------


async def pause(request: web.Request) -> web.Response:
    """POST /api/bulk/jobs/{jobId}/pause."""
    return await _control(request, "pause")


async def resume(request: web.Request) -> web.Response:
    """POST /api/bulk/jobs/{jobId}/resume."""
    await resources(request).switch.require_on()
    return await _control(request, "resume")


async def cancel(request: web.Request) -> web.Response:
    """POST /api/bulk/jobs/{jobId}/cancel."""
    return await _control(request, "cancel")


async def _control(request: web.Request, action: str) -> web.Response:
    made, asker = resources(request), principal(request)
    job_id = id_of(request, made)
    key_of(request)  # its form is checked; the table of states makes these safe to repeat
    query_of(request)
    reason = await _reason_of(request, made)
    row = await visible(made, asker, job_id)
    if row.state in FINAL_STATES:
        if (action, row.state) != ("cancel", "cancelled"):
            raise _conflict(action, row.state)
        return answer(job_of(row, None, made.clock.now_ms()))
    await note(request, made, asker, f"job.{action}", job_id, "asked", reason)
    try:
        result = await made.queue.control(job_id, action, by=asker.user_id, reason=reason)
    except QueueError:
        await note_done(request, made, asker, f"job.{action}", job_id, "failed", reason)
        raise
    is_done = result.kind in {"ok", "same"}
    await note_done(
        request, made, asker, f"job.{action}", job_id, "ok" if is_done else "failed", reason
    )
    if result.kind == "gone":
        raise UnavailableError(
            "storage_unavailable", "The queue does not know this job yet; ask again.", 5
        )
    if not is_done or (action == "resume" and result.kind == "same"):
        raise _conflict(action, result.state)
    _log.info(f"job.{action}", jobId=job_id, userId=asker.user_id, state=result.state)
    with suppress(ArchiveError):
        # It has happened, so the answer says so, if need be with the row as it was before.
        row = await visible(made, asker, job_id)
    status = (await statuses_of(made, [row]))[0]
    job = job_of(row, status, made.clock.now_ms())
    return answer(job if status else msgspec.structs.replace(job, state=result.state))


def _conflict(action: str, state: str) -> ConflictError:
    return ConflictError("state_conflict", f"A job that is {state} takes no {action}.", state)


async def _reason_of(request: web.Request, made: Resources) -> str:
    if not request.can_read_body:
        return ""
    raw = await body_of(request, SMALL_BODY, made.settings.body_timeout_s)
    if not raw:
        return ""
    body = wire.decode(raw, wire.Reason)
    if body.reason is not None:
        wire.refuse_controls({"reason": body.reason})
    return body.reason or ""
