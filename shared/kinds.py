"""Limits of the kinds that go to Graph as they are: media, interactive, place, people. Pure.

Limits are those of Meta's pages and OpenAPI description, read 2026-09-11 (docs: whatsapp 2).
Pointers in here begin below the kind's own object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeGuard
from urllib.parse import urlsplit

from shared.errors import Fault
from shared.links import LINK_MAX, is_safe_link

MEDIA: Final = ("image", "video", "audio", "document", "sticker")
KINDS: Final = (*MEDIA, "interactive", "location", "contacts")
CAPTION_MAX: Final = 1024
BODY_MAX: Final = 1024
LIST_BODY_MAX: Final = 4096  # a newer page than the description says so; Graph decides
SMALL_TEXT_MAX: Final = 60
ID_MAX: Final = 256
FILENAME_MAX: Final = 240
CONTACTS_MAX: Final = 5
_SILENT: Final = ("audio", "sticker")
_PLACE_MAX: Final = 1000
_FORMATTED_NAME_MAX: Final = 256
_BUTTONS_MAX: Final = 3
_SECTIONS_MAX: Final = 10
_ROWS_MAX: Final = 10
_PRODUCTS_MAX: Final = 30
_TITLE_MAX: Final = 24
_CAPTIONED: Final = tuple(kind for kind in MEDIA if kind not in _SILENT)
# What an action must be named, by type.
_ACTIONS: Final = {
    "cta_url": "cta_url",
    "flow": "flow",
    "catalog_message": "catalog_message",
    "location_request_message": "send_location",
    "voice_call": "voice_call",
    "call_permission_request": "call_permission_request",
    "request_contact_info": "request_contact_info",
}
_TYPES: Final = ("button", "list", "product", "product_list", *_ACTIONS)
_BODILESS: Final = ("product", "call_permission_request")
Wrong = Callable[[str, str], None]


def texts_of(kind: str, content: Any) -> list[tuple[str, str, int]]:  # noqa: ANN401 - the caller's
    """Return the strings that values may fill: pointer, text, most characters."""
    if kind in _CAPTIONED:
        caption = content.get("caption")
        return [("/caption", caption, CAPTION_MAX)] if isinstance(caption, str) else []
    if kind != "interactive":
        return []
    body_max = LIST_BODY_MAX if content.get("type") == "list" else BODY_MAX
    found = []
    for name, limit in (("header", SMALL_TEXT_MAX), ("body", body_max), ("footer", SMALL_TEXT_MAX)):
        part = content.get(name)
        text = part.get("text") if isinstance(part, dict) else None
        if isinstance(text, str):
            found.append((f"/{name}/text", text, limit))
    return found


def faults_of(kind: str, content: Any, at: str) -> list[Fault]:  # noqa: ANN401 - the caller's
    """Return what is wrong with the object of a kind, but for its fillable texts.

    Args:
        kind: one of `KINDS`.
        content: the object under the kind's name.
        at: its JSON pointer.
    """
    if kind in MEDIA:
        return medium_faults(content, at, kind)
    faults: list[Fault] = []

    def wrong(place: str, text: str) -> None:
        faults.append(Fault(at + place, "validation_failed", text))

    if kind == "location":
        _check_location(content, wrong)
    elif kind == "contacts":
        _check_contacts(content, wrong)
    else:
        faults += _header_faults(content, at)
        _check_interactive(content, wrong)
    return faults


def medium_faults(medium: object, at: str, kind: str = "") -> list[Fault]:
    """Return what is wrong with a medium; `kind` '' is that of a template's parameter."""
    if not isinstance(medium, dict) or ("id" in medium) == ("link" in medium):
        return [Fault(at, "validation_failed", "a medium has either an id or a link")]
    if "link" in medium and not is_safe_link(medium["link"]):
        text = "a link is https, at most 2,048 characters, to a public host name"
        return [Fault(f"{at}/link", "bad_media_url", text)]
    if "id" in medium and not _is_text(medium["id"], ID_MAX):
        return [Fault(f"{at}/id", "validation_failed", f"an id is 1 to {ID_MAX} characters")]
    faults = []
    offered = {"id", "link"}
    if kind in _CAPTIONED or not kind:
        offered.add("caption")
        if not isinstance(medium.get("caption", ""), str):
            faults.append(Fault(f"{at}/caption", "validation_failed", "a caption is a string"))
    if kind in {"document", ""}:
        offered.add("filename")
        if "filename" in medium and not _is_text(medium["filename"], FILENAME_MAX):
            text = f"a filename is 1 to {FILENAME_MAX} characters"
            faults.append(Fault(f"{at}/filename", "validation_failed", text))
    if kind == "audio":
        offered.add("voice")
        if not isinstance(medium.get("voice", False), bool):
            faults.append(Fault(f"{at}/voice", "validation_failed", "true or false"))
    if not medium.keys() <= offered:
        text = f"this medium has only {', '.join(sorted(offered))}"
        faults.append(Fault(at, "validation_failed", text))
    return faults


# -- a place, people -------------------------------------------------------------------------


def _check_location(content: dict[str, Any], wrong: Wrong) -> None:
    for name, most in (("latitude", 90), ("longitude", 180)):
        value = content.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not -most <= value <= most:  # type: ignore[operator]  # a number
            wrong(f"/{name}", f"a number from -{most} to {most}")
    for name in ("name", "address"):
        if name in content and not _is_text(content[name], _PLACE_MAX):
            wrong(f"/{name}", f"1 to {_PLACE_MAX} characters")
    if not content.keys() <= {"latitude", "longitude", "name", "address"}:
        wrong("", "a location has only latitude, longitude, name and address")


def _check_contacts(content: list[dict[str, Any]], wrong: Wrong) -> None:
    if not 1 <= len(content) <= CONTACTS_MAX:
        wrong("", f"1 to {CONTACTS_MAX} contacts")
    for place, contact in enumerate(content[:CONTACTS_MAX]):
        name = contact.get("name")
        if not isinstance(name, dict) or not _is_text(
            name.get("formatted_name"), _FORMATTED_NAME_MAX
        ):
            wrong(f"/{place}/name/formatted_name", f"1 to {_FORMATTED_NAME_MAX} characters")
        for field in ("phones", "emails", "addresses", "urls"):
            if not _is_objects(contact.get(field, [])):
                wrong(f"/{place}/{field}", "a list of objects")


# -- interactive -----------------------------------------------------------------------------


def _header_faults(content: dict[str, Any], at: str) -> list[Fault]:
    if "header" not in content:
        return []
    header = content["header"]
    kind = header.get("type") if isinstance(header, dict) else None
    if kind in ("image", "video", "document"):
        if content.get("type") in ("list", "product_list"):
            text = "the header of a list is a text"
            return [Fault(f"{at}/header/type", "validation_failed", text)]
        return medium_faults(header.get(kind), f"{at}/header/{kind}", kind)
    if kind != "text":
        text = "one of text, image, video, document"
        return [Fault(f"{at}/header/type", "validation_failed", text)]
    if not isinstance(header.get("text"), str):
        return [Fault(f"{at}/header/text", "validation_failed", "a header of type text needs one")]
    return []


def _check_interactive(content: dict[str, Any], wrong: Wrong) -> None:
    kind, action = content.get("type"), content.get("action")
    if kind not in _TYPES:
        wrong("/type", f"one of {', '.join(_TYPES)}")
        return
    for name in ("body", "footer"):
        part = content.get(name)
        is_there = isinstance(part, dict) and isinstance(part.get("text"), str)
        is_needed = name == "body" and kind not in _BODILESS
        if not is_there and (is_needed or name in content):
            wrong(f"/{name}/text", "a text is needed here")
    if not content.keys() <= {"type", "header", "body", "footer", "action"}:
        wrong("", "only type, header, body, footer and action")
    if not isinstance(action, dict):
        wrong("/action", "an action is needed")
    elif kind in _CHECKS:
        _CHECKS[kind](action, wrong)
    if kind == "product_list" and not isinstance(content.get("header"), dict):
        wrong("/header", "a list of products needs a header")
    if kind in _ACTIONS and isinstance(action, dict) and action.get("name") != _ACTIONS[kind]:
        wrong("/action/name", f"the action of this type is named {_ACTIONS[kind]}")


def _check_buttons(action: dict[str, Any], wrong: Wrong) -> None:
    buttons = action.get("buttons")
    if not _is_objects(buttons) or not 1 <= len(buttons) <= _BUTTONS_MAX:
        wrong("/action/buttons", f"1 to {_BUTTONS_MAX} buttons")
        return
    replies = []
    for place, button in enumerate(buttons):
        at, reply = f"/action/buttons/{place}", button.get("reply")
        if button.get("type") != "reply" or not isinstance(reply, dict):
            wrong(at, "a button has type reply and a reply")
            continue
        replies.append(reply)
        if not _is_text(reply.get("title"), 20):
            wrong(f"{at}/reply/title", "a title is 1 to 20 characters")
        if not _is_text(reply.get("id"), ID_MAX) or reply["id"] != reply["id"].strip():
            wrong(f"{at}/reply/id", f"an id is 1 to {ID_MAX} characters without outer spaces")
    for name in ("title", "id"):
        _check_unique((reply.get(name) for reply in replies), f"two buttons share a {name}", wrong)


def _check_unique(values: Iterable[object], text: str, wrong: Wrong) -> None:
    given = [value for value in values if isinstance(value, str)]
    if len(set(given)) < len(given):
        wrong("/action", text)


def _sections_of(action: dict[str, Any], wrong: Wrong) -> list[dict[str, Any]]:
    """Return the sections of a list whose titles are right; [] when there are none to look at."""
    sections = action.get("sections")
    if not _is_objects(sections) or not 1 <= len(sections) <= _SECTIONS_MAX:
        wrong("/action/sections", f"1 to {_SECTIONS_MAX} sections")
        return []
    for place, section in enumerate(sections):
        title = section.get("title")
        if (title is not None or len(sections) > 1) and not _is_text(title, _TITLE_MAX):
            text = f"a title of 1 to {_TITLE_MAX} characters, needed with more than one section"
            wrong(f"/action/sections/{place}/title", text)
    return list(sections)


def _check_list(action: dict[str, Any], wrong: Wrong) -> None:
    if not _is_text(action.get("button"), 20):
        wrong("/action/button", "1 to 20 characters")
    rows: list[dict[str, Any]] = []
    for number, section in enumerate(_sections_of(action, wrong)):
        at, given = f"/action/sections/{number}/rows", section.get("rows")
        if not _is_objects(given) or not given:
            wrong(at, "a section needs rows")
            continue
        rows += given
        for place, row in enumerate(given[: _ROWS_MAX + 1]):
            for name, most in (("id", 200), ("title", _TITLE_MAX)):
                if not _is_text(row.get(name), most):
                    wrong(f"{at}/{place}/{name}", f"1 to {most} characters")
            if "description" in row and not _is_text(row["description"], 72):
                wrong(f"{at}/{place}/description", "1 to 72 characters")
    if len(rows) > _ROWS_MAX:
        wrong("/action/sections", f"at most {_ROWS_MAX} rows in all")
    _check_unique((row.get("id") for row in rows), "two rows share an id", wrong)


def _check_link(action: dict[str, Any], wrong: Wrong) -> None:
    given = action.get("parameters")
    parameters = given if isinstance(given, dict) else {}
    if not _is_text(parameters.get("display_text"), 20):
        wrong("/action/parameters/display_text", "1 to 20 characters")
    url = parameters.get("url")
    try:
        is_link = _is_text(url, LINK_MAX) and urlsplit(url).scheme in {"http", "https"}
    except ValueError:
        is_link = False
    if not is_link:
        wrong("/action/parameters/url", f"an http or https link of at most {LINK_MAX} characters")


def _check_flow(action: dict[str, Any], wrong: Wrong) -> None:
    given = action.get("parameters")
    parameters = given if isinstance(given, dict) else {}
    at = "/action/parameters"
    if parameters.get("flow_message_version") != "3":
        wrong(f"{at}/flow_message_version", 'a flow has the version "3"')
    if ("flow_id" in parameters) == ("flow_name" in parameters):
        wrong(at, "exactly one of flow_id and flow_name")
    for name, most, is_needed in (
        ("flow_id", ID_MAX, False),
        ("flow_name", ID_MAX, False),
        ("flow_token", ID_MAX, False),
        ("flow_cta", 30, True),
    ):
        if (is_needed or name in parameters) and not _is_text(parameters.get(name), most):
            wrong(f"{at}/{name}", f"1 to {most} characters")


def _check_product(action: dict[str, Any], wrong: Wrong) -> None:
    for name in ("catalog_id", "product_retailer_id"):
        if not _is_text(action.get(name), ID_MAX):
            wrong(f"/action/{name}", f"1 to {ID_MAX} characters")


def _check_products(action: dict[str, Any], wrong: Wrong) -> None:
    if not _is_text(action.get("catalog_id"), ID_MAX):
        wrong("/action/catalog_id", f"1 to {ID_MAX} characters")
    for number, section in enumerate(_sections_of(action, wrong)):
        at, items = f"/action/sections/{number}/product_items", section.get("product_items")
        if not _is_objects(items) or not 1 <= len(items) <= _PRODUCTS_MAX:
            wrong(at, f"1 to {_PRODUCTS_MAX} products")
            continue
        for place, item in enumerate(items):
            if not _is_text(item.get("product_retailer_id"), ID_MAX):
                wrong(f"{at}/{place}/product_retailer_id", f"1 to {ID_MAX} characters")


_CHECKS: Final[dict[str, Callable[[dict[str, Any], Wrong], None]]] = {
    "button": _check_buttons,
    "list": _check_list,
    "cta_url": _check_link,
    "flow": _check_flow,
    "product": _check_product,
    "product_list": _check_products,
}


def _is_text(value: object, most: int) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= most


def _is_objects(value: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)
