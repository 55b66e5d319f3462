"""Submit, show, list, pause, resume, cancel. The owner is part of every question to a store."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Final, NamedTuple, NoReturn
from zoneinfo import ZoneInfo

import msgspec
from aiohttp import web

from api import wire
from api.auth import Principal, principal
from api.guard import SMALL_BODY, address_of, body_of
from api.idempotency import answer_of, hash_of, key_of, replay
from api.intake import SLICE, Taken, has_vars
from api.progress import progress_of, wait_of
from api.resources import Resources, resources
from api.router import HEADERS, REQUEST_ID, query_of
from api.sessions import Quota, QuotaError
from shared import ids, keys, logs
from shared.archive import JobFilter, JobRow, NewJob, SenderRow, pack_blob
from shared.errors import (
    ArchiveError,
    ConflictError,
    DeniedError,
    Fault,
    InvalidError,
    NotFoundError,
    QueueError,
    TooManyError,
    UnavailableError,
)
from shared.graph_codes import row_of
from shared.message import TemplateMessage, kind_of, parse_message
from shared.models import FINAL_STATES, JOB_STATES, JobSpec, JobStatus
from shared.phone import regions

ROUTE: Final = "POST /api/bulk/send"
WEIGHTS: Final = {"low": 1, "normal": 4, "high": 16}
_REDIS_S: Final = 2.0  # design, Submit: 3 tries in 2 s, then nobody can know
_TURN_S: Final = 5.0
_STAGE_BYTES: Final = 900_000  # a stage call takes 1 MB
_STEP_S: Final = 30
_STEP_CHUNKS: Final = (2, 200)
_PAST_MS: Final = 60_000
_STORAGE_AFTER_MS: Final = 5000
_CAMPAIGN: Final = re.compile(r"\A[A-Za-z0-9._:-]{1,128}\Z")
_UUID: Final = re.compile(r"\A[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_TIME: Final = re.compile(
    r"\A(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?"
    r"([Zz]|[+-]\d\d:\d\d)?\Z",
    re.ASCII,
)
_ZONE: Final = re.compile(r"\A[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}\Z")
_YEARS: Final = (2000, 2100)
_CURSOR_MAC: Final = 12
_LIST: Final = ("limit", "cursor", "state", "sender", "campaignId", "q", "from", "to", "userId")
_log: Final = logs.get("api.jobs")


# -- submit ----------------------------------------------------------------------------------


async def send(request: web.Request) -> web.Response:
    """POST /api/bulk/send: accept a job and all its recipients, or nothing."""
    made, asker = resources(request), principal(request)
    refused = made.metrics.submissions_refused_total
    try:
        await made.switch.require_on()
    except UnavailableError:
        refused.labels("disabled").inc()
        raise
    key = key_of(request)
    quota = await _take(request, made, asker)
    try:
        response = await _in_turn(request, made, asker, key, quota)
    except BaseException as error:
        await _give_back(made, quota)
        if isinstance(error, QuotaError):
            refused.labels("quota").inc()
        elif isinstance(error, QueueError | ArchiveError):
            refused.labels("storage").inc()
        elif isinstance(error, InvalidError):
            refused.labels("invalid").inc()
        raise
    if "Idempotent-Replayed" in response.headers:
        refused.labels("replay").inc()
        await _give_back(made, quota)
    return response


async def _take(request: web.Request, made: Resources, asker: Principal) -> Quota:
    """Take a place in the quotas; where nobody can say, the submission goes on without one."""
    policies = made.visitors.policies(address_of(request, made.settings), asker.user_id)
    try:
        async with asyncio.timeout(_REDIS_S):
            quota = await made.visitors.take(policies)
    except TimeoutError:
        return Quota(is_taken=True, member="", policies=[])
    except QueueError as error:
        if error.refused:
            raise
        return Quota(is_taken=True, member="", policies=[])
    request[HEADERS].update(quota.headers())
    return quota


async def _give_back(made: Resources, quota: Quota) -> None:
    try:
        async with asyncio.timeout(_REDIS_S):
            await made.visitors.give_back(quota)
    except (QueueError, TimeoutError):
        # One place is lost for an hour; the refusal itself must still be answered.
        _log.warning("quota.lost")


async def _in_turn(
    request: web.Request, made: Resources, asker: Principal, key: str | None, quota: Quota
) -> web.Response:
    """Decode one submission a user at a time: bodies of 8 MiB are not piled up."""
    turn = made.turns.setdefault(asker.user_id, asyncio.Lock())
    try:
        async with asyncio.timeout(_TURN_S):
            await turn.acquire()
    except TimeoutError as error:
        raise TooManyError("rate_limited", "Another submission of yours is read now.", 1) from error
    try:
        return await _submit(request, made, asker, key, quota)
    finally:
        turn.release()


async def _submit(
    request: web.Request, made: Resources, asker: Principal, key: str | None, quota: Quota
) -> web.Response:
    settings = made.settings
    if not quota.is_taken and key is None:
        raise QuotaError(quota)
    raw = await body_of(request, settings.body_max_bytes, settings.body_timeout_s)
    body = wire.decode(raw, wire.SendRequest, breaks_at="/message/text/body")
    del raw
    request_hash = hash_of(body) if key is not None else b""
    again = await replay(made, asker.user_id, ROUTE, key, request_hash)
    if again is not None:
        return again
    if not quota.is_taken:
        raise QuotaError(quota)
    now_ms = made.clock.now_ms()
    scheduled_ms, expires_ms = check(body, made, now_ms)
    owner = await _owner_of(body, made, asker)
    taken = await take_recipients(body, made)
    sender = await _sender_of(body.sender, made)
    job = _Job.of(body, made, owner, sender, taken, scheduled_ms, expires_ms, now_ms)
    answer = job.answer(None)
    new = job.row(key, request_hash if key is not None else None, wire.encode(answer))
    try:
        wait = await _store(made, job, new)
    except ConflictError:
        # Another request with this key was first; its row carries the answer.
        row = await made.archive.idempotent(owner, ROUTE, key or "")
        if row is None:
            raise
        return answer_of(row, request_hash)
    if wait is not None:
        answer = msgspec.structs.replace(answer, wait=wait)
    await _note_done(request, made, asker, "job.submit", job.spec.id, "ok")
    made.metrics.jobs_submitted_total.labels(new.kind, "api").inc()
    _log.info(
        "job.accepted",
        jobId=new.id,
        userId=owner,
        sender=sender.name,
        recipients=new.recipients,
        sandbox=new.sandbox,
    )
    return web.Response(
        status=202,
        body=wire.encode(answer),
        content_type="application/json",
        headers={"Location": answer.links.self},
    )


def check(body: wire.SendRequest, made: Resources, now_ms: int) -> tuple[int, int]:
    """Check all that needs no store and no recipient; return start and deadline (ms, 0 = none).

    Raises:
        InvalidError: with the pointer of the first group of faults.
    """
    faults = parse_message(body.message)
    if faults:
        word = faults[0].code
        raise InvalidError(
            word
            if word in {"bad_template", "bad_media_url", "control_char"}
            else "validation_failed",
            "The message cannot be sent as it is; see errors.",
            faults,
        )
    if body.campaign_id is not None and not _CAMPAIGN.match(body.campaign_id):
        _refuse("/campaignId", "at most 128 of A-Z a-z 0-9 . _ : -")
    if body.default_region is not None and body.default_region not in regions():
        _refuse("/default_region", "not an ISO 3166 region such as DE")
    if isinstance(body.recipients, msgspec.UnsetType):
        _refuse("/recipients", "This field is required.")
    if not body.recipients:
        raise InvalidError(
            "empty_recipients",
            "There is nobody to send to.",
            [Fault("/recipients", "empty_recipients", "at least one recipient")],
        )
    most = made.settings.bulk_hard_cap
    if len(body.recipients) > most:
        text = f"A job has at most {most} recipients."
        raise InvalidError(
            "too_many_recipients", text, [Fault("/recipients", "too_many_recipients", text)]
        )
    return _times(body, now_ms)


def _refuse(pointer: str, detail: str, code: str = "validation_failed") -> NoReturn:
    raise InvalidError(code, f"{pointer}: {detail}", [Fault(pointer, code, detail)])


def _times(body: wire.SendRequest, now_ms: int) -> tuple[int, int]:
    zone: ZoneInfo | None = None
    if body.timezone is not None:
        try:
            zone = ZoneInfo(body.timezone) if _ZONE.match(body.timezone) else None
        except (OSError, ValueError, KeyError):
            zone = None
        if zone is None:
            _refuse("/timezone", "not an IANA time zone such as Europe/Rome", "bad_time")
    start = _moment(body.scheduled_at, "/scheduled_at", zone)
    end = _moment(body.expires_at, "/expires_at", zone)
    for at, pointer in ((start, "/scheduled_at"), (end, "/expires_at")):
        if at and at < now_ms - _PAST_MS:
            _refuse(pointer, "more than 60 s in the past", "bad_time")
    if end and end <= max(start, now_ms):
        _refuse("/expires_at", "not after the start", "bad_time")
    return (start if start > now_ms else 0), end


def _moment(text: str | None, pointer: str, zone: ZoneInfo | None) -> int:
    """Return a time as ms since the epoch, 0 for none.

    In a zone's gap it moves forward and of two equal times the earlier counts: both are what
    `fold=0` means (PEP 495).
    """
    if text is None:
        return 0
    found = _TIME.match(text)
    if found is None:
        _refuse(pointer, "not RFC 3339, such as 2026-11-24T09:00:00Z", "bad_time")
    year, month, day, hour, minute = (int(part) for part in found.groups()[:5])
    offset = found[8]
    if offset is None and zone is None:
        _refuse(pointer, "needs an offset, or a timezone beside it", "bad_time")
    span = timedelta(0)
    if offset is not None and offset not in {"Z", "z"}:
        span = timedelta(hours=int(offset[1:3]), minutes=int(offset[4:6]))
    micros = int((found[7] or "").ljust(6, "0")[:6])
    try:
        tz = zone if offset is None else timezone(-span if offset[0] == "-" else span)
        at = datetime(year, month, day, hour, minute, int(found[6] or 0), micros, tz)
    except ValueError:
        at = None
    if at is None or not _YEARS[0] <= year <= _YEARS[1]:
        _refuse(pointer, "no such time, or outside the years 2000 to 2100", "bad_time")
    since = at.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(milliseconds=1)


async def _owner_of(body: wire.SendRequest, made: Resources, asker: Principal) -> str:
    given = body.user_id
    if given is None or given.lower() == asker.user_id:
        return asker.user_id
    if not _UUID.match(given.lower()):
        _refuse(
            "/userId",
            "not a user id: leave it out, or take it from GET /api/session",
        )
    if not asker.is_admin:
        raise DeniedError("user_mismatch", "You may send in your own name only.")
    if await made.archive.user(given.lower()) is None:
        _refuse("/userId", "there is no such user", "unknown_user")
    return given.lower()


async def take_recipients(body: wire.SendRequest, made: Resources) -> Taken:
    """Look at all rows, in slices with a yield between them.

    Raises:
        InvalidError: `invalid_recipients` when bad ones are to be refused, `empty_recipients`
            when none is left.
    """
    rows = body.recipients
    assert not isinstance(rows, msgspec.UnsetType)  # noqa: S101 - `check` came before
    taken = Taken(
        body.message,
        made.lengths,
        made.settings.phone_validation,
        body.default_region,
        is_filled=has_vars(rows),
    )
    for first in range(0, len(rows), SLICE):
        taken.take(rows[first : first + SLICE], first)
        await made.clock.sleep(0)
    if taken.invalid and body.on_invalid == "reject":
        raise InvalidError(
            "invalid_recipients",
            f"{taken.invalid} of {taken.submitted} recipients cannot be sent to; see errors.",
            taken.faults,
            taken.invalid,
        )
    if not taken.phones:
        raise InvalidError("empty_recipients", "No recipient is left.", taken.faults, taken.invalid)
    return taken


async def _sender_of(text: str | None, made: Resources) -> SenderRow:
    archive = made.archive
    row = await (archive.default_sender() if text is None else archive.sender_by_name_or_id(text))
    if row is None:
        detail = "there is no such sender" if text else "there is no default sender"
        _refuse("/sender", detail, "no_sender")
    if row.state == "paused" and not row.until_ms:
        _refuse("/sender", "this sender is paused until somebody resumes it", "no_sender")
    return row


class _Job(NamedTuple):
    """A job on its way into the stores."""

    spec: JobSpec
    groups: list[tuple[int, list[bytes]]]
    kept: list[bytes]
    body: wire.SendRequest
    sender: SenderRow
    intake: wire.Intake
    rate: float
    is_sandbox: bool

    @classmethod
    def of(
        cls,
        body: wire.SendRequest,
        made: Resources,
        owner: str,
        sender: SenderRow,
        taken: Taken,
        scheduled_ms: int,
        expires_ms: int,
        now_ms: int,
    ) -> _Job:
        """Put together what both stores are told."""
        settings = made.settings
        size = settings.bulk_batch_size
        chunks = taken.chunks(size)
        own = settings.default_rate if sender.rate is None else sender.rate
        rates = [rate for rate in (own, body.rate or 0.0) if rate]
        rate = min(rates, default=0.0)
        fewest, most = _STEP_CHUNKS
        wanted = math.ceil(own * _STEP_S / size) if own else most
        step = min(most, max(fewest, wanted)) * size
        spec = JobSpec(
            id=made.ids.job_id(sender.shard, now_ms),
            sender=sender.id,
            owner=owner,
            recipients=len(taken.phones),
            chunk_size=size,
            reserved=min(step, len(taken.phones)),
            step=step,
            message=wire.encode(body.message),
            vars=taken.vars,
            rate=body.rate or 0.0,
            weight=WEIGHTS[body.priority],
            scheduled_ms=scheduled_ms,
            expires_ms=expires_ms,
            on_unknown=body.on_unknown or settings.on_unknown,
            created_ms=now_ms,
        )
        intake = wire.Intake(
            taken.submitted,
            len(taken.phones),
            taken.duplicates,
            taken.invalid,
            taken.changed,
            taken.suspect,
            [wire.Row(f.pointer, f.row, f.code, f.detail) for f in taken.faults],
        )
        return cls(
            spec,
            _groups(chunks),
            taken.kept(size, chunks),
            body,
            sender,
            intake,
            rate,
            settings.is_sandbox,
        )

    def answer(self, wait: wire.Wait | None) -> wire.Submitted:
        """Return the body of the 202."""
        spec, rate = self.spec, self.rate
        return wire.Submitted(
            job_id=spec.id,
            state="scheduled" if spec.scheduled_ms else "queued",
            wait=wait,
            user_id=spec.owner,
            campaign_id=self.body.campaign_id,
            intake=self.intake,
            estimate=wire.Estimate(rate or None, math.ceil(spec.recipients / rate) if rate else 0),
            parent=None,
            links=wire.links_of(spec.id),
            sandbox=self.is_sandbox,
        )

    def row(self, key: str | None, request_hash: bytes | None, response: bytes) -> NewJob:
        """Return the job's row, its recipients not packed yet."""
        spec, body = self.spec, self.body
        message = body.message
        template = message.template if isinstance(message, TemplateMessage) else None
        return NewJob(
            id=spec.id,
            owner=spec.owner,
            campaign_id=body.campaign_id,
            name=body.name,
            kind=kind_of(message),
            template_name=template.name if template else None,
            template_language=template.language_code if template else None,
            sender_id=spec.sender,
            sender_name=self.sender.name,
            message=spec.message,
            vars=spec.vars,
            chunk_size=spec.chunk_size,
            recipients=spec.recipients,
            blob=b"",
            intake=wire.encode(self.intake),
            rate=spec.rate,
            weight=spec.weight,
            priority=body.priority,
            scheduled_ms=spec.scheduled_ms,
            expires_ms=spec.expires_ms,
            on_unknown=spec.on_unknown,
            reserved=spec.reserved,
            step=spec.step,
            born="",
            created_ms=spec.created_ms,
            idempotency_key=key,
            idempotency_route=ROUTE if key is not None else None,
            request_hash=request_hash,
            response=response if key is not None else None,
            sandbox=self.is_sandbox,
        )


def _groups(chunks: list[bytes]) -> list[tuple[int, list[bytes]]]:
    """Return the chunks in groups that fit a `stage` call, each with its first number."""
    groups: list[tuple[int, list[bytes]]] = []
    size = _STAGE_BYTES
    for number, chunk in enumerate(chunks):
        if size + len(chunk) > _STAGE_BYTES:
            groups.append((number, []))
            size = 0
        groups[-1][1].append(chunk)
        size += len(chunk)
    return groups


async def _store(made: Resources, job: _Job, new: NewJob) -> wire.Wait | None:
    """Commit the row while the chunks are staged, then make Redis know the job.

    Returns:
        None, or wait `storage` when PostgreSQL has the job and nobody knows whether Redis does.

    Raises:
        QueueError: Redis refused; the row is gone again.
        ArchiveError: PostgreSQL refused or was lost.
        ConflictError: another request with this idempotency key was first.
    """
    shard = keys.shard_of(new.id)
    try:
        async with asyncio.timeout(_REDIS_S):
            made.born[shard] = await made.queue.born(shard)
    except TimeoutError:
        pass  # the last known one is the safe guess: at worst more is `unknown` after a wipe
    except QueueError as error:
        if error.refused:
            raise
    blob = await asyncio.to_thread(pack_blob, job.kept)
    new = msgspec.structs.replace(new, blob=blob, born=made.born.get(shard, ""))
    row = asyncio.create_task(made.archive.add_job(new))
    trouble = await _try(lambda: _stage(made, job, 0))
    try:
        await row
    except ArchiveError:
        # The answer may be what was lost, and a row nobody was told of would be sent.
        await _drop(made, new.id)
        raise
    if trouble is None:
        trouble = await _try(lambda: _make_known(made, job))
    if trouble is None:
        return None
    if trouble.refused and await _drop(made, new.id):
        raise trouble
    return wire.Wait("storage", "accepted and kept; it will be sent when the queue is back")


async def _try(act: Callable[[], Awaitable[None]]) -> QueueError | None:
    try:
        async with asyncio.timeout(_REDIS_S):
            await act()
    except TimeoutError:
        return QueueError("Redis does not answer", refused=False)
    except QueueError as error:
        return error
    return None


async def _stage(made: Resources, job: _Job, first: int) -> None:
    for number, group in job.groups:
        if number + len(group) > first:
            await made.queue.stage(job.spec.id, number, group)


async def _make_known(made: Resources, job: _Job) -> None:
    result = await made.queue.submit(job.spec)
    if result.kind == "missing":
        await _stage(made, job, result.first_missing)
        await made.queue.submit(job.spec)


async def _drop(made: Resources, job_id: str) -> bool:
    try:
        await made.archive.drop_job(job_id)
    except ArchiveError:
        return False
    return True


async def _note(
    request: web.Request,
    made: Resources,
    asker: Principal,
    action: str,
    job_id: str,
    result: str,
    reason: str = "",
) -> None:
    """Write to the audit log; the address as a keyed hash."""
    secret = _secret(made)
    address = address_of(request, made.settings)
    mark = hmac.new(secret, address.encode(), hashlib.sha256).hexdigest()[:8]
    await made.archive.audit(
        asker.user_id,
        action,
        job_id,
        result,
        reason=reason,
        request_id=request[REQUEST_ID],
        address=f"a_{mark}",
    )


async def _note_done(
    request: web.Request,
    made: Resources,
    asker: Principal,
    action: str,
    job_id: str,
    result: str,
    reason: str = "",
) -> None:
    """Write what has happened; a note that is lost must not make the answer say it has not."""
    try:
        await _note(request, made, asker, action, job_id, result, reason)
    except ArchiveError as error:
        _log.warning("audit.lost", action=action, jobId=job_id, error=str(error))


def _secret(made: Resources) -> bytes:
    return made.settings.bulk_secret_key[0].reveal().encode()


# -- show and list ---------------------------------------------------------------------------


def _id_of(request: web.Request, made: Resources) -> str:
    job_id = request.match_info["job_id"]
    if not ids.is_job_id(job_id):
        raise NotFoundError
    try:
        shard = keys.shard_of(job_id)
    except ValueError as error:
        raise NotFoundError from error
    if shard >= made.queue.shards:
        raise NotFoundError
    return job_id


async def _visible(made: Resources, asker: Principal, job_id: str) -> JobRow:
    row = await made.archive.job(job_id, asker.owner)
    if row is None:
        raise NotFoundError
    return row


async def statuses_of(made: Resources, rows: list[JobRow]) -> list[JobStatus | None]:
    """Return what Redis knows of jobs; nothing while it is away: PostgreSQL still answers."""
    try:
        async with asyncio.timeout(_REDIS_S):
            return await made.queue.statuses([row.id for row in rows])
    except (QueueError, TimeoutError):
        return [None] * len(rows)


def job_of(row: JobRow, status: JobStatus | None, now_ms: int) -> wire.Job:
    """Return a job as its owner sees it, from Redis where it is newer, else from PostgreSQL."""
    done = row.sent + row.failed + row.skipped + row.cancelled + row.unknown
    # The end may be logged before a dead log writer's last rows are taken over.
    if status is None or (row.state in FINAL_STATES and done == row.recipients):
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
        sandbox=row.sandbox,
    )


def _progress_of_row(row: JobRow) -> wire.Progress:
    done = row.sent + row.failed + row.skipped + row.cancelled + row.unknown
    return wire.Progress(
        total=row.recipients,
        queued=row.recipients - done,
        sent=row.sent,
        failed=row.failed,
        skipped=row.skipped,
        cancelled=row.cancelled,
        unknown=row.unknown,
        done=done,
        delivered=row.delivered,
        read=row.read,
        undelivered=row.undelivered,
        eta_s=0 if done == row.recipients else None,
    )


def _wait_of_row(row: JobRow, now_ms: int) -> wire.Wait | None:
    if row.state in FINAL_STATES:
        return None
    if row.state == "accepted" and now_ms - row.created_ms < _STORAGE_AFTER_MS:
        return None
    return wire.Wait("storage", "the queue does not answer for this job now; nothing is lost")


async def show(request: web.Request) -> web.Response:
    """GET /api/bulk/jobs/{jobId}."""
    made, asker = resources(request), principal(request)
    job_id = _id_of(request, made)
    wanted = query_of(request, "expand").get("expand", "")
    expand = set(wanted.split(",")) if wanted else set()
    if not expand <= {"errors", "timeline"}:
        _refuse("", "expand takes errors and timeline", "unknown_parameter")
    row = await _visible(made, asker, job_id)
    await _foreign(request, made, asker, row)
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
            rows = [_error_row(code, count) for code, count in sorted(counts.items())]
            job = msgspec.structs.replace(job, errors=rows)
    if "timeline" in expand:
        job = msgspec.structs.replace(job, timeline=_timeline(row))
    return _json(job)


def _error_row(code: int, count: int) -> wire.ErrorRow:
    found = row_of(code, 400)
    return wire.ErrorRow(str(code), count, found.meaning, found.action)


def _timeline(row: JobRow) -> list[wire.TimelineRow]:
    moments = (
        (row.finished_ms, row.state, row.by or None, row.reason or None),
        (row.started_ms, "started", None, None),
        (row.created_ms, "accepted", row.owner, None),
    )
    return [
        wire.TimelineRow(wire.time_text(at) or "", event, by, reason)
        for at, event, by, reason in moments
        if at
    ]


async def _foreign(request: web.Request, made: Resources, asker: Principal, row: JobRow) -> None:
    """Note that an admin looked at somebody else's job."""
    if row.owner != asker.user_id:
        await _note(request, made, asker, "job.read", row.id, "ok")


async def list_jobs(request: web.Request) -> web.Response:
    """GET /api/bulk/jobs: own jobs, an admin's everybody's, newest first."""
    made, asker = resources(request), principal(request)
    query = query_of(request, *_LIST)
    limit = _limit_of(query.get("limit", "20"))
    what = _filter_of(query, asker)
    scope = wire.canonical([asker.user_id, what])
    before = _before_of(query["cursor"], scope, made) if "cursor" in query else 0
    rows = await made.archive.jobs(msgspec.structs.replace(what, before=before, limit=limit + 1))
    has_more, rows = len(rows) > limit, rows[:limit]
    now_ms, statuses = made.clock.now_ms(), await statuses_of(made, rows)
    jobs = [job_of(row, status, now_ms) for row, status in zip(rows, statuses, strict=True)]
    cursor = _cursor(rows[-1].number, scope, made) if has_more else None
    return _json(wire.JobList(jobs, has_more, cursor))


def _limit_of(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= 100):  # noqa: PLR2004
        _refuse("", "limit is 1 to 100")
    return int(text)


def _filter_of(query: dict[str, str], asker: Principal) -> JobFilter:
    states = query["state"].split(",") if "state" in query else None
    if states is not None and (len(states) > len(JOB_STATES) or not set(states) <= set(JOB_STATES)):
        _refuse("", f"state takes a comma list of {', '.join(JOB_STATES)}", "bad_filter")
    if states is not None and "queued" in states:
        states.append("accepted")
    owner = asker.owner
    if "userId" in query:
        wanted = query["userId"].lower()
        if not _UUID.match(wanted):
            _refuse("", "userId is not a user id", "bad_filter")
        if owner is not None and wanted != owner:
            raise DeniedError("user_mismatch", "You may list your own jobs only.")
        owner = wanted
    for name, most in (("sender", 64), ("campaignId", 128), ("q", 200)):
        if len(query.get(name, "")) > most or "\0" in query.get(name, ""):
            _refuse("", f"{name} is at most {most} characters", "bad_filter")
    return JobFilter(
        owner=owner,
        states=states,
        sender=query.get("sender"),
        campaign_id=query.get("campaignId"),
        q=query.get("q") or None,
        from_ms=_moment(query.get("from"), "", None),
        to_ms=_moment(query.get("to"), "", None),
    )


def _cursor(number: int, scope: bytes, made: Resources) -> str:
    packed = number.to_bytes(8, "big")
    mac = hmac.new(_secret(made), b"cursor\0" + packed + scope, hashlib.sha256).digest()
    return urlsafe_b64encode(packed + mac[:_CURSOR_MAC]).rstrip(b"=").decode()


def _before_of(text: str, scope: bytes, made: Resources) -> int:
    """Return the number behind a cursor of this user and this filter.

    Raises:
        InvalidError: any other cursor.
    """
    number = 0
    try:
        packed = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        number = int.from_bytes(packed[:8], "big")
    except (ValueError, UnicodeEncodeError):
        packed = b""
    if not 0 < number < 1 << 63 or not hmac.compare_digest(
        _cursor(number, scope, made).encode(), text.encode("utf-8", "replace")
    ):
        _refuse("", "not a cursor of this list", "bad_cursor")
    return number


def _json(body: object) -> web.Response:
    return web.Response(body=wire.encode(body), content_type="application/json")


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
    job_id = _id_of(request, made)
    key_of(request)  # its form is checked; the table of states makes these safe to repeat
    query_of(request)
    reason = await _reason_of(request, made)
    row = await _visible(made, asker, job_id)
    if row.state in FINAL_STATES:
        if (action, row.state) != ("cancel", "cancelled"):
            raise _conflict(action, row.state)
        return _json(job_of(row, None, made.clock.now_ms()))
    await _note(request, made, asker, f"job.{action}", job_id, "asked", reason)
    try:
        result = await made.queue.control(job_id, action, by=asker.user_id, reason=reason)
    except QueueError:
        await _note_done(request, made, asker, f"job.{action}", job_id, "failed", reason)
        raise
    is_done = result.kind in {"ok", "same"}
    await _note_done(
        request, made, asker, f"job.{action}", job_id, "ok" if is_done else "failed", reason
    )
    if result.kind == "gone":
        raise UnavailableError(
            "storage_unavailable", "The queue does not know this job yet; ask again.", 5
        )
    if not is_done or (action == "resume" and result.kind == "same"):
        raise _conflict(action, result.state)
    _log.info(f"job.{action}", jobId=job_id, userId=asker.user_id, state=result.state)
    fresh = await _visible(made, asker, job_id)
    status = (await statuses_of(made, [fresh]))[0]
    return _json(job_of(fresh, status, made.clock.now_ms()))


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
