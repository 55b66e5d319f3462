"""POST /api/bulk/send: a job and all its recipients, or nothing."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import msgspec
from aiohttp import web

from api import wire
from api.audit import note_done
from api.auth import Principal, principal
from api.guard import address_of, body_of
from api.idempotency import answer_of, hash_of, key_of, replay
from api.intake import SLICE, Taken, has_vars
from api.resources import Resources, resources
from api.router import HEADERS
from api.sessions import Quota, QuotaError
from api.times import span_of
from api.wire import refuse
from shared import keys, logs
from shared.archive import NewJob, SenderRow, pack_blob
from shared.errors import (
    ArchiveError,
    ConflictError,
    DeniedError,
    Fault,
    InvalidError,
    QueueError,
    TooManyError,
    UnavailableError,
)
from shared.ids import is_user_id
from shared.message import TemplateMessage, kind_of, parse_message
from shared.models import JobSpec
from shared.phone import regions

ROUTE: Final = "POST /api/bulk/send"
WEIGHTS: Final = {"low": 1, "normal": 4, "high": 16}
REDIS_S: Final = 2.0  # design, Submit: 3 tries in 2 s, then nobody can know
_TURN_S: Final = 5.0
_STAGE_BYTES: Final = 900_000  # a stage call takes 1 MB
_STEP_S: Final = 30
_STEP_CHUNKS: Final = (2, 200)
_CAMPAIGN: Final = re.compile(r"\A[A-Za-z0-9._:-]{1,128}\Z")
_log: Final = logs.get("api.jobs")


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
        async with asyncio.timeout(REDIS_S):
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
        async with asyncio.timeout(REDIS_S):
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
    await note_done(request, made, asker, "job.submit", job.spec.id, "ok")
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
        refuse("/campaignId", "at most 128 of A-Z a-z 0-9 . _ : -")
    if body.default_region is not None and body.default_region not in regions():
        refuse("/default_region", "not an ISO 3166 region such as DE")
    if isinstance(body.recipients, msgspec.UnsetType):
        refuse("/recipients", "This field is required.")
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
    return span_of(body, now_ms)


async def _owner_of(body: wire.SendRequest, made: Resources, asker: Principal) -> str:
    given = body.user_id
    if given is None or given.lower() == asker.user_id:
        return asker.user_id
    if not is_user_id(given.lower()):
        refuse(
            "/userId",
            "not a user id: leave it out, or take it from GET /api/session",
        )
    if not asker.is_admin:
        raise DeniedError("user_mismatch", "You may send in your own name only.")
    if await made.archive.user(given.lower()) is None:
        refuse("/userId", "there is no such user", "unknown_user")
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
        refuse("/sender", detail, "no_sender")
    if row.state == "paused" and not row.until_ms:
        refuse("/sender", "this sender is paused until somebody resumes it", "no_sender")
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
        async with asyncio.timeout(REDIS_S):
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
        async with asyncio.timeout(REDIS_S):
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
