"""What Graph says of a template, and what it refuses: decided without asking anybody."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shared.definitions import (
    Definition,
    faults_of,
    filled_slots,
    is_marketing,
    missing_params,
    page_of,
    rendered,
)
from shared.message import Component, Template, TemplateMessage

URL = {"type": "URL", "text": "Track", "url": "https://example.com/{{1}}"}
REPLY = {"type": "QUICK_REPLY", "text": "Stop"}


def told(**changes: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "name": "order_update",
        "language": "en_US",
        "status": "APPROVED",
        "category": "UTILITY",
        "parameter_format": "POSITIONAL",
        "components": [{"type": "BODY", "text": "Order {{1}} left {{2}}."}],
        **changes,
    }


def defined(*components: dict[str, Any], **changes: Any) -> Definition:
    if components:
        changes["components"] = list(components)
    (found,), after = page_of(msgspec.json.encode({"data": [told(**changes)]}))
    assert after == ""
    return found


def texts(*values: str, names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    named = [{"parameter_name": name} for name in names] or [{}] * len(values)
    return [{"type": "text", "text": v, **n} for v, n in zip(values, named, strict=True)]


def message(*components: Component) -> Template:
    return Template("order_update", "en_US", list(components))


def body(*values: str, names: tuple[str, ...] = ()) -> Component:
    return Component("body", texts(*values, names=names))


def test_a_page_is_read_with_the_cursor_of_the_next_and_not_its_address() -> None:
    page = {
        "data": [told(quality_score={"score": "GREEN", "date": 1})],
        "paging": {"cursors": {"before": "a", "after": "b"}, "next": "https://elsewhere/x"},
    }
    (found,), after = page_of(msgspec.json.encode(page))
    assert (found.quality, found.params, after) == ("GREEN", ["1", "2"], "b")
    del page["paging"]["next"]  # type: ignore[attr-defined]
    assert page_of(msgspec.json.encode(page))[1] == ""


def test_a_name_that_no_message_could_ask_for_is_left_out() -> None:
    data = [told(name="a\u0000b"), told(language="../x"), told(name="ok")]
    found, _ = page_of(msgspec.json.encode({"data": data}))
    assert [each.name for each in found] == ["ok"]


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"data":[{"name":1}]}', b"\xff"])
def test_what_is_no_page_is_refused(raw: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        page_of(raw)


def test_the_form_of_parameters_is_seen_where_graph_leaves_it_out() -> None:
    components = [{"type": "BODY", "text": "Hi {{first_name}}"}]
    assert defined(components=components, parameter_format="").format == "NAMED"
    assert defined(parameter_format="").format == "POSITIONAL"


def test_what_a_template_asks_for_is_named_by_its_place() -> None:
    found = defined(
        {"type": "HEADER", "format": "IMAGE"},
        {"type": "BODY", "text": "{{1}} and {{2}} and {{1}}"},
        {"type": "FOOTER", "text": "Bye"},
        {"type": "BUTTONS", "buttons": [REPLY, URL]},
    )
    assert found.params == ["header.image", "1", "2", "button.1"]
    assert missing_params(message(body("a")), found) == ["header.image", "2", "button.1"]


def test_a_category_that_is_not_known_counts_as_marketing() -> None:
    assert [is_marketing(c) for c in ("UTILITY", "AUTHENTICATION", "MARKETING", "", None)] == [
        False, False, True, True, True,
    ]  # fmt: skip


POSITIONAL = defined()
NAMED = defined({"type": "BODY", "text": "{{a}} {{b}}"}, parameter_format="NAMED")
IMAGE = defined({"type": "HEADER", "format": "IMAGE"}, {"type": "BODY", "text": "Look"})
BUTTONS = defined(
    {"type": "BODY", "text": "Look"},
    {"type": "BUTTONS", "buttons": [REPLY, URL, {"type": "PHONE_NUMBER", "text": "Call"},
                                    {"type": "URL", "text": "Home", "url": "https://x.org"}]},
)  # fmt: skip
LINK = {"type": "image", "image": {"link": "https://x.org/a.png"}}


def button(index: int, kind: str, *parameters: dict[str, Any]) -> Component:
    return Component("button", list(parameters), kind, str(index))


@pytest.mark.parametrize(
    ("found", "parts", "said"),
    [
        (POSITIONAL, [body("a", "b")], []),
        (POSITIONAL, [body("a")], ["needs the parameter 2"]),
        (POSITIONAL, [], ["parameter 1", "parameter 2"]),
        (POSITIONAL, [body("a", "b", "c")], ["3 parameters given, the body takes 2"]),
        (POSITIONAL, [body("a", "b"), body("c")], ["a second body"]),
        (POSITIONAL, [body("a", "b"), Component("header", texts("x"))], ["takes no parameter"]),
        (POSITIONAL, [Component("body", [LINK, *texts("x")])], ["takes text alone"]),
        (NAMED, [body("x", "y", names=("b", "a"))], []),
        (NAMED, [body("x", names=("a",))], ["needs the parameter b"]),
        (NAMED, [body("x", "y")], ["parameter a", "parameter b", "needs its parameter_name"]),
        (NAMED, [body("x", "y", "z", names=("a", "b", "c"))], ["each of these names once: a, b"]),
        (NAMED, [body("x", "y", "z", names=("a", "b", "b"))], ["each of these names once"]),
        (IMAGE, [Component("header", [LINK])], []),
        (IMAGE, [], ["header.image"]),
        (IMAGE, [Component("header", texts("x"))], ["one parameter of type image"]),
        (BUTTONS, [button(1, "url", *texts("7"))], []),
        (BUTTONS, [], ["button.1"]),
        (BUTTONS, [button(1, "url")], ["one parameter of type text"]),
        (BUTTONS, [button(1, "quick_reply")], ["button 1 is of sub_type url"]),
        (BUTTONS, [button(1, "url", *texts("7")), button(3, "url", *texts("8"))],
         ["button 3 takes no parameter"]),
        (BUTTONS, [button(1, "url", *texts("7")), button(4, "url")], ["4 buttons"]),
        (BUTTONS, [button(1, "url", *texts("7")), button(2, "url")], ["it takes no parameter"]),
        (BUTTONS, [button(1, "url", *texts("7")),
                   button(0, "quick_reply", {"type": "payload", "payload": "stop"})], []),
        (defined(status="PAUSED"), [], ["Meta has this template as PAUSED"]),
    ],
)  # fmt: skip
def test_a_message_fits_or_is_told_why_not(
    found: Definition, parts: list[Component], said: list[str]
) -> None:
    faults = faults_of(message(*parts), found)
    assert len(faults) == len(said), faults
    for fault, words in zip(faults, said, strict=True):
        assert words in fault.detail
        assert fault.code == "bad_template"
        assert fault.pointer.startswith("/message/template/")


def test_a_code_is_sent_in_the_body_and_on_the_button() -> None:
    found = defined(
        {"type": "BODY", "text": "*{{1}}* is your code."},
        {"type": "BUTTONS", "buttons": [{"type": "OTP", "otp_type": "COPY_CODE", "text": "Copy"}]},
        category="AUTHENTICATION",
    )
    assert faults_of(message(body("1"), button(0, "url", *texts("1"))), found) == []
    assert missing_params(message(body("1")), found) == ["button.0"]


def test_a_recipient_reads_the_template_with_his_values_filled_in_once() -> None:
    found = defined(
        {"type": "HEADER", "format": "TEXT", "text": "Hi {{name}}"},
        {"type": "BODY", "text": "{{name}} pays {{price}} {{other}}"},
        {"type": "FOOTER", "text": "Bye {{name}}"},
        parameter_format="NAMED",
    )
    price = {"type": "currency", "parameter_name": "price",
             "currency": {"fallback_value": "3 €", "code": "EUR", "amount_1000": 3000}}  # fmt: skip
    given = TemplateMessage(
        message(
            Component("header", texts("{{who}}", names=("name",))),
            Component("body", [*texts("{{who}}", names=("name",)), price]),
        )
    )
    assert rendered(given, found, ["who"], ["{{price}}"]) == (
        "Hi {{price}}\n{{price}} pays 3 € {{other}}\nBye {{name}}"
    )
    assert rendered(given, found, ["who"], None).startswith("Hi {{who}}\n")


def test_what_is_new_at_meta_is_neither_refused_nor_in_the_way_of_others() -> None:
    strange: list[Any] = [
        told(name="a", components=[{"type": "BODY", "text": 7}]),
        told(name="b", components=None, quality_score=None, parameter_format=None),
        told(name="c", components=[{"type": "CAROUSEL", "cards": []}, {"type": "BODY"}]),
        told(name="d", components=[{"type": "HEADER", "format": "GIF", "text": None}]),
        told(name="e", components=[{"type": "BUTTONS", "buttons": [{"type": "NEW"}, URL]}]),
    ]
    found, _ = page_of(msgspec.json.encode({"data": strange}))
    assert [each.others for each in found] == [
        ["unreadable"], [], ["carousel"], ["header.gif"], ["button.0"],
    ]  # fmt: skip
    for each in (found[0], found[3]):
        assert faults_of(message(Component("header", [LINK])), each) == []
    parts = (button(0, "quick_reply"), button(1, "url", *texts("7")))
    assert faults_of(message(*parts), found[4]) == []


def test_the_whole_text_counts_and_not_the_parameter_alone() -> None:
    named = defined(
        {"type": "HEADER", "format": "TEXT", "text": "For {{who}}"},
        {"type": "BODY", "text": "{{a}} and {{a}}: {{b}}"},
        parameter_format="NAMED",
    )
    head = Component("header", texts("x" * 57, names=("who",)))
    told = message(head, body("{{v}}", "y", names=("a", "b")))
    (fault,) = faults_of(told, named)
    assert (fault.pointer, fault.code) == ("/message/template/components/0", "bad_template")
    assert "more than 60" in fault.detail
    # What a recipient's values will fill is not counted yet, and stands where it will be.
    assert [slot.text for slot in filled_slots(told, named)][1] == "{{v}} and {{v}}: y"
    short = Component("header", texts("x" * 56, names=("who",)))
    assert faults_of(message(short, body("z", "y", names=("a", "b"))), named) == []
    money = {"type": "currency", "currency": {"fallback_value": "5 €", "code": "EUR"}}
    (slot,) = filled_slots(message(Component("body", [money, *texts("x")])), defined())
    assert (slot.text, slot.limit) == ("Order 5 € left x.", 1024)
