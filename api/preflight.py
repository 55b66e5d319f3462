"""What would become of a submission: the same checks, nothing stored, no quota used."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from api import auth, wire
from api.auth import Principal, principal
from api.draft import estimate_of
from api.guard import body_of
from api.idempotency import key_of
from api.intake import PROBLEMS_MAX, Taken
from api.owned import answer
from api.resources import Resources, resources
from api.router import Route, query_of
from api.sources import check_source, source_of
from api.submit import check, owner_of, sender_of, take_all, turn_of
from api.templates import Known, known_of
from shared.archive import SenderRow
from shared.definitions import is_marketing, missing_params, rendered
from shared.errors import InvalidError
from shared.message import Message, TemplateMessage, fill, slots

_PREVIEWS: Final = 3


class Rows(msgspec.Struct, frozen=True):
    """What would become of the rows; `suppressed` are valid ones that would be skipped now."""

    total: int = 0
    valid: int = 0
    invalid: int = 0
    duplicates: int = 0
    changed: int = 0
    suspect: int = 0
    suppressed: int = 0


class TemplateCheck(msgspec.Struct, frozen=True):
    """What is known of the template at Meta; `checked` False says so, and `why`."""

    checked: bool
    status: str | None
    category: str | None
    format: str | None
    missing_params: list[str]
    why: str | None


class Preview(msgspec.Struct, frozen=True):
    """The texts of one row, filled in; of a template that is not known its parameters alone."""

    row: int
    text: str


class SenderState(msgspec.Struct, frozen=True):
    """Who would send."""

    name: str
    state: str


class Preflight(msgspec.Struct, frozen=True):
    """Whether the same body would be accepted now (quotas aside), and what to look at first."""

    ok: bool
    rows: Rows
    problems: list[wire.Row]
    template: TemplateCheck | None
    preview: list[Preview]
    estimate: wire.Estimate | None
    sender: SenderState | None


def rows_of(error: InvalidError) -> list[wire.Row]:
    """Return a refusal as rows of an answer."""
    rows = [wire.Row(f.pointer, f.row, f.code, f.detail) for f in error.faults]
    return rows or [wire.Row("", None, error.word, error.detail)]


def previews_of(message: Message, taken: Taken, known: Known | None) -> list[Preview]:
    """Return what the first recipients would read."""
    texts = [slot.text for slot in slots(message)]
    definition = known.definition if known is not None else None
    found = []
    for place, row in enumerate(taken.rows[:_PREVIEWS]):
        values = taken.values[place] if taken.vars else None
        if isinstance(message, TemplateMessage) and definition is not None and definition.body:
            found.append(Preview(row, rendered(message, definition, taken.vars, values)))
            continue
        filled = [t if values is None else fill(t, taken.vars, values) for t in texts]
        found.append(Preview(row, "\n".join(filled)))
    return found


def template_of(message: Message, known: Known | None) -> TemplateCheck | None:
    """Return what is told of the message's template; None when it is from none. Pure."""
    if known is None or not isinstance(message, TemplateMessage):
        return None
    definition, why = known.definition, known.why
    if definition is None:
        return TemplateCheck(not why, None, None, None, [], why or None)
    if definition.others and not why:
        why = f"of this template nobody here looks at: {', '.join(definition.others)}"
    return TemplateCheck(
        not why,
        definition.status,
        definition.category,
        definition.format,
        missing_params(message.template, definition),
        why or None,
    )


async def preflight(request: web.Request) -> web.Response:
    """POST /api/bulk/preflight."""
    made, asker = resources(request), principal(request)
    query_of(request)
    key_of(request)
    async with turn_of(made, asker.user_id):
        raw = await body_of(request, made.settings.body_max_bytes, made.settings.body_timeout_s)
        body = wire.decode(raw, wire.SendRequest, breaks_at="/message/text/body")
        del raw
        return answer(await _look(body, made, asker))


async def _look(body: wire.SendRequest, made: Resources, asker: Principal) -> Preflight:
    problems: list[wire.Row] = []
    taken: Taken | None = None
    sender: SenderRow | None = None
    if await made.switch.is_off():
        problems.append(wire.Row("", None, "bulk_disabled", "Sending is switched off."))
    try:
        check(body, made, made.clock.now_ms())
        await owner_of(body, made, asker)
    except InvalidError as error:
        problems += rows_of(error)
    try:
        sender = await sender_of(body.sender, made)
    except InvalidError as error:
        problems += rows_of(error)
    known = await known_of(made, sender, body.message, is_awaited=True)
    if known is not None:
        problems += [wire.Row(f.pointer, None, f.code, f.detail) for f in known.faults]
    try:
        check_source(body, made.settings.bulk_hard_cap)
        source = await source_of(body, made, asker)
        taken = await take_all(body.message, made, source, sender, known)
    except InvalidError as error:
        problems += [row for row in rows_of(error) if row not in problems]
    is_ok = not problems
    rows, preview, estimate = Rows(), [], None
    if taken is not None:
        problems += [wire.Row(f.pointer, f.row, f.code, f.detail) for f in taken.faults]
        is_ok = is_ok and bool(taken.phones) and (not taken.invalid or body.on_invalid == "skip")
        rows = await _counts(made, taken, known)
        preview = previews_of(body.message, taken, known)
        estimate = _estimate(body, made, taken, sender)
    return Preflight(
        ok=is_ok,
        rows=rows,
        problems=problems[:PROBLEMS_MAX],
        template=template_of(body.message, known),
        preview=preview,
        estimate=estimate,
        sender=SenderState(sender.name, sender.state) if sender is not None else None,
    )


async def _counts(made: Resources, taken: Taken, known: Known | None) -> Rows:
    # As a worker would have it: a text is never marketing.
    is_stopped = known is not None and is_marketing(known.category)
    suppressed = await made.results.suppressed_count(taken.phones, is_marketing=is_stopped)
    return Rows(
        taken.submitted,
        len(taken.phones),
        taken.invalid,
        taken.duplicates,
        taken.changed,
        taken.suspect,
        suppressed,
    )


def _estimate(
    body: wire.SendRequest, made: Resources, taken: Taken, sender: SenderRow | None
) -> wire.Estimate | None:
    if sender is None:
        return None
    own = made.settings.default_rate if sender.rate is None else sender.rate
    rate = min((rate for rate in (own, body.rate or 0.0) if rate), default=0.0)
    return estimate_of(len(taken.phones), rate)


ROUTES: Final = (
    Route("POST", "/api/bulk/preflight", preflight, auth.SEND, "intake", has_body=True),
)
