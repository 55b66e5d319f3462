"""Templates: what the workers last read at Meta, and whether a message fits what is there."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

import msgspec
from aiohttp import web
from msgspec import Meta

from api import wire
from api.auth import READ
from api.bodies import answer, small_body
from api.idempotency import key_of
from api.lists import page_of
from api.resources import Resources, resources
from api.router import Route, query_of
from api.wire import refuse
from shared.archive import SenderRow
from shared.definitions import Definition, faults_of, filled_slots, missing_params, rendered
from shared.errors import Fault, InvalidError, NotFoundError
from shared.message import (
    NAME,
    Component,
    Message,
    Slot,
    TemplateMessage,
    fill,
    parse_message,
    placeholders,
    slots,
    text_fault,
)
from shared.message import Template as Asked
from shared.templates import ListedTemplate, ListState

FRESH_MS: Final = 300_000  # older, it is asked for again before it is relied on
OLD_MS: Final = 600_000  # older, nothing is refused by it
WAIT_MS: Final = 3_000
_LOOK_S: Final = 0.1
_AT: Final = "/message/template"
_NO_ACCOUNT: Final = "the sender has no waba_id: nobody knows where its templates are"


class Template(msgspec.Struct, frozen=True):
    """A template as Meta had it.

    Attributes:
        format: `NAMED` or `POSITIONAL`.
        params: what a message must bring; media and buttons by their place.
        quality: Meta's score.
        synced_at: as of when.
    """

    name: str
    language_code: str
    category: str
    status: str
    format: str
    params: list[str]
    quality: str | None
    synced_at: str | None


class TemplateList(msgspec.Struct, frozen=True):
    """A page of templates, newest first; `why`: what stands in the way of a fresh list."""

    data: list[Template]
    has_more: bool
    next_cursor: str | None
    synced_at: str | None
    why: str | None


class TemplateSync(msgspec.Struct, frozen=True):
    """The 202 of a sync: a worker sees it within a second."""

    sender: str
    asked_at: str


class TemplateRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/templates/{name}/preview`: one recipient's message."""

    language_code: Annotated[str, Meta(max_length=16)]
    components: list[Component] = []
    vars: Annotated[dict[str, Annotated[str, Meta(max_length=1024)]], Meta(max_length=20)] = {}
    sender: Annotated[str, Meta(max_length=64)] | None = None


class TemplatePreview(msgspec.Struct, frozen=True):
    """What the recipient would read, and why Graph would refuse it."""

    text: str
    missing_params: list[str]
    problems: list[wire.Row]


class Known(NamedTuple):
    """What is known of a message's template.

    Attributes:
        definition: as it was read last; None = nothing is known.
        why: why nothing is refused by it; '' = it is fresh.
        faults: why Graph would refuse the message; none where it is not fresh.
    """

    definition: Definition | None
    why: str
    faults: list[Fault]

    @property
    def category(self) -> str | None:
        """Return Meta's word for what the template is for; None = not known."""
        return self.definition.category if self.definition is not None else None


def why_not(state: ListState) -> str:
    """Return why nothing is refused by a list as it stands; '' = it may be. Pure."""
    if state.error:
        return state.error
    if not state.synced_ms:
        return "the list of templates has not been read yet"
    if state.age_ms > OLD_MS:
        return f"the list of templates is {state.age_ms // 1000} s old: no worker renews it"
    return ""


def verdict(message: TemplateMessage, state: ListState, have: list[Definition]) -> Known:
    """Return what a list says of a message. Pure.

    Args:
        message: what is to be sent.
        state: how the list stands.
        have: every language of the template.
    """
    asked, why = message.template, why_not(state)
    found = next((each for each in have if each.language == asked.language_code), None)
    if why:
        return Known(found, why, [])
    if found is not None:
        return Known(found, "", faults_of(asked, found))
    when = f"at {wire.time_text(state.synced_ms)}"
    if have:
        languages = ", ".join(each.language for each in have)
        text = f"{when} Meta had this template in {languages} only"
        return Known(None, "", [Fault(f"{_AT}/language_code", "bad_template", text)])
    text = f"{when} Meta had no template of this name"
    return Known(None, "", [Fault(f"{_AT}/name", "bad_template", text)])


async def known_of(
    made: Resources, sender: SenderRow | None, message: Message, *, is_awaited: bool = False
) -> Known | None:
    """Return what is known of a message's template; None when it is from none.

    Args:
        made: the doors.
        sender: whose account has the template; None = nobody knows.
        message: what is to be sent.
        is_awaited: a list that is not fresh is asked for, and waited for for a while.
    """
    if not isinstance(message, TemplateMessage):
        return None
    if sender is None or sender.waba_id is None:
        return Known(None, _NO_ACCOUNT if sender is not None else "there is no sender", [])
    if not NAME.match(message.template.name):
        return Known(None, "no template can have this name", [])
    state = await made.templates.state(sender.waba_id)
    if is_awaited and (why_not(state) or state.age_ms > FRESH_MS):
        state = await _renewed(made, sender.waba_id, state)
    have = await made.templates.named(sender.waba_id, message.template.name)
    return verdict(message, state, have)


async def _renewed(made: Resources, waba_id: str, state: ListState) -> ListState:
    if state.rest_ms > WAIT_MS:
        return state
    await made.templates.ask(waba_id)
    until_s = made.clock.monotonic() + WAIT_MS / 1000
    while made.clock.monotonic() < until_s:
        await made.clock.sleep(_LOOK_S)
        state = await made.templates.state(waba_id)
        if state.is_settled:
            break
    return state


def require_fit(known: Known | None) -> None:
    """Refuse a message that Graph would refuse.

    Raises:
        InvalidError: `bad_template`, with every reason.
    """
    if known is not None and known.faults:
        text = "Graph would refuse the message as its template is now; see errors."
        raise InvalidError("bad_template", text, known.faults)


def wholes_of(message: Message, known: Known | None) -> list[Slot]:
    """Return the texts that rows may not make too long; [] where the template is not known well."""
    if known is None or known.definition is None or known.why or known.faults:
        return []
    assert isinstance(message, TemplateMessage)  # noqa: S101 - else nothing is known
    return filled_slots(message.template, known.definition)


# -- over HTTP --------------------------------------------------------------------------------


async def list_templates(request: web.Request) -> web.Response:
    """List the templates of a sender's account as the workers last read them, newest first."""
    made = resources(request)
    query = query_of(request, "limit", "cursor", "sender")
    sender = await _sender_of(made, query.get("sender"))
    waba_id = sender.waba_id
    state = ListState() if waba_id is None else await made.templates.state(waba_id)

    async def fetch(before: int, limit: int) -> list[ListedTemplate]:
        return [] if waba_id is None else await made.templates.page(waba_id, before, limit)

    rows, has_more, cursor = await page_of(request, query, waba_id, fetch)
    synced_at = wire.time_text(state.synced_ms)
    data = [_shown(row.definition, synced_at) for row in rows]
    why = _NO_ACCOUNT if waba_id is None else why_not(state) or None
    return answer(TemplateList(data, has_more, cursor, synced_at, why))


async def sync(request: web.Request) -> web.Response:
    """Have the list of a sender's account read again; a worker sees it within a second."""
    made = resources(request)
    key_of(request)
    sender = await _sender_of(made, query_of(request, "sender").get("sender"))
    if sender.waba_id is None:
        refuse("/sender", _NO_ACCOUNT, "no_sender")
    asked_ms = await made.templates.ask(sender.waba_id)
    return answer(TemplateSync(sender.name, wire.time_text(asked_ms) or ""), 202)


async def preview(request: web.Request) -> web.Response:
    """Show what one recipient would read."""
    made = resources(request)
    key_of(request)
    query_of(request)
    name = request.match_info["name"]
    body = await small_body(request, TemplateRow)
    sender = await _sender_of(made, body.sender)
    if sender.waba_id is None or not NAME.match(name):
        raise NotFoundError
    have = await made.templates.named(sender.waba_id, name)
    found = next((each for each in have if each.language == body.language_code), None)
    if found is None:
        raise NotFoundError
    message = TemplateMessage(Asked(name, body.language_code, body.components))
    faults = parse_message(message)
    if faults:
        raise InvalidError("validation_failed", "These are no components; see errors.", faults)
    return answer(previewed(message, found, body.vars))


def previewed(
    message: TemplateMessage, found: Definition, given: dict[str, str]
) -> TemplatePreview:
    """Return how a message reads with one row's values. Pure."""
    names = placeholders(message) if given else []
    values = [given.get(name, f"{{{{{name}}}}}") for name in names]
    faults = faults_of(message.template, found)
    wholes = [] if faults else filled_slots(message.template, found)
    faults += [
        Fault(f"/vars/{name}", "missing_variable", "a placeholder of the message has no value here")
        for name in names
        if name not in given
    ]
    for slot in (*slots(message), *wholes):
        text = fill(slot.text, names, values) if given else slot.text
        wrong = text_fault(text, slot.limit, is_parameter=slot.is_parameter)
        if wrong is not None:
            faults.append(Fault("/vars", *wrong))
    return TemplatePreview(
        rendered(message, found, names, values if given else None),
        missing_params(message.template, found),
        [wire.Row(fault.pointer, None, fault.code, fault.detail) for fault in faults],
    )


async def _sender_of(made: Resources, text: str | None) -> SenderRow:
    """Return a sender, paused or not: its templates may be looked at all the same."""
    archive = made.archive
    row = await (archive.default_sender() if text is None else archive.sender_by_name_or_id(text))
    if row is None:
        refuse("/sender", "there is no such sender", "no_sender")
    return row


def _shown(found: Definition, synced_at: str | None) -> Template:
    return Template(
        found.name, found.language, found.category, found.status, found.format, found.params,
        found.quality, synced_at,
    )  # fmt: skip


ROUTES: Final = (
    Route("GET", "/api/templates", list_templates, READ),
    Route("POST", "/api/templates/sync", sync, READ),
    Route("POST", "/api/templates/{name}/preview", preview, READ, has_body=True),
)
