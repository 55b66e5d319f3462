"""What Graph is sent: one recipient's parts filled in, everything else as submitted."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import wire
from shared.links import is_safe_link
from shared.message import (
    Component,
    Message,
    Template,
    TemplateMessage,
    Text,
    TextMessage,
    body_for,
    message_of,
    parse_message,
    placeholders,
)


def template(*parameters: dict[str, Any], **fields: Any) -> TemplateMessage:
    component = Component(type="body", parameters=list(parameters))
    return TemplateMessage(Template("order_update", "en_US", [component], **fields))


def test_the_guides_template_becomes_graphs() -> None:
    message = template({"type": "text", "text": "John Doe"})
    assert json.loads(body_for(message)(15550000001, None, "d1.x")) == {
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        "to": "+15550000001",
        "type": "template",
        "template": {
            "name": "order_update",
            "language": {"code": "en_US"},
            "components": [{"type": "body", "parameters": [{"type": "text", "text": "John Doe"}]}],
        },
        "biz_opaque_callback_data": "d1.x",
    }


@given(st.text(), st.text(), st.text())
def test_any_text_and_any_values_survive(text: str, one: str, two: str) -> None:
    message = TextMessage(Text(text.replace("{", "(") + "{{a}}-{{b}}{{a}}"))
    body = json.loads(body_for(message)(1, [one, two], "z"))
    assert body["text"]["body"] == f"{text.replace('{', '(')}{one}-{two}{one}"
    plain = json.loads(body_for(message)(1, None, "z"))
    assert plain["text"]["body"] == message.text.body


def test_values_are_not_searched_again_and_order_is_that_of_appearance() -> None:
    message = template(
        {"type": "text", "text": "{{b}} {{a}}", "parameter_name": "x"},
        {"type": "text", "text": "{{a}}"},
    )
    assert placeholders(message) == ["b", "a"]
    body = json.loads(body_for(message)(1, ["{{a}}", "2"], "z"))
    texts = [p["text"] for p in body["template"]["components"][0]["parameters"]]
    assert texts == ["{{a}} 2", "2"]


def test_an_index_is_sent_as_a_string() -> None:
    button = Component("button", [{"type": "payload", "payload": "x"}], "quick_reply", 0)
    message = TemplateMessage(Template("a", "en", [button]))
    assert parse_message(message) == []
    body = json.loads(body_for(message)(1, None, "z"))
    assert body["template"]["components"][0]["index"] == "0"


def test_a_stored_message_is_read_back() -> None:
    for message in (TextMessage(Text("a")), template({"type": "text", "text": "b"})):
        kept: Message = message
        assert message_of(wire.encode(kept)) == message


@pytest.mark.parametrize("length", [4096, 4097])
def test_a_body_has_4096_code_points(length: int) -> None:
    assert bool(parse_message(TextMessage(Text("\U0001f600" * length)))) is (length > 4096)


@pytest.mark.parametrize("text", ["", "x" * 1025, "a\nb", "a\tb", "a     b", "\x01"])
def test_a_parameter_that_graph_would_refuse_is_named(text: str) -> None:
    faults = parse_message(template({"type": "text", "text": text}))
    assert [f.pointer for f in faults] == ["/message/template/components/0/parameters/0/text"]


@pytest.mark.parametrize(
    "component",
    [
        Component("footer"),
        Component("body", [{"type": "text", "text": "a"}] * 101),
        Component("body", [{"type": "emoji"}]),
        Component("body", [{"type": "text"}]),
        Component("body", [{}]),
        Component("button", [{"type": "text", "text": "a"}]),
        Component("header", [{"type": "image", "image": {"id": "1", "link": "https://a.b/c"}}]),
    ],
)
def test_a_component_that_is_not_one(component: Component) -> None:
    assert parse_message(TemplateMessage(Template("a", "en", [component])))


def test_eleven_components_are_too_many() -> None:
    faults = parse_message(TemplateMessage(Template("a", "en", [Component("body")] * 11)))
    assert [f.pointer for f in faults] == ["/message/template/components"]


@pytest.mark.parametrize(
    "link",
    """http://example.com/a https://127.0.0.1/a https://2130706433/a https://0x7f000001/a
    https://0177.0.0.1/a https://[::1]/a https://[::ffff:127.0.0.1]/a https://169.254.169.254/a
    https://localhost/a https://a.localhost/a https://db.internal/a https://printer.local/a
    https://user@example.com/a https://user:p@example.com/a https://127.1/a https://0/a
    https://1.2.3.4./a javascript:alert(1) file:///etc/passwd data:text/html,x ftp://a.b/c
    https:///a https://example.com:99999/a https://example/a //example.com/a https://-a.com/a
    https://a_b.com/a https://ex%61mple.com/a https://\u24d4xample.com/a""".split(),  # noqa: SIM905
)
def test_a_link_that_meta_may_not_be_given(link: str) -> None:
    assert not is_safe_link(link)
    parameter = {"type": "image", "image": {"link": link}}
    faults = parse_message(TemplateMessage(Template("a", "en", [Component("header", [parameter])])))
    assert [f.code for f in faults] == ["bad_media_url"]


def test_a_public_link_passes() -> None:
    assert is_safe_link("https://cdn.example.com/a/b.png?v=1")
    assert not is_safe_link("https://example.com/" + "a" * 3000)


def test_another_kind_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        message_of(b'{"kind":"fax"}')
