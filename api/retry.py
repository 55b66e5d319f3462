"""Retry a job: a child with the parent's message for those of its recipients that may have it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from aiohttp import web
from msgspec import Meta

from api import auth, wire
from api.audit import act_of, line_of, note_done
from api.auth import Principal, principal
from api.draft import Draft, Wanted, store
from api.guard import SMALL_BODY, body_of, check_length
from api.idempotency import answer_of, hash_of, key_of, replay
from api.jobs import settled_state
from api.owned import id_of, visible
from api.recipients import WINDOW
from api.resources import Resources, resources
from api.roster import People, Roster
from api.router import Route, query_of
from api.submit import sender_of, turn_of
from api.templates import known_of
from api.wire import refuse
from shared import logs
from shared.archive import JobRow, unpack_blob
from shared.errors import ConflictError, Fault, InvalidError, QueueError
from shared.graph_codes import FIRST_REASON, ROWS, CodeRow
from shared.graph_codes import row_of as code_row
from shared.lineage import FAMILY_MAX, Kin
from shared.message import message_of
from shared.models import FINAL_STATES, Reason
from shared.results import RecipientFilter, ResultRow

_CODES_MAX: Final = 20
_REFUSED: Final = 400
_REASONS: Final = {int(reason): reason.name.lower() for reason in Reason}
# Why recipients are left out, beside codes of Graph.
IN_RETRY: Final = "in_retry"
SENT_BY_RETRY: Final = "sent_by_retry"
UNKNOWN_IN_RETRY: Final = "unknown_in_retry"
ERASED: Final = "erased"
_log: Final = logs.get("api.jobs")


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST …/retry`."""

    scope: Literal["failed", "skipped", "cancelled", "unknown"] = "failed"
    codes: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=32)]], Meta(max_length=_CODES_MAX)
    ] = []
    older_than_s: Annotated[int, Meta(ge=0, le=31_536_000)] = 0
    confirm_duplicates: bool = False


class Excluded(msgspec.Struct, frozen=True):
    """Recipients that a retry leaves out.

    Attributes:
        code: Graph's, or `in_retry` (an unfinished one has them), `sent_by_retry`,
            `unknown_in_retry`, `erased` (nobody knows the number any more).
        not_before: when a retry takes all of them; None = never, or not yet known.
    """

    code: str
    count: int
    not_before: str | None


class Retried(
    wire.Submitted,
    frozen=True,
    rename={"job_id": "jobId", "user_id": "userId", "campaign_id": "campaignId"},
):
    """The 202 of a retry."""

    excluded: list[Excluded] = msgspec.field(default_factory=list)


class Verdict(NamedTuple):
    """Why a recipient is left out; `not_before_ms` 0 = nobody can say."""

    code: str
    not_before_ms: int = 0


def rule_of(row: ResultRow) -> CodeRow | None:
    """Return the row of the error table that ended a recipient; None where none did."""
    if row.code is not None:
        return code_row(row.code, _REFUSED)
    place = row.reason - FIRST_REASON
    return ROWS[place] if 0 <= place < len(ROWS) else None


def is_named(row: ResultRow, codes: list[str]) -> bool:
    """Tell whether a recipient ended with one of these codes or reasons; no codes = any."""
    word = str(row.code) if row.code is not None else _REASONS.get(row.reason, "")
    return not codes or word in codes


def verdict_of(row: ResultRow, now_ms: int) -> Verdict | None:
    """Return why a failed recipient may not have the message again; None when he may."""
    rule = rule_of(row)
    if rule is None or rule.resend in {"yes", "fix"}:
        return None
    due_ms = row.at_ms + rule.hold_s * 1000
    if rule.resend == "after" and due_ms <= now_ms:
        return None
    word = str(row.code if row.code is not None else rule.code)
    return Verdict(word, due_ms if rule.resend == "after" else 0)


class Tally:
    """Who is left out, by code."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._found: dict[str, tuple[int, int]] = {}

    def add(self, verdict: Verdict) -> None:
        """Count one; of times the latest."""
        count, until_ms = self._found.get(verdict.code, (0, 0))
        self._found[verdict.code] = (count + 1, max(until_ms, verdict.not_before_ms))

    def rows(self) -> list[Excluded]:
        """Return the counts, most first."""
        found = sorted(self._found.items(), key=lambda item: (-item[1][0], item[0]))
        return [Excluded(code, count, wire.time_text(until)) for code, (count, until) in found]


async def retry(request: web.Request) -> web.Response:
    """POST /api/bulk/jobs/{jobId}/retry: a child job, or nothing."""
    made, asker = resources(request), principal(request)
    job_id = id_of(request, made)
    check_length(request, SMALL_BODY)
    await made.switch.require_on()
    key = key_of(request)
    raw = await body_of(request, SMALL_BODY, made.settings.body_timeout_s)
    query_of(request)
    body = wire.decode(raw, Retry)
    wire.refuse_controls({"codes": body.codes})
    if body.scope == "unknown" and not body.confirm_duplicates:
        refuse("/confirm_duplicates", "true is needed: these may have the message already")
    row = await visible(made, asker, job_id)
    async with turn_of(made, asker.user_id):
        return await _retry(request, made, asker, row, body, key)


async def _retry(
    request: web.Request,
    made: Resources,
    asker: Principal,
    row: JobRow,
    body: Retry,
    key: str | None,
) -> web.Response:
    route = f"POST /api/bulk/jobs/{row.id}/retry"
    request_hash = hash_of(body) if key is not None else None
    again = await replay(made, row.owner, route, key, request_hash or b"")
    if again is not None:
        return again
    state = await settled_state(made, row)
    if state not in FINAL_STATES:
        raise ConflictError("state_conflict", f"A job that is {state} takes no retry.", state)
    now_ms = made.clock.now_ms()
    sender = await sender_of(row.sender_id, made)
    family = await made.lineage.family(row.id)
    if len(family) >= FAMILY_MAX:
        raise ConflictError("state_conflict", "There are too many retries of these.", row.state)
    chosen = await _choose(made, row, body, await _marks(made, row, family, body), now_ms)
    if not chosen.people.phones:
        raise _nobody(chosen.excluded)
    count = len(chosen.people.phones)
    message = message_of(row.message)
    known = await known_of(made, sender, message)
    wanted = Wanted(
        message=message,
        campaign_id=row.campaign_id,
        name=row.name,
        rate=row.rate,
        priority=row.priority,
        on_unknown=row.on_unknown,
        metadata=msgspec.json.decode(row.metadata, type=dict[str, str]),
        parent=row.id,
        is_retry=True,
        # What the parent was is the next best guess.
        category=(known.category if known is not None else None) or row.template_category,
    )
    intake = wire.Intake(submitted=count, accepted=count)
    draft = Draft.of(wanted, made, row.owner, sender, chosen.people, intake, now_ms)
    answer = Retried(**msgspec.structs.asdict(draft.answer()), excluded=chosen.excluded)
    new = draft.row(route, key, request_hash, wire.encode(answer))
    line = line_of(act_of(request, asker, "job.retry", row.id, new.id))
    try:
        wait = await store(made, draft, new, lambda job: made.lineage.add_child(job, family, line))
    except QueueError:
        await note_done(request, made, asker, "job.retry", row.id, "failed", new.id)
        raise
    except ConflictError:
        first = await made.archive.idempotent(row.owner, route, key) if key is not None else None
        if first is None:
            raise
        return answer_of(first, request_hash or b"")
    if wait is not None:
        answer = msgspec.structs.replace(answer, wait=wait)
    made.metrics.jobs_submitted_total.labels(new.kind, "api").inc()
    _log.info("job.accepted", jobId=new.id, userId=row.owner, recipients=count, parent=row.id)
    return web.Response(
        status=202,
        body=wire.encode(answer),
        content_type="application/json",
        headers={"Location": answer.links.self},
    )


def _nobody(excluded: list[Excluded]) -> InvalidError:
    faults = [
        Fault(
            "/scope",
            "empty_recipients",
            f"{row.count} left out: {row.code}"
            + (f", not before {row.not_before}" if row.not_before else ""),
        )
        for row in excluded
    ]
    none = [Fault("/scope", "empty_recipients", "nobody ended so")]
    return InvalidError("empty_recipients", "Nobody is left to retry.", faults or none)


async def _marks(
    made: Resources, row: JobRow, family: list[Kin], body: Retry
) -> dict[int, Verdict]:
    """Return which positions of the job another retry has taken care of, or may have.

    A person is known through a family by the position in its root: later jobs of the family that
    hold the same root position speak of the same person.
    """
    roots: dict[str, dict[int, int]] = {}
    marks: dict[int, Verdict] = {}
    for kin in family[1:]:
        above = roots.get(kin.parent or "")
        mine: dict[int, int] = {}
        async with made.results.snapshot(kin.id, row.owner) as snapshot:
            if snapshot is None:
                continue
            roster = Roster(
                await asyncio.to_thread(unpack_blob, snapshot.blob), snapshot.chunk_size
            )
            for first in range(0, snapshot.recipients, WINDOW):
                last = min(first + WINDOW, snapshot.recipients) - 1
                for found in await snapshot.window(first, last, RecipientFilter(), WINDOW):
                    origin = roster.at(found.position).origin
                    root = origin if above is None else above.get(origin, -1)
                    mine[found.position] = root
                    mark = _mark_of(kin, found, body)
                    if kin.number > row.number and mark is not None:
                        marks[root] = mark
        roots[kin.id] = mine
    if row.id not in roots:
        return marks
    return {at: marks[root] for at, root in roots[row.id].items() if root in marks}


def _mark_of(kin: Kin, found: ResultRow, body: Retry) -> Verdict | None:
    if kin.state not in FINAL_STATES or found.outcome is None:
        return Verdict(IN_RETRY)
    if found.outcome == "sent":
        return Verdict(SENT_BY_RETRY)
    if found.outcome == "unknown" and not body.confirm_duplicates:
        return Verdict(UNKNOWN_IN_RETRY)
    return None


class _Chosen(NamedTuple):
    people: People
    excluded: list[Excluded]


async def _choose(
    made: Resources, row: JobRow, body: Retry, marks: dict[int, Verdict], now_ms: int
) -> _Chosen:
    """Return who gets the message again and who is left out, in one snapshot of the job."""
    people, tally = People(list(row.vars)), Tally()
    before_ms = now_ms - body.older_than_s * 1000 if body.older_than_s else 0
    what = RecipientFilter(outcomes=[body.scope], before_ms=before_ms)
    async with made.results.snapshot(row.id, row.owner) as snapshot:
        if snapshot is None:
            return _Chosen(people, [])
        roster = Roster(await asyncio.to_thread(unpack_blob, snapshot.blob), snapshot.chunk_size)
        for first in range(0, snapshot.recipients, WINDOW):
            last = min(first + WINDOW, snapshot.recipients) - 1
            for found in await snapshot.window(first, last, what, WINDOW):
                if not is_named(found, body.codes):
                    continue
                person = roster.at(found.position)
                verdict = marks.get(found.position) if person.phone else Verdict(ERASED)
                if verdict is None and body.scope == "failed":
                    verdict = verdict_of(found, now_ms)
                if verdict is not None:
                    tally.add(verdict)
                    continue
                people.phones.append(person.phone)
                people.refs.append(person.ref)
                people.origins.append(found.position)
                if person.values is not None:
                    people.values.append(person.values)
    return _Chosen(people, tally.rows())


ROUTES: Final = (
    Route(
        "POST", "/api/bulk/jobs/{job_id}/retry", retry, auth.SEND, "control", has_body=True
    ),
)  # fmt: skip
