"""PATCH a job: its name, rate, priority and times, in both stores or in none."""

from __future__ import annotations

from typing import Annotated, Final, Literal, NoReturn

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from api import auth, wire
from api.audit import note, note_done
from api.auth import Principal, principal
from api.draft import WEIGHTS
from api.guard import SMALL_BODY, body_of
from api.idempotency import key_of
from api.jobs import statuses_of
from api.owned import answer, id_of, visible
from api.resources import Resources, resources
from api.router import Route, query_of
from api.times import moment_of, zone_of
from api.views import job_of
from api.wire import refuse
from shared.archive import JobRow
from shared.errors import ArchiveError, ConflictError, QueueError
from shared.lineage import Terms
from shared.models import FINAL_STATES, JobStatus

_PAST_MS: Final = 60_000
_TURNS: Final = 3
_Time = Annotated[str, Meta(max_length=64)] | None | UnsetType


class JobPatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PATCH /api/bulk/jobs/{jobId}`; what is absent stays, null takes away."""

    name: Annotated[str, Meta(max_length=120)] | UnsetType | None = UNSET
    rate: Annotated[float, Meta(ge=0.1, le=1000)] | UnsetType | None = UNSET
    priority: Literal["low", "normal", "high"] | UnsetType = UNSET
    scheduled_at: _Time = UNSET
    expires_at: _Time = UNSET
    timezone: Annotated[str, Meta(max_length=64)] | None = None


def terms_of(patch: JobPatch, row: JobRow, now_ms: int) -> Terms:
    """Return the terms of a job after a patch.

    Raises:
        InvalidError: `bad_time`: no such time, more than 60 s past, or an end before the start.
    """
    old, zone = Terms.of(row), zone_of(patch.timezone)
    start, end = old.scheduled_ms, old.expires_ms
    if patch.scheduled_at is not UNSET:
        start = moment_of(patch.scheduled_at, "/scheduled_at", zone)
        if start and start < now_ms - _PAST_MS:
            refuse("/scheduled_at", "more than 60 s in the past", "bad_time")
        start = start if start > now_ms else 0
    if patch.expires_at is not UNSET:
        end = moment_of(patch.expires_at, "/expires_at", zone)
    is_timed = patch.scheduled_at is not UNSET or patch.expires_at is not UNSET
    if is_timed and end and end <= max(start, now_ms):
        refuse("/expires_at", "not after the start and now", "bad_time")
    priority = old.priority if patch.priority is UNSET else patch.priority
    return Terms(
        name=old.name if patch.name is UNSET else patch.name,
        rate=old.rate if patch.rate is UNSET else patch.rate or 0.0,
        weight=WEIGHTS[priority],
        priority=priority,
        scheduled_ms=start,
        expires_ms=end,
    )


def acts_of(old: Terms, new: Terms) -> list[tuple[str, str]]:
    """Return what Redis is told: actions of `control` and their values."""
    acts = []
    if old.rate != new.rate:
        acts.append(("rate", f"{new.rate:g}"))
    if old.weight != new.weight:
        acts.append(("priority", str(new.weight)))
    if (old.scheduled_ms, old.expires_ms) != (new.scheduled_ms, new.expires_ms):
        acts.append(("times", f"{new.scheduled_ms} {new.expires_ms}"))
    return acts


def refusal_of(patch: JobPatch, row: JobRow, status: JobStatus | None, now_ms: int) -> str | None:
    """Return the state that does not allow a patch; None when it is allowed."""
    state = job_of(row, status, now_ms).state
    is_name_only = all(
        getattr(patch, field) is UNSET
        for field in ("rate", "priority", "scheduled_at", "expires_at")
    )
    if (state in FINAL_STATES or state == "cancelling") and not is_name_only:
        return state
    if patch.scheduled_at is not UNSET and state != "scheduled":
        return state
    return None


def refuse_state(state: str) -> NoReturn:
    """Refuse a change for the job's state.

    Raises:
        ConflictError: always.
    """
    raise ConflictError("state_conflict", f"A job that is {state} takes no such change.", state)


async def change(request: web.Request) -> web.Response:
    """PATCH /api/bulk/jobs/{jobId}."""
    made, asker = resources(request), principal(request)
    job_id = id_of(request, made)
    key_of(request)
    query_of(request)
    raw = await body_of(request, SMALL_BODY, made.settings.body_timeout_s)
    patch = wire.decode(raw, JobPatch)
    now_ms = made.clock.now_ms()
    zone_of(patch.timezone)
    row = await visible(made, asker, job_id)
    new = terms_of(patch, row, now_ms)
    status = (await statuses_of(made, [row]))[0]
    state = refusal_of(patch, row, status, now_ms)
    if state is not None:
        refuse_state(state)
    old = Terms.of(row)
    if new != old:
        words = ", ".join(n for n in Terms.__struct_fields__ if getattr(old, n) != getattr(new, n))
        await note(request, made, asker, "job.change", job_id, "asked", words)
        try:
            await _apply(made, asker, job_id, old, new)
        except (QueueError, ArchiveError, ConflictError):
            await note_done(request, made, asker, "job.change", job_id, "failed", words)
            raise
        await note_done(request, made, asker, "job.change", job_id, "ok", words)
    fresh = await visible(made, asker, job_id)
    status = (await statuses_of(made, [fresh]))[0]
    return answer(job_of(fresh, status, made.clock.now_ms()))


async def _apply(made: Resources, asker: Principal, job_id: str, old: Terms, new: Terms) -> None:
    """Write the row, then tell Redis; a refusal there takes the row's change back.

    Of two changes at once the row's last is told last: whoever has told reads the row again.
    """
    owner = asker.owner
    await made.lineage.change_job(job_id, owner, new)
    try:
        told = old
        for _ in range(_TURNS):
            for action, value in acts_of(told, new):
                result = await made.queue.control(job_id, action, by=asker.user_id, value=value)
                if result.kind == "conflict":
                    refuse_state(result.state)
            told, new = new, Terms.of(await visible(made, asker, job_id))
            if not acts_of(told, new):
                return
    except (QueueError, ConflictError):
        await made.lineage.change_job(job_id, owner, old)
        raise


ROUTES: Final = (
    Route("PATCH", "/api/bulk/jobs/{job_id}", change, auth.SEND, "control", has_body=True),
)
