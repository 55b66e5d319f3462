"""A job on its way into both stores: committed with every recipient, or not at all."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import msgspec

from api import wire
from api.resources import Resources
from api.roster import People
from shared import keys
from shared.archive import NewJob, SenderRow, pack_blob
from shared.errors import ArchiveError, QueueError
from shared.message import Message, TemplateMessage, kind_of
from shared.models import JobSpec

WEIGHTS: Final = {"low": 1, "normal": 4, "high": 16}
REDIS_S: Final = 2.0  # design, Submit: 3 tries in 2 s, then nobody can know
_STAGE_BYTES: Final = 900_000  # a stage call takes 1 MB
_STEP_S: Final = 30
_STEP_CHUNKS: Final = (2, 200)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asked for, whichever way: all of a job but its recipients.

    Attributes:
        message: placeholders unfilled.
        rate: messages per second; 0 = no ceiling of its own.
        scheduled_ms, expires_ms: epoch; 0 = at once, never.
        parent: the job that the recipients come from.
        is_retry: its message is the parent's.
        category: of its template, by the list of now; None = not known, or it has none.
    """

    message: Message
    campaign_id: str | None
    name: str | None
    rate: float
    priority: str
    on_unknown: str
    metadata: dict[str, str] = {}
    scheduled_ms: int = 0
    expires_ms: int = 0
    parent: str | None = None
    is_retry: bool = False
    category: str | None = None


class Draft(NamedTuple):
    """What both stores are told."""

    spec: JobSpec
    groups: list[tuple[int, list[bytes]]]
    kept: list[bytes]
    wanted: Wanted
    sender: SenderRow
    intake: wire.Intake
    rate: float
    is_sandbox: bool

    @classmethod
    def of(
        cls,
        wanted: Wanted,
        made: Resources,
        owner: str,
        sender: SenderRow,
        people: People,
        intake: wire.Intake,
        now_ms: int,
    ) -> Draft:
        """Put a job together."""
        settings = made.settings
        size = settings.bulk_batch_size
        chunks = people.chunks(size)
        own = settings.default_rate if sender.rate is None else sender.rate
        rates = [rate for rate in (own, wanted.rate) if rate]
        fewest, most = _STEP_CHUNKS
        step = min(most, max(fewest, math.ceil(own * _STEP_S / size) if own else most)) * size
        spec = JobSpec(
            id=made.ids.job_id(sender.shard, now_ms),
            sender=sender.id,
            owner=owner,
            recipients=len(people.phones),
            chunk_size=size,
            reserved=min(step, len(people.phones)),
            step=step,
            message=wire.encode(wanted.message),
            vars=people.vars,
            rate=wanted.rate,
            weight=WEIGHTS[wanted.priority],
            scheduled_ms=wanted.scheduled_ms,
            expires_ms=wanted.expires_ms,
            on_unknown=wanted.on_unknown,
            created_ms=now_ms,
            category=wanted.category or "",
        )
        rate = min(rates, default=0.0)
        kept = people.kept(size, chunks)
        return cls(spec, _groups(chunks), kept, wanted, sender, intake, rate, settings.is_sandbox)

    def answer(self) -> wire.Submitted:
        """Return the body of the 202."""
        spec = self.spec
        return wire.Submitted(
            job_id=spec.id,
            state="scheduled" if spec.scheduled_ms else "queued",
            wait=None,
            user_id=spec.owner,
            campaign_id=self.wanted.campaign_id,
            intake=self.intake,
            estimate=estimate_of(spec.recipients, self.rate),
            parent=self.wanted.parent,
            links=wire.links_of(spec.id),
            sandbox=self.is_sandbox,
        )

    def row(
        self, route: str, key: str | None, request_hash: bytes | None, response: bytes
    ) -> NewJob:
        """Return the job's row, its recipients not packed yet."""
        spec, wanted = self.spec, self.wanted
        message = wanted.message
        template = message.template if isinstance(message, TemplateMessage) else None
        return NewJob(
            id=spec.id,
            owner=spec.owner,
            campaign_id=wanted.campaign_id,
            name=wanted.name,
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
            priority=wanted.priority,
            scheduled_ms=spec.scheduled_ms,
            expires_ms=spec.expires_ms,
            on_unknown=spec.on_unknown,
            reserved=spec.reserved,
            step=spec.step,
            born="",
            created_ms=spec.created_ms,
            idempotency_key=key,
            idempotency_route=route if key is not None else None,
            request_hash=request_hash,
            response=response if key is not None else None,
            parent=wanted.parent,
            sandbox=self.is_sandbox,
            metadata=wire.canonical(wanted.metadata).decode(),
            is_retry=wanted.is_retry,
            template_category=wanted.category,
        )


def estimate_of(recipients: int, rate: float) -> wire.Estimate:
    """Return how long so many take at a rate, messages per second, 0 = no limit."""
    return wire.Estimate(rate or None, math.ceil(recipients / rate) if rate else 0)


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


async def store(
    made: Resources, draft: Draft, new: NewJob, add: Callable[[NewJob], Awaitable[None]]
) -> wire.Wait | None:
    """Commit the row while the chunks are staged, then make Redis know the job.

    Args:
        made: the doors.
        draft: what Redis is told.
        new: what PostgreSQL is told, its recipients not packed yet.
        add: commits the row.

    Returns:
        None, or wait `storage` when PostgreSQL has the job and nobody knows whether Redis does.

    Raises:
        QueueError: Redis refused; the row is gone again.
        ArchiveError: PostgreSQL refused or was lost.
        ConflictError: `add` found that another request was first.
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
    blob = await asyncio.to_thread(pack_blob, draft.kept)
    new = msgspec.structs.replace(new, blob=blob, born=made.born.get(shard, ""))
    row = asyncio.ensure_future(add(new))
    trouble = await _try(lambda: _stage(made, draft, 0))
    try:
        await row
    except ArchiveError:
        # The answer may be what was lost, and a row nobody was told of would be sent.
        await _drop(made, new.id)
        raise
    if trouble is None:
        trouble = await _try(lambda: _make_known(made, draft))
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


async def _stage(made: Resources, draft: Draft, first: int) -> None:
    for number, group in draft.groups:
        if number + len(group) > first:
            await made.queue.stage(draft.spec.id, number, group)


async def _make_known(made: Resources, draft: Draft) -> None:
    result = await made.queue.submit(draft.spec)
    if result.kind == "missing":
        await _stage(made, draft, result.first_missing)
        await made.queue.submit(draft.spec)


async def _drop(made: Resources, job_id: str) -> bool:
    try:
        await made.archive.drop_job(job_id)
    except ArchiveError:
        return False
    return True
