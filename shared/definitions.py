"""What Graph says of a template, whether a message fits it, and how it reads when filled. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from shared.errors import Fault
from shared.message import (
    LANGUAGE,
    NAME,
    PLACEHOLDER,
    Component,
    Slot,
    Template,
    TemplateMessage,
    fill,
)

# Of any other category, known or not, a message may be marketing.
_PLAIN_CATEGORIES: Final = frozenset({"UTILITY", "AUTHENTICATION"})
_APPROVED: Final = "APPROVED"
_MEDIA: Final = ("image", "video", "document", "location")
_AT: Final = "/message/template"
_PLACE: Final = re.compile(r"\{\{\s*(\w+)\s*\}\}", re.ASCII)
# Buttons that say nothing by themselves: sub_type in a message, type of the parameter.
_NEEDY: Final = {"copy_code": "coupon_code", "mpm": "action"}
_BUTTONS: Final = frozenset({"", "url", "quick_reply", "catalog", "flow", *_NEEDY})
_PARTS: Final = ("HEADER", "BODY", "FOOTER", "BUTTONS")
UNREADABLE: Final = "unreadable"
# Of a template's own texts; filled in they may have no more (132005).
_WHOLE_MAX: Final = {"header": 60, "body": 1024}


class Button(msgspec.Struct, frozen=True):
    """A button; `kind` as a message's `sub_type`, '' for those that take no parameter."""

    kind: str
    text: str
    is_needed: bool


class Definition(msgspec.Struct, frozen=True):
    """A template as Meta has it.

    Attributes:
        format: `NAMED` or `POSITIONAL`; how the parameters of header and body are told apart.
        quality: Meta's score, such as `GREEN`; None while there is none.
        header: `text`, `image`, `video`, `document`, `location`, or '' for none.
        header_text, body, footer: with placeholders, such as `{{1}}` or `{{first_name}}`.
        buttons: in their order, which is their `index`.
        others: parts that nobody here looks at, such as `carousel`; `unreadable` when Meta's
            answer has another shape than we know.
    """

    name: str
    language: str
    category: str
    status: str
    format: str
    quality: str | None = None
    header: str = ""
    header_text: str = ""
    body: str = ""
    footer: str = ""
    buttons: list[Button] = []
    others: list[str] = []

    @property
    def params(self) -> list[str]:
        """Return what a message must bring, in order; media and buttons by their place."""
        header = [f"header.{self.header}"] if self.header in _MEDIA else _names(self.header_text)
        buttons = [f"button.{i}" for i, button in enumerate(self.buttons) if button.is_needed]
        return [*header, *_names(self.body), *buttons]


class _Score(msgspec.Struct):
    score: str | None = None


# Meta adds parts and fields as it likes: what is absent, null or new must not cost the others.
class _Part(msgspec.Struct):
    type: str = ""
    format: str | None = None
    text: str | None = None
    buttons: list[dict[str, Any]] | None = None


class _Told(msgspec.Struct):
    name: str
    language: str
    status: str
    category: str = ""
    parameter_format: str | None = None
    quality_score: _Score | None = None
    components: msgspec.Raw = msgspec.Raw(b"[]")


class _Cursors(msgspec.Struct):
    after: str = ""


class _Paging(msgspec.Struct):
    cursors: _Cursors = msgspec.field(default_factory=_Cursors)
    next: str = ""


class _Page(msgspec.Struct):
    data: list[_Told]
    paging: _Paging = msgspec.field(default_factory=_Paging)


_decode: Final = msgspec.json.Decoder(_Page).decode
_parts_of: Final = msgspec.json.Decoder(list[_Part] | None).decode


def page_of(raw: bytes) -> tuple[list[Definition], str]:
    """Return the templates of one page of Graph's list, and the cursor of the next; '' = last.

    Graph's own address of the next page is not followed: it may name another host.

    Raises:
        msgspec.DecodeError: it is no such page.
    """
    page = _decode(raw)
    after = page.paging.cursors.after if page.paging.next else ""
    # What has another name could not be asked for.
    named = (t for t in page.data if NAME.match(t.name) and LANGUAGE.match(t.language))
    return [_definition(told) for told in named], after


def _definition(told: _Told) -> Definition:
    try:
        parts = {part.type.upper(): part for part in _parts_of(told.components) or []}
    except msgspec.DecodeError:
        parts = {UNREADABLE: _Part()}
    header, empty = parts.get("HEADER", _Part()), _Part()
    header_text, body = header.text or "", parts.get("BODY", empty).text or ""
    kind = (header.format or "").lower()
    # Older answers leave the format out.
    is_named = (told.parameter_format or "").upper() == "NAMED" or any(
        not name.isdigit() for name in _names(header_text) + _names(body)
    )
    buttons = [_button(button) for button in parts.get("BUTTONS", empty).buttons or []]
    others = {name.lower() for name in parts if name not in _PARTS}
    if kind not in ("", "text", *_MEDIA):
        others.add(f"header.{kind}")
    others |= {f"button.{i}" for i, each in enumerate(buttons) if each.kind not in _BUTTONS}
    return Definition(
        name=told.name,
        language=told.language,
        category=told.category.upper(),
        status=told.status.upper(),
        format="NAMED" if is_named else "POSITIONAL",
        quality=told.quality_score.score if told.quality_score is not None else None,
        header=kind,
        header_text=header_text,
        body=body,
        footer=parts.get("FOOTER", empty).text or "",
        buttons=buttons,
        others=sorted(others),
    )


def _button(given: dict[str, Any]) -> Button:
    kind, text = str(given.get("type", "")).lower(), str(given.get("text", ""))
    if kind == "otp":
        # Its code is sent as the parameter of a url button.
        return Button("url", text, is_needed=True)
    if kind == "url":
        return Button(kind, text, is_needed=bool(_names(str(given.get("url", "")))))
    return Button("" if kind == "phone_number" else kind, text, is_needed=kind in _NEEDY)


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(_PLACE.findall(text)))


def is_marketing(category: str | None) -> bool:
    """Tell whether the marketing entries of the suppression list stop a template.

    >>> is_marketing("UTILITY"), is_marketing(None)
    (False, True)
    """
    return category not in _PLAIN_CATEGORIES


def missing_params(template: Template, found: Definition) -> list[str]:
    """Return what the template asks for and the message does not bring, in the template's order."""
    body, header = _parameters(template, "body"), _parameters(template, "header")
    missing = []
    if found.header in _MEDIA and not header:
        missing.append(f"header.{found.header}")
    missing += _lacking(_names(found.header_text), header, found)
    missing += _lacking(_names(found.body), body, found)
    given = {str(part.index) for part in template.components if part.type == "button"}
    for index, button in enumerate(found.buttons):
        if button.is_needed and str(index) not in given:
            missing.append(f"button.{index}")
    return missing


def _lacking(names: list[str], given: list[dict[str, Any]], found: Definition) -> list[str]:
    if found.format == "NAMED":
        have = {parameter.get("parameter_name") for parameter in given}
        return [name for name in names if name not in have]
    return names[len(given) :]


def _parameters(template: Template, kind: str) -> list[dict[str, Any]]:
    return [p for part in template.components if part.type == kind for p in part.parameters]


def faults_of(template: Template, found: Definition) -> list[Fault]:
    """Return why Graph would refuse the message, as far as the definition tells; [] = it fits."""
    if found.status != _APPROVED:
        text = f"Meta has this template as {found.status}; only an approved one is sent"
        return [Fault(f"{_AT}/name", "bad_template", text)]
    if UNREADABLE in found.others:
        return []
    faults = []
    for name in missing_params(template, found):
        text = f"the template needs the parameter {name}"
        faults.append(Fault(f"{_AT}/components", "bad_template", text))
    seen: set[str] = set()
    for number, part in enumerate(template.components):
        at = f"{_AT}/components/{number}"
        slot = f"button {part.index}" if part.type == "button" else part.type
        if slot in seen:
            faults.append(Fault(at, "bad_template", f"a second {slot}"))
            continue
        seen.add(slot)
        text = _part_fault(part, found)
        if text:
            faults.append(Fault(at, "bad_template", text))
    if faults:
        return faults
    return [
        Fault(slot.pointer, "bad_template", f"filled in, it has more than {slot.limit} characters")
        for slot in filled_slots(template, found)
        if len(slot.text) > slot.limit and not PLACEHOLDER.search(slot.text)
    ]


def filled_slots(template: Template, found: Definition) -> list[Slot]:
    """Return the template's texts with the message's parameters in them; its placeholders stay.

    For a message that brings all that the template asks for; texts without parameters are Meta's.
    """
    slots = []
    for number, part in enumerate(template.components):
        text = {"header": found.header_text, "body": found.body}.get(part.type, "")
        if text and part.parameters:
            told = part.parameters
            whole = _filled(text, [_text_of(each) for each in told], told, [], None)
            pointer = f"{_AT}/components/{number}"
            slots.append(Slot(pointer, whole, _WHOLE_MAX[part.type], is_parameter=False))
    return slots


def _part_fault(part: Component, found: Definition) -> str:
    """Return what is too much or of the wrong kind in a part; '' = nothing."""
    if part.type == "button":
        return _button_fault(part, found)
    if part.type == "header" and found.header in _MEDIA:
        kinds = [parameter.get("type") for parameter in part.parameters]
        is_right = kinds == [found.header] or not kinds
        return "" if is_right else f"the header takes one parameter of type {found.header}"
    if part.type == "header" and f"header.{found.header}" in found.others:
        return ""
    names = _names(found.header_text if part.type == "header" else found.body)
    if part.parameters and not names:
        return f"the template's {part.type} takes no parameter"
    if any(parameter.get("type") in _MEDIA for parameter in part.parameters):
        return f"the {part.type} takes text alone"
    if found.format == "NAMED":
        return _named_fault(part, names)
    if len(part.parameters) > len(names):
        return f"{len(part.parameters)} parameters given, the {part.type} takes {len(names)}"
    return ""


def _named_fault(part: Component, names: list[str]) -> str:
    given = [parameter.get("parameter_name") for parameter in part.parameters]
    if None in given:
        return "this template's parameters have names: each needs its parameter_name"
    if not set(given) <= set(names) or len(set(given)) < len(given):
        return f"the {part.type} takes each of these names once: {', '.join(names) or 'none'}"
    return ""


def _button_fault(part: Component, found: Definition) -> str:
    place = int(part.index or 0)
    if place >= len(found.buttons):
        return f"the template has {len(found.buttons)} buttons, counted from 0"
    button = found.buttons[place]
    if f"button.{place}" in found.others:
        return ""
    if part.sub_type != button.kind:
        return f"button {place} is of sub_type {button.kind or 'none: it takes no parameter'}"
    if not button.is_needed:
        is_odd = button.kind == "url" and part.parameters
        return f"button {place} takes no parameter" if is_odd else ""
    kinds = [parameter.get("type") for parameter in part.parameters]
    wanted = _NEEDY.get(button.kind, "text")
    return "" if kinds == [wanted] else f"button {place} takes one parameter of type {wanted}"


def rendered(
    message: TemplateMessage, found: Definition, names: list[str], values: Sequence[str] | None
) -> str:
    """Return what a recipient reads: header, body and footer, a line each.

    Args:
        message: with what goes into the template.
        found: the template.
        names: the message's own placeholders.
        values: of the recipient, in their order; None = placeholders stay as they are.
    """
    parts = [
        (found.header_text, _parameters(message.template, "header")),
        (found.body, _parameters(message.template, "body")),
        (found.footer, []),
    ]
    given = None if values is None else list(values)
    lines = [
        _filled(text, [_text_of(p) for p in told], told, names, given)
        for text, told in parts
        if text
    ]
    return "\n".join(lines)


def _filled(
    text: str,
    texts: list[str],
    told: list[dict[str, Any]],
    names: list[str],
    values: list[str] | None,
) -> str:
    if values is not None:
        texts = [fill(each, names, values) for each in texts]
    known: dict[str, str] = dict(zip(_names(text), texts, strict=False))
    for parameter, each in zip(told, texts, strict=True):
        if isinstance(parameter.get("parameter_name"), str):
            known[parameter["parameter_name"]] = each
    return _PLACE.sub(lambda found: known.get(found[1], found[0]), text)


def _text_of(parameter: dict[str, Any]) -> str:
    kind = parameter.get("type")
    inner = parameter.get(str(kind))
    if isinstance(inner, dict):
        return str(inner.get("fallback_value", ""))
    return inner if isinstance(inner, str) else ""
