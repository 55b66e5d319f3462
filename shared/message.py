"""What may be sent, its limits, and how a recipient's values fill it. Pure.

Limits are those of Meta's pages on text and template messages, read 2026-09-11 (docs: whatsapp).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from shared.errors import Fault
from shared.kinds import faults_of, medium_faults, texts_of

BODY_MAX: Final = 4096
MESSAGE_MAX: Final = 262_144
COMPONENTS_MAX: Final = 10
PARAMETERS_MAX: Final = 100
TEXT_MAX: Final = {"header": 60, "body": 1024, "button": 2000}
PLACEHOLDER: Final = re.compile(r"\{\{([a-z0-9_]{1,32})\}\}")

NAME: Final = re.compile(r"\A[a-z0-9_]{1,512}\Z")
LANGUAGE: Final = re.compile(r"\A[a-z]{2,3}(?:_[A-Z]{2})?\Z")
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
_PLAIN: Final = ("payload", "coupon_code")

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


class ImageMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="image"
):
    """A picture; like all kinds below it goes to Graph as it is, after the checks of `kinds`."""

    image: dict[str, Any]


class VideoMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="video"
):
    """A film."""

    video: dict[str, Any]


class AudioMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="audio"
):
    """A recording."""

    audio: dict[str, Any]


class DocumentMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="document"
):
    """A file."""

    document: dict[str, Any]


class StickerMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="sticker"
):
    """A sticker."""

    sticker: dict[str, Any]


class InteractiveMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="interactive"
):
    """Something to tap: buttons, a list, a link, a flow, products …."""

    interactive: dict[str, Any]


class LocationMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="location"
):
    """A place."""

    location: dict[str, Any]


class ContactsMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="contacts"
):
    """One to five people to write to."""

    contacts: list[dict[str, Any]]


OtherMessage = (
    ImageMessage
    | VideoMessage
    | AudioMessage
    | DocumentMessage
    | StickerMessage
    | InteractiveMessage
    | LocationMessage
    | ContactsMessage
)
Message = TextMessage | TemplateMessage | OtherMessage
_DECODER: Final = msgspec.json.Decoder(Message)


def message_of(raw: bytes) -> Message:
    """Return the message that a job's row or hash carries as JSON.

    Raises:
        msgspec.DecodeError: it is none; only a foreign hand can have written it.
    """
    message: Message = _DECODER.decode(raw)
    return message


def kind_of(message: Message) -> str:
    """Return the word that names the message's struct, such as `text`."""
    return str(message.__struct_config__.tag)


def _object_of(message: OtherMessage) -> Any:  # noqa: ANN401 - a dict, or contacts' list
    return getattr(message, kind_of(message))


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
    """Return the strings that values may fill: bodies, captions and the texts of parameters."""
    if isinstance(message, TextMessage):
        return [Slot("/message/text/body", message.text.body, BODY_MAX, is_parameter=False)]
    if not isinstance(message, TemplateMessage):
        kind = kind_of(message)
        return [
            Slot(f"/message/{kind}{pointer}", text, limit, is_parameter=False)
            for pointer, text, limit in texts_of(kind, _object_of(message))
        ]
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
    elif not isinstance(message, TextMessage):
        kind = kind_of(message)
        faults = faults_of(kind, _object_of(message), f"/message/{kind}")
    if len(msgspec.json.encode(message)) > MESSAGE_MAX:
        text = f"a message is at most {MESSAGE_MAX} bytes"
        faults.append(Fault("/message", "validation_failed", text))
    for slot in slots(message):
        found = text_fault(slot.text, slot.limit, is_parameter=slot.is_parameter)
        if found is not None:
            code = found[0] if found[0] == "control_char" else "validation_failed"
            faults.append(Fault(slot.pointer, code, found[1]))
    return faults


def _template_faults(template: Template) -> list[Fault]:
    at = "/message/template"
    faults = []
    if not NAME.match(template.name):
        text = "a template's name is 1 to 512 of a-z, 0-9 and _"
        faults.append(Fault(f"{at}/name", "bad_template", text))
    if not LANGUAGE.match(template.language_code):
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
            faults += medium_faults(parameter.get(kind), f"{at}{place}/{kind}")
        elif kind == "currency":
            faults += _currency_faults(parameter.get(kind), f"{at}{place}/{kind}")
        elif kind not in parameter:
            wrong(place, "the field named by type is missing")
        elif kind in _PLAIN and not (isinstance(parameter[kind], str) and parameter[kind]):
            wrong(f"{place}/{kind}", "a text that is not empty")
    return faults


def _currency_faults(currency: object, at: str) -> list[Fault]:
    given = currency if isinstance(currency, dict) else {}
    amount = given.get("amount_1000")
    is_whole = isinstance(amount, int) and not isinstance(amount, bool)
    texts = [given.get("fallback_value"), given.get("code")]
    if is_whole and all(isinstance(text, str) and text for text in texts):
        return []
    words = "a currency has a fallback_value, a code and a whole amount_1000"
    return [Fault(at, "validation_failed", words)]


def _fillable(text: str, names: list[str]) -> msgspec.Raw:
    r"""Return `text` as JSON with `\0<n>\0` where value n goes; JSON itself never holds NUL."""
    pieces = PLACEHOLDER.split(text)
    for index, piece in enumerate(pieces):
        is_name = index % 2 == 1
        pieces[index] = f"\0{names.index(piece)}\0" if is_name else _inner(piece)
    return msgspec.Raw(f'"{"".join(pieces)}"'.encode())


def _inner(text: str) -> str:
    return msgspec.json.encode(text)[1:-1].decode()


def _marked(value: Any, at: str, texts: set[str], names: list[str]) -> Any:  # noqa: ANN401
    """Return a copy in which the strings at `texts` are fillable."""
    if isinstance(value, dict):
        return {name: _marked(one, f"{at}/{name}", texts, names) for name, one in value.items()}
    if isinstance(value, list):
        return [_marked(one, f"{at}/{place}", texts, names) for place, one in enumerate(value)]
    return _fillable(value, names) if at in texts else value


def _content(message: Message, names: list[str]) -> Any:  # noqa: ANN401 - as Graph takes it
    """Return the object under the kind's name as Graph takes it, fillable strings marked."""
    if isinstance(message, TextMessage):
        body = _fillable(message.text.body, names)
        return {"body": body, "preview_url": message.text.preview_url}
    if not isinstance(message, TemplateMessage):
        kind = kind_of(message)
        texts = {slot.pointer for slot in slots(message)}
        return _marked(_object_of(message), f"/message/{kind}", texts, names)
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
