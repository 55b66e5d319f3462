"""POST /api/bulk/send: a job and all its recipients, or nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from aiohttp import web

from api import wire
from api.audit import act_of, line_of, note_done
from api.auth import Principal, principal
from api.draft import REDIS_S, Draft, Wanted, store
from api.guard import address_of, body_of, check_length
from api.idempotency import answer_of, hash_of, key_of, replay
from api.intake import Taken
from api.resources import Resources, resources
from api.router import HEADERS, query_of
from api.sessions import Quota, QuotaError, policy_header
from api.sources import Source, check_source, source_of
from api.templates import Known, known_of, require_fit, wholes_of
from api.times import span_of
from api.wire import refuse
from shared import logs
from shared.archive import SenderRow
from shared.errors import (
    ArchiveError,
    ConflictError,
    DeniedError,
    InvalidError,
    QueueError,
    TooManyError,
    UnavailableError,
)
from shared.ids import is_user_id
from shared.message import Message, parse_message
from shared.phone import regions

ROUTE: Final = "POST /api/bulk/send"
METADATA_MAX: Final = 20
_VALUE_MAX: Final = 500
_TURN_S: Final = 5.0
_LABEL: Final = re.compile(r"\A[A-Za-z0-9._-]{1,40}\Z")
_CAMPAIGN: Final = re.compile(r"\A[A-Za-z0-9._:-]{1,128}\Z")
_log: Final = logs.get("api.jobs")


async def send(request: web.Request) -> web.Response:
    """POST /api/bulk/send: accept a job and all its recipients, or nothing."""
    made, asker = resources(request), principal(request)
    refused = made.metrics.submissions_refused_total
    # Before all that may refuse it: every answer says what is left.
    quota = await _take(request, made, asker)
    try:
        check_length(request, made.settings.body_max_bytes)
        await made.switch.require_on()
        key = key_of(request)
        query_of(request)
        response = await _in_turn(request, made, asker, key, quota)
    except BaseException as error:
        await _give_back(request, made, quota)
        if isinstance(error, QuotaError):
            refused.labels("quota").inc()
        elif isinstance(error, UnavailableError) and error.word == "bulk_disabled":
            refused.labels("disabled").inc()
        elif isinstance(error, QueueError | ArchiveError):
            refused.labels("storage").inc()
        elif isinstance(error, InvalidError):
            refused.labels("invalid").inc()
        raise
    if "Idempotent-Replayed" in response.headers:
        refused.labels("replay").inc()
        await _give_back(request, made, quota)
    return response


def policies_of(request: web.Request, made: Resources) -> dict[str, str]:
    """Return the header that names the quotas, for whoever is refused before they are asked."""
    return policy_header(made.visitors.policies(address_of(request, made.settings), ""))


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


async def _give_back(request: web.Request, made: Resources, quota: Quota) -> None:
    try:
        async with asyncio.timeout(REDIS_S):
            await made.visitors.give_back(quota)
    except (QueueError, TimeoutError):
        # One place is lost for an hour; the refusal itself must still be answered.
        _log.warning("quota.lost")
        return
    request[HEADERS].update(quota.given_back().headers())


async def _in_turn(
    request: web.Request, made: Resources, asker: Principal, key: str | None, quota: Quota
) -> web.Response:
    """Decode one submission a user at a time: bodies of 8 MiB are not piled up."""
    async with turn_of(made, asker.user_id):
        return await _submit(request, made, asker, key, quota)


@asynccontextmanager
async def turn_of(made: Resources, user_id: str) -> AsyncGenerator[None]:
    """Be the only submission of a user that is worked on by this process.

    Raises:
        TooManyError: another one takes more than five seconds.
    """
    turn = made.turns.setdefault(user_id, asyncio.Lock())
    try:
        async with asyncio.timeout(_TURN_S):
            await turn.acquire()
    except TimeoutError as error:
        raise TooManyError("rate_limited", "Another submission of yours is read now.", 1) from error
    try:
        yield
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
    again = await replay(made, _whose(body, asker), ROUTE, key, request_hash)
    if again is not None:
        return again
    if not quota.is_taken:
        raise QuotaError(quota)
    now_ms = made.clock.now_ms()
    scheduled_ms, expires_ms = check(body, made, now_ms)
    owner = await owner_of(body, made, asker)
    source = await source_of(body, made, asker)
    sender = await sender_of(body.sender, made)
    known = await known_of(made, sender, body.message)
    require_fit(known)
    taken = await take_recipients(body, made, source, sender, known)
    wanted = wanted_of(body, made, scheduled_ms, expires_ms, source.parent, known)
    draft = Draft.of(wanted, made, owner, sender, taken, intake_of(taken), now_ms)
    answer = draft.answer()
    new = draft.row(ROUTE, key, request_hash if key is not None else None, wire.encode(answer))
    line = line_of(act_of(request, asker, "job.submit", new.id))
    try:
        wait = await store(made, draft, new, lambda job: made.archive.add_job(job, line))
    except QueueError:
        # It was taken back, or never there.
        await note_done(request, made, asker, "job.submit", new.id, "failed")
        raise
    except ConflictError:
        # Another request with this key was first; its row carries the answer.
        row = await made.archive.idempotent(owner, ROUTE, key or "")
        if row is None:
            raise
        return answer_of(row, request_hash)
    if wait is not None:
        answer = msgspec.structs.replace(answer, wait=wait)
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
    check_source(body, made.settings.bulk_hard_cap)
    check_metadata(body.metadata)
    return span_of(body, now_ms)


def _whose(body: wire.SendRequest, asker: Principal) -> str:
    """Return whose row a key was kept in, before anything else of the body is looked at."""
    given = (body.user_id or "").lower()
    return given if asker.is_admin and is_user_id(given) else asker.user_id


async def owner_of(body: wire.SendRequest, made: Resources, asker: Principal) -> str:
    """Return whose job it is to be.

    Raises:
        DeniedError: another user's, and the asker is no admin.
        InvalidError: no user id, or there is no such user.
    """
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


async def take_recipients(
    body: wire.SendRequest,
    made: Resources,
    source: Source,
    sender: SenderRow,
    known: Known | None,
) -> Taken:
    """Look at all rows, in slices with a yield between them.

    Raises:
        InvalidError: `invalid_recipients` when bad ones are to be refused, `empty_recipients`
            when none is left.
    """
    taken = await take_all(body.message, made, source, sender, known)
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


async def take_all(
    message: Message,
    made: Resources,
    source: Source,
    sender: SenderRow | None,
    known: Known | None,
) -> Taken:
    """Look at all rows of a source, in slices with a yield between them."""
    taken = Taken(
        message,
        made.lengths,
        made.settings.phone_validation,
        source.region,
        allowed=frozenset(sender.allowed_regions if sender is not None else ()),
        is_filled=source.is_filled,
        wholes=wholes_of(message, known),
        at=source.at,
    )
    for first, rows in source.slices:
        taken.take(rows, first)
        await made.clock.sleep(0)
    if source.origins is not None:
        taken.origins = [source.origins[row] for row in taken.rows]
    return taken


def intake_of(taken: Taken) -> wire.Intake:
    """Return what became of the rows."""
    return wire.Intake(
        taken.submitted,
        len(taken.phones),
        taken.duplicates,
        taken.invalid,
        taken.changed,
        taken.suspect,
        [wire.Row(f.pointer, f.row, f.code, f.detail) for f in taken.faults],
    )


def wanted_of(
    body: wire.SendRequest,
    made: Resources,
    scheduled_ms: int,
    expires_ms: int,
    parent: str | None,
    known: Known | None,
) -> Wanted:
    """Return what the body asks for."""
    return Wanted(
        message=body.message,
        campaign_id=body.campaign_id,
        name=body.name,
        rate=body.rate or 0.0,
        priority=body.priority,
        on_unknown=body.on_unknown or made.settings.on_unknown,
        metadata=body.metadata,
        scheduled_ms=scheduled_ms,
        expires_ms=expires_ms,
        parent=parent,
        category=known.category if known is not None else None,
    )


def check_metadata(metadata: dict[str, str]) -> None:
    """Refuse what is no label.

    Raises:
        InvalidError: `validation_failed`, naming the pair.
    """
    if len(metadata) > METADATA_MAX:
        refuse("/metadata", f"at most {METADATA_MAX} pairs")
    for name, value in metadata.items():
        if not _LABEL.match(name):
            refuse("/metadata", "a name is 1 to 40 of A-Z a-z 0-9 . _ -")
        if len(value) > _VALUE_MAX:
            refuse(f"/metadata/{name}", f"more than {_VALUE_MAX} characters")


async def sender_of(text: str | None, made: Resources) -> SenderRow:
    """Return the sender of this name or id, or the default one.

    Raises:
        InvalidError: `no_sender`: there is none, or it is paused for good.
    """
    archive = made.archive
    row = await (archive.default_sender() if text is None else archive.sender_by_name_or_id(text))
    if row is None:
        detail = "there is no such sender" if text else "there is no default sender"
        refuse("/sender", detail, "no_sender")
    if row.state == "paused" and not row.until_ms:
        refuse("/sender", "this sender is paused until somebody resumes it", "no_sender")
    return row
