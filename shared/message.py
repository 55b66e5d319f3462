"""What may be sent, its limits, and how a recipient's values fill it. Pure.

Limits are those of Meta's pages on text and template messages, read 2026-09-11 (docs: whatsapp).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from shared.errors import Fault

BODY_MAX: Final = 4096
COMPONENTS_MAX: Final = 10
PARAMETERS_MAX: Final = 100
LINK_MAX: Final = 2048
TEXT_MAX: Final = {"header": 60, "body": 1024, "button": 2000}
PLACEHOLDER: Final = re.compile(r"\{\{([a-z0-9_]{1,32})\}\}")

_NAME: Final = re.compile(r"\A[a-z0-9_]{1,512}\Z")
_LANGUAGE: Final = re.compile(r"\A[a-z]{2,3}(?:_[A-Z]{2})?\Z")
_SPACED: Final = re.compile(r"[\n\r\t]| {5}")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_COMPONENTS: Final = ("header", "body", "button")
_SUB_TYPES: Final = ("quick_reply", "url", "catalog", "flow", "copy_code", "mpm", "voice_call")
_PARAMETERS: Final = frozenset(
    (
        "text",
        "currency",
        "date_time",
        "image",
        "video",
        "document",
        "payload",
        "action",
        "coupon_code",
        "limited_time_offer",
        "location",
        "product",
    )
)
_MEDIA: Final = ("image", "video", "document")

BodyMaker = Callable[[int, "list[str] | None", str], bytes]


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a text message."""

    body: str
    preview_url: bool = False


class Component(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a template that takes parameters; they go to Graph as they are."""

    type: str
    parameters: list[dict[str, Any]] = []
    sub_type: str | None = None
    index: str | Annotated[int, Meta(ge=0, le=9)] | None = None


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which template, in which language, with what in it."""

    name: str
    language_code: str
    components: list[Component] = []


class TextMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="text"
):
    """A free-form text; Graph takes it inside the 24-hour window only."""

    text: Text


class TemplateMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="template"
):
    """A message from an approved template."""

    template: Template


Message = TextMessage | TemplateMessage
_DECODER: Final = msgspec.json.Decoder(Message)


def message_of(raw: bytes) -> Message:
    """Return the message that a job's row or hash carries as JSON.

    Raises:
        msgspec.DecodeError: it is none; only a foreign hand can have written it.
    """
    message: Message = _DECODER.decode(raw)
    return message


def kind_of(message: Message) -> str:
    """Return `text` or `template`."""
    return "text" if isinstance(message, TextMessage) else "template"


class Slot(NamedTuple):
    """One string of a message that a recipient's values may fill.

    Attributes:
        pointer: JSON pointer of the string in the request.
        text: as submitted, placeholders unfilled.
        limit: most characters after filling.
        is_parameter: Graph refuses line breaks, tabs and runs of spaces in it (132018).
    """

    pointer: str
    text: str
    limit: int
    is_parameter: bool


def slots(message: Message) -> list[Slot]:
    """Return the strings that values may fill: the body of a text, the texts of parameters."""
    if isinstance(message, TextMessage):
        return [Slot("/message/text/body", message.text.body, BODY_MAX, is_parameter=False)]
    found = []
    for number, component in enumerate(message.template.components):
        for index, parameter in enumerate(component.parameters):
            text = parameter.get("text")
            if parameter.get("type") == "text" and isinstance(text, str):
                pointer = f"/message/template/components/{number}/parameters/{index}/text"
                limit = TEXT_MAX.get(component.type, BODY_MAX)
                found.append(Slot(pointer, text, limit, is_parameter=True))
    return found


def placeholders(message: Message) -> list[str]:
    """Return the names of the placeholders, each once, in order of appearance.

    This order is that of a job's `vars` and of `Chunk.values`.
    """
    return list(
        dict.fromkeys(name for slot in slots(message) for name in PLACEHOLDER.findall(slot.text))
    )


def text_fault(text: str, limit: int, *, is_parameter: bool) -> tuple[str, str] | None:
    """Return the code and sentence of what is wrong with a filled string; None if nothing is."""
    if _CONTROL.search(text):
        return "control_char", "control characters are not allowed"
    if is_parameter and _SPACED.search(text):
        return "param_whitespace", "a parameter may hold no line break, tab or five spaces in a row"
    if len(text) > limit:
        return "too_long", f"more than {limit} characters"
    if not text.strip():
        return "validation_failed", "a text may not be empty or only white space"
    return None


def parse_message(message: Message) -> list[Fault]:
    """Return what is wrong with a decoded message, in its order; [] when it may be sent."""
    faults = []
    if isinstance(message, TemplateMessage):
        faults = _template_faults(message.template)
    for slot in slots(message):
        found = text_fault(slot.text, slot.limit, is_parameter=slot.is_parameter)
        if found is not None:
            code = found[0] if found[0] == "control_char" else "validation_failed"
            faults.append(Fault(slot.pointer, code, found[1]))
    return faults


def _template_faults(template: Template) -> list[Fault]:
    at = "/message/template"
    faults = []
    if not _NAME.match(template.name):
        text = "a template's name is 1 to 512 of a-z, 0-9 and _"
        faults.append(Fault(f"{at}/name", "bad_template", text))
    if not _LANGUAGE.match(template.language_code):
        text = "a language code looks like en or en_US"
        faults.append(Fault(f"{at}/language_code", "bad_template", text))
    if len(template.components) > COMPONENTS_MAX:
        text = f"more than {COMPONENTS_MAX} components"
        faults.append(Fault(f"{at}/components", "validation_failed", text))
    for number, component in enumerate(template.components[:COMPONENTS_MAX]):
        faults += _component_faults(component, f"{at}/components/{number}")
    return faults


def _component_faults(component: Component, at: str) -> list[Fault]:
    faults = []

    def wrong(place: str, text: str) -> None:
        faults.append(Fault(at + place, "validation_failed", text))

    if component.type not in _COMPONENTS:
        wrong("/type", "one of header, body, button")
    if component.type == "button":
        if component.sub_type not in _SUB_TYPES:
            wrong("/sub_type", "a button needs a sub_type: quick_reply, url, catalog, flow …")
        if str(component.index) not in "0123456789" or component.index in ("", None):
            wrong("/index", "a button needs an index, 0 to 9")
    elif component.sub_type is not None or component.index is not None:
        wrong("/sub_type", "only a button has a sub_type and an index")
    if len(component.parameters) > PARAMETERS_MAX:
        wrong("/parameters", f"more than {PARAMETERS_MAX} parameters")
        return faults
    for index, parameter in enumerate(component.parameters):
        place = f"/parameters/{index}"
        kind = parameter.get("type")
        if not isinstance(kind, str) or kind not in _PARAMETERS:
            wrong(f"{place}/type", "not a type of parameter")
        elif kind == "text":
            if not isinstance(parameter.get("text"), str):
                wrong(f"{place}/text", "a text parameter needs a text")
            if not isinstance(parameter.get("parameter_name", ""), str):
                wrong(f"{place}/parameter_name", "a name is a string")
        elif kind in _MEDIA:
            faults += _media_faults(parameter.get(kind), f"{at}{place}/{kind}")
        elif kind != "payload" and kind not in parameter:
            wrong(place, "the object named by type is missing")
    return faults


def _media_faults(medium: object, at: str) -> list[Fault]:
    if not isinstance(medium, dict) or ("id" in medium) == ("link" in medium):
        return [Fault(at, "validation_failed", "a medium has either an id or a link")]
    if "link" in medium and not is_safe_link(medium["link"]):
        text = "a link is https, at most 2,048 characters, to a public host name"
        return [Fault(f"{at}/link", "bad_media_url", text)]
    if "id" in medium and not isinstance(medium["id"], str):
        return [Fault(f"{at}/id", "validation_failed", "an id is a string")]
    return []


_HOST: Final = re.compile(r"\A(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{1,62}\Z")
_PRIVATE: Final = (".internal", ".local", ".localhost", ".home.arpa")


def is_safe_link(link: object) -> bool:
    """Tell whether Meta may be given this link: https to a host name that is not private.

    >>> is_safe_link("https://example.com/a.png"), is_safe_link("https://0x7f.1/a.png")
    (True, False)
    """
    if not isinstance(link, str) or len(link) > LINK_MAX or not link.isascii():
        return False
    if any(letter <= " " or letter in '\\"<>^`{|}\x7f' for letter in link):
        return False
    try:
        parts = urlsplit(link)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.scheme != "https" or "@" in parts.netloc or host.endswith(_PRIVATE):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # A last label that begins with a letter is no address in any notation.
        return _HOST.match(host) is not None
    return False


def _fillable(text: str, names: list[str]) -> msgspec.Raw:
    r"""Return `text` as JSON with `\0<n>\0` where value n goes; JSON itself never holds NUL."""
    pieces = PLACEHOLDER.split(text)
    for index, piece in enumerate(pieces):
        is_name = index % 2 == 1
        pieces[index] = f"\0{names.index(piece)}\0" if is_name else _inner(piece)
    return msgspec.Raw(f'"{"".join(pieces)}"'.encode())


def _inner(text: str) -> str:
    return msgspec.json.encode(text)[1:-1].decode()


def _content(message: Message, names: list[str]) -> dict[str, Any]:
    """Return the object under the kind's name as Graph takes it, fillable strings marked."""
    if isinstance(message, TextMessage):
        body = _fillable(message.text.body, names)
        return {"body": body, "preview_url": message.text.preview_url}
    template = message.template
    components = []
    for component in template.components:
        part: dict[str, Any] = {"type": component.type}
        if component.sub_type is not None:
            part["sub_type"] = component.sub_type
        if component.index is not None:
            part["index"] = str(component.index)  # Meta documents a string
        part["parameters"] = [
            {**parameter, "text": _fillable(parameter["text"], names)}
            if parameter.get("type") == "text"
            else parameter
            for parameter in component.parameters
        ]
        components.append(part)
    content: dict[str, Any] = {"name": template.name, "language": {"code": template.language_code}}
    if components:
        content["components"] = components
    return content


def body_for(message: Message) -> BodyMaker:
    """Return what makes a request's body for one recipient; all but his parts is made once.

    The maker takes the number without `+`, the values in the order of `placeholders(message)`
    (None: placeholders go out as they stand) and the opaque value, which holds nothing that
    JSON must escape.
    """
    names = placeholders(message)
    kind = kind_of(message)
    content = msgspec.json.encode(_content(message, names)).split(b"\0")
    # Even places are JSON, odd ones numbers of values.
    plain = b"".join(
        b"{{%b}}" % names[int(piece)].encode() if place % 2 else piece
        for place, piece in enumerate(content)
    )
    head = b'{"messaging_product":"whatsapp","recipient_type":"individual","to":"+%d","type":"'
    head += f'{kind}","{kind}":'.encode()
    tail = b',"biz_opaque_callback_data":"'
    order = [int(piece) for piece in content[1::2]]
    fixed = content[0::2]

    def make(phone: int, values: list[str] | None, opaque: str) -> bytes:
        if values is None or not order:
            middle = plain
        else:
            parts = [fixed[0]]
            for place, index in enumerate(order, start=1):
                parts += (msgspec.json.encode(values[index])[1:-1], fixed[place])
            middle = b"".join(parts)
        return b"".join((head % phone, middle, tail, opaque.encode(), b'"}'))

    return make


def fill(text: str, names: list[str], values: list[str]) -> str:
    """Return `text` with each placeholder replaced once; values are not searched again.

    >>> fill("Hi {{a}}", ["a"], ["{{a}}"])
    'Hi {{a}}'
    """
    return PLACEHOLDER.sub(lambda found: values[names.index(found[1])], text)
