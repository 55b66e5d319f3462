"""Every kind of message: what passes goes to Graph unchanged, what is wrong is pointed at."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.kinds import KINDS
from shared.message import body_for, kind_of, message_of, parse_message, placeholders, slots

LINK = "https://cdn.example.com/a.png"
BODY = {"text": "Hi {{name}}"}
REPLY = {"type": "reply", "reply": {"id": "yes", "title": "Yes"}}
ROW = {"id": "1", "title": "One", "description": "The first"}
BUTTONS = {"type": "button", "body": BODY, "action": {"buttons": [REPLY]}}
LIST = {
    "type": "list",
    "header": {"type": "text", "text": "H"},
    "body": BODY,
    "footer": {"text": "F"},
    "action": {"button": "Open", "sections": [{"rows": [ROW]}]},
}
GO = {"display_text": "Go", "url": "https://example.com/x"}
LINKED = {"type": "cta_url", "body": BODY, "action": {"name": "cta_url", "parameters": GO}}
START = {"flow_message_version": "3", "flow_id": "1", "flow_cta": "Start"}
FLOW = {"type": "flow", "body": BODY, "action": {"name": "flow", "parameters": START}}
PRODUCTS = {"type": "product_list", "header": {"type": "text", "text": "H"}, "body": BODY,
            "action": {"catalog_id": "1", "sections": [
                {"title": "A", "product_items": [{"product_retailer_id": "p"}]}]}}  # fmt: skip
GOOD: list[tuple[str, Any]] = [
    ("image", {"id": "123"}),
    ("image", {"link": LINK, "caption": "Hi {{name}}"}),
    ("video", {"link": LINK, "caption": "x" * 1024}),
    ("audio", {"id": "1", "voice": True}),
    ("document", {"id": "1", "filename": "a.pdf", "caption": "a\nb"}),
    ("sticker", {"id": "1"}),
    ("interactive", BUTTONS),
    ("interactive", {**BUTTONS, "header": {"type": "image", "image": {"id": "1"}}}),
    ("interactive", LIST),
    ("interactive", {**LIST, "body": {"text": "x" * 4096}}),
    ("interactive", LINKED),
    ("interactive", FLOW),
    ("interactive", PRODUCTS),
    ("interactive", {"type": "product", "action": {"catalog_id": "1", "product_retailer_id": "p"}}),
    ("interactive", {"type": "catalog_message", "body": BODY,
                     "action": {"name": "catalog_message"}}),
    ("interactive", {"type": "location_request_message", "body": BODY,
                     "action": {"name": "send_location"}}),
    ("location", {"latitude": 41.9, "longitude": -12, "name": "Rome", "address": "Via"}),
    ("contacts", [{"name": {"formatted_name": "Ann B."}, "phones": [{"phone": "+1"}]}]),
]  # fmt: skip


def of(kind: str, content: Any) -> Any:
    return message_of(msgspec.json.encode({"kind": kind, kind: content}))


@pytest.mark.parametrize(("kind", "content"), GOOD)
def test_a_good_message_goes_out_as_it_is(kind: str, content: Any) -> None:
    message = of(kind, content)
    assert parse_message(message) == []
    assert kind_of(message) == kind
    body = json.loads(body_for(message)(15550000001, None, "d1.x"))
    assert (body["type"], body[kind]) == (kind, content)
    assert message_of(msgspec.json.encode(message)) == message


def test_captions_and_texts_take_values() -> None:
    message = of("image", {"id": "1", "caption": 'Hi {{name}} "{{x}}"'})
    assert placeholders(message) == ["name", "x"]
    body = json.loads(body_for(message)(1, ["A\nb", '"'], "z"))
    assert body["image"] == {"id": "1", "caption": 'Hi A\nb """'}
    message = of("interactive", {**LIST, "footer": {"text": "{{foot}}"}})
    assert placeholders(message) == ["name", "foot"]
    body = json.loads(body_for(message)(1, ["Ann", "Bye"], "z"))
    assert body["interactive"]["body"] == {"text": "Hi Ann"}
    assert body["interactive"]["footer"] == {"text": "Bye"}
    assert body["interactive"]["action"] == LIST["action"]
    assert [slot.limit for slot in slots(message)] == [60, 4096, 60]


def put(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(content))
    *way, last = path.strip("/").split("/")
    here: Any = copy
    for step in way:
        here = here[int(step)] if isinstance(here, list) else here[step]
    if value is ...:
        del here[last]
    elif isinstance(here, list):
        here[int(last)] = value
    else:
        here[last] = value
    return copy


MANY = [{"title": str(n), "rows": [{**ROW, "id": str(n)}]} for n in range(11)]
ELEVEN = [{**ROW, "id": str(n)} for n in range(11)]
PARAMETERS = "/action/parameters"
BAD: list[tuple[str, Any, str]] = [
    ("image", {}, ""),
    ("image", {"id": "1", "link": LINK}, ""),
    ("image", {"id": 1}, "/id"),
    ("image", {"id": ""}, "/id"),
    ("image", {"id": "x" * 257}, "/id"),
    ("image", {"link": "http://example.com/a"}, "/link"),
    ("image", {"link": "https://10.0.0.1/a"}, "/link"),
    ("image", {"id": "1", "caption": "x" * 1025}, "/caption"),
    ("image", {"id": "1", "caption": " "}, "/caption"),
    ("image", {"id": "1", "caption": 1}, "/caption"),
    ("image", {"id": "1", "filename": "a"}, ""),
    ("audio", {"id": "1", "caption": "a"}, ""),
    ("audio", {"id": "1", "voice": "yes"}, "/voice"),
    ("sticker", {"id": "1", "caption": "a"}, ""),
    ("document", {"id": "1", "filename": ""}, "/filename"),
    ("document", {"id": "1", "filename": "x" * 241}, "/filename"),
    ("video", {"id": "1", "x": "a"}, ""),
    ("interactive", {}, "/type"),
    ("interactive", {**BUTTONS, "type": "fax"}, "/type"),
    ("interactive", {**BUTTONS, "type": ["button"]}, "/type"),
    ("interactive", {**BUTTONS, "x": 1}, ""),
    ("interactive", put(BUTTONS, "/body", ...), "/body/text"),
    ("interactive", put(BUTTONS, "/body/text", "x" * 1025), "/body/text"),
    ("interactive", put(BUTTONS, "/body/text", " "), "/body/text"),
    ("interactive", put(BUTTONS, "/body/text", 1), "/body/text"),
    ("interactive", put(BUTTONS, "/action", ...), "/action"),
    ("interactive", put(BUTTONS, "/action", []), "/action"),
    ("interactive", put(BUTTONS, "/action/buttons", []), "/action/buttons"),
    ("interactive", put(BUTTONS, "/action/buttons", [REPLY] * 4), "/action/buttons"),
    ("interactive", put(BUTTONS, "/action/buttons", [REPLY] * 2), "/action"),
    ("interactive", put(BUTTONS, "/action/buttons/0", {"type": "x"}), "/action/buttons/0"),
    ("interactive", put(BUTTONS, "/action/buttons/0/reply/title", "x" * 21),
     "/action/buttons/0/reply/title"),
    ("interactive", put(BUTTONS, "/action/buttons/0/reply/id", " a"),
     "/action/buttons/0/reply/id"),
    ("interactive", put(BUTTONS, "/action/buttons/0/reply/id", "x" * 257),
     "/action/buttons/0/reply/id"),
    ("interactive", {**BUTTONS, "header": {"type": "text"}}, "/header/text"),
    ("interactive", {**BUTTONS, "header": {"type": "text", "text": "x" * 61}}, "/header/text"),
    ("interactive", {**BUTTONS, "header": {"type": "audio"}}, "/header/type"),
    ("interactive", {**BUTTONS, "header": "x"}, "/header/type"),
    ("interactive", {**BUTTONS, "header": {"type": ["image"]}}, "/header/type"),
    ("interactive", {**BUTTONS, "type": {}, "header": {"type": "image"}}, "/type"),
    ("interactive", {**BUTTONS, "header": {"type": "image", "image": {}}}, "/header/image"),
    ("interactive", {**BUTTONS, "footer": {"text": "x" * 61}}, "/footer/text"),
    ("interactive", {**BUTTONS, "footer": {}}, "/footer/text"),
    ("interactive", {**LIST, "header": {"type": "image", "image": {"id": "1"}}}, "/header/type"),
    ("interactive", put(LIST, "/body/text", "x" * 4097), "/body/text"),
    ("interactive", put(LIST, "/action/button", "x" * 21), "/action/button"),
    ("interactive", put(LIST, "/action/sections", []), "/action/sections"),
    ("interactive", put(LIST, "/action/sections", MANY), "/action/sections"),
    ("interactive", put(LIST, "/action/sections", [{"rows": [ROW]}, {"rows": [ROW]}]),
     "/action/sections/0/title"),
    ("interactive", put(LIST, "/action/sections/0/title", "x" * 25), "/action/sections/0/title"),
    ("interactive", put(LIST, "/action/sections/0/rows", []), "/action/sections/0/rows"),
    ("interactive", put(LIST, "/action/sections/0/rows", [ROW, ROW]), "/action"),
    ("interactive", put(LIST, "/action/sections/0/rows", ELEVEN),
     "/action/sections"),
    ("interactive", put(LIST, "/action/sections/0/rows/0/id", "x" * 201),
     "/action/sections/0/rows/0/id"),
    ("interactive", put(LIST, "/action/sections/0/rows/0/title", "x" * 25),
     "/action/sections/0/rows/0/title"),
    ("interactive", put(LIST, "/action/sections/0/rows/0/description", "x" * 73),
     "/action/sections/0/rows/0/description"),
    ("interactive", put(LINKED, f"{PARAMETERS}/url", "javascript:alert(1)"), f"{PARAMETERS}/url"),
    ("interactive", put(LINKED, f"{PARAMETERS}/display_text", "x" * 21),
     f"{PARAMETERS}/display_text"),
    ("interactive", put(LINKED, "/action/name", "x"), "/action/name"),
    ("interactive", put(FLOW, f"{PARAMETERS}/flow_message_version", 3),
     f"{PARAMETERS}/flow_message_version"),
    ("interactive", put(FLOW, f"{PARAMETERS}/flow_name", "x"), PARAMETERS),
    ("interactive", put(FLOW, f"{PARAMETERS}/flow_cta", "x" * 31), f"{PARAMETERS}/flow_cta"),
    ("interactive", put(PRODUCTS, "/header", ...), "/header"),
    ("interactive", put(PRODUCTS, "/action/catalog_id", ...), "/action/catalog_id"),
    ("interactive", put(PRODUCTS, "/action/sections/0/product_items",
                        [{"product_retailer_id": "p"}] * 31), "/action/sections/0/product_items"),
    ("interactive", {"type": "product", "action": {"catalog_id": "1"}},
     "/action/product_retailer_id"),
    ("location", {}, "/latitude"),
    ("location", {"latitude": 91, "longitude": 0}, "/latitude"),
    ("location", {"latitude": True, "longitude": 0}, "/latitude"),
    ("location", {"latitude": 0, "longitude": "x"}, "/longitude"),
    ("location", {"latitude": 0, "longitude": 0, "name": ""}, "/name"),
    ("location", {"latitude": 0, "longitude": 0, "x": ""}, ""),
    ("contacts", [], ""),
    ("contacts", [{"name": {"formatted_name": "A"}}] * 6, ""),
    ("contacts", [{}], "/0/name/formatted_name"),
    ("contacts", [{"name": {"formatted_name": ""}}], "/0/name/formatted_name"),
    ("contacts", [{"name": {"formatted_name": "A"}, "phones": "x"}], "/0/phones"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "content", "place"), BAD)
def test_what_is_wrong_is_pointed_at(kind: str, content: Any, place: str) -> None:
    faults = parse_message(of(kind, content))
    assert f"/message/{kind}{place}" in [fault.pointer for fault in faults], faults
    is_link = place == "/link"
    assert {fault.code for fault in faults} == {"bad_media_url" if is_link else "validation_failed"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "header",
                    "body",
                    "footer",
                    "action",
                    "text",
                    "buttons",
                    "reply",
                    "id",
                    "title",
                    "sections",
                    "rows",
                    "parameters",
                    "name",
                    "link",
                    "caption",
                    "image",
                    "product_items",
                    "latitude",
                    "phones",
                    "formatted_name",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(st.sampled_from(KINDS), JSON, st.sampled_from([BUTTONS, LIST, LINKED, FLOW, PRODUCTS]))
def test_no_json_is_too_odd(kind: str, content: Any, base: dict[str, Any]) -> None:
    if kind == "interactive" and isinstance(content, dict):
        content = {**base, **content}
    try:
        message = of(kind, content)
    except msgspec.ValidationError:
        return
    if not parse_message(message):
        assert json.loads(body_for(message)(1, None, "z"))["type"] == kind


@pytest.mark.parametrize("kind", ["reaction", "fax", "IMAGE"])
def test_kinds_that_are_not_offered(kind: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        of(kind, {"message_id": "x", "emoji": "y"})


def test_a_message_has_an_end() -> None:
    row = {"name": {"formatted_name": "A"}, "org": {"company": "x" * 300_000}}
    assert [fault.pointer for fault in parse_message(of("contacts", [row]))] == ["/message"]


@pytest.mark.parametrize(
    ("parameter", "is_good"),
    [
        ({"type": "currency", "currency": {"fallback_value": "1", "code": "EUR",
                                           "amount_1000": 1000}}, True),
        ({"type": "currency", "currency": {"fallback_value": "1", "code": "EUR",
                                           "amount_1000": 1.5}}, False),
        ({"type": "currency", "currency": {"code": "EUR", "amount_1000": 1}}, False),
        ({"type": "currency"}, False),
        ({"type": "payload", "payload": "x"}, True),
        ({"type": "payload"}, False),
        ({"type": "payload", "payload": 1}, False),
        ({"type": "coupon_code", "coupon_code": ""}, False),
        ({"type": "date_time", "date_time": {"fallback_value": "today"}}, True),
        ({"type": "date_time"}, False),
        ({"type": "document", "document": {"link": LINK, "filename": "a.pdf"}}, True),
        ({"type": "document", "document": {"link": LINK, "filename": 1}}, False),
    ],
)  # fmt: skip
def test_parameters_that_graph_would_refuse(parameter: dict[str, Any], is_good: bool) -> None:  # noqa: FBT001 - a test's
    component = {"type": "body", "parameters": [parameter]}
    template = {"name": "a", "language_code": "en", "components": [component]}
    assert (parse_message(of("template", template)) == []) is is_good
