"""The OpenAPI document says what the routes and structs say, and its examples are true."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from api.app import ROUTES
from api.examples import EXAMPLES
from api.openapi import OPERATIONS, PARAMETERS, document
from api.reference import page

MADE = document(ROUTES, "0.1.0", "https://example.org")
PAGES = (
    "/",
    "/docs",
    "/errors/",
    "/jobs/",
    "/login",
    "/openapi.json",
    "/static/",
    "/livez",
    "/readyz",
)


def refs(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(refs(inner) for inner in value.values()))
    return set().union(*(refs(inner) for inner in value)) if isinstance(value, list) else set()


def test_every_route_is_in_it_and_nothing_else() -> None:
    have = {
        f"{route.method} {route.path}"
        for route in ROUTES
        if route.path.startswith(("/api/", "/realtime/", "/webhooks/"))
    }
    assert have == set(OPERATIONS)
    rest = [route.path for route in ROUTES if f"{route.method} {route.path}" not in OPERATIONS]
    assert all(path == "/" or path.startswith(PAGES[1:]) for path in rest), rest


def test_every_reference_leads_somewhere() -> None:
    for ref in refs(MADE):
        place: Any = MADE
        for step in ref.removeprefix("#/").split("/"):
            place = place[step]
        assert place


def test_ids_are_unique_and_each_operation_says_what_it_does() -> None:
    operations = [o for methods in MADE["paths"].values() for o in methods.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    for operation in operations:
        assert operation["summary"].endswith("."), operation["operationId"]
        assert not operation["summary"].startswith(("GET", "POST")), operation["summary"]


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_an_example_is_one(kind: type) -> None:
    msgspec.convert(EXAMPLES[kind], kind, strict=True)
    fields = {field.encode_name for field in msgspec.structs.fields(kind)}
    assert EXAMPLES[kind].keys() <= fields


def test_each_body_in_and_out_has_an_example() -> None:
    used = {kind for o in OPERATIONS.values() for kind in (o.takes, o.gives) if kind is not None}
    assert not {kind.__name__ for kind in used - EXAMPLES.keys()}


def test_patterns_are_spelled_for_javascript_and_docstrings_reach_the_fields() -> None:
    text = json.dumps(MADE)
    assert r"\\A" not in text
    assert r"\\Z" not in text
    rate = MADE["components"]["schemas"]["Progress"]["properties"]["rate"]
    assert rate["description"] == "moving average, messages per second."


def test_the_page_needs_no_script_and_shows_every_path() -> None:
    html = page(MADE, "/static/app.css")
    assert "<script" not in html
    assert "style=" not in html
    for path in MADE["paths"]:
        assert path.replace("&", "&amp;") in html


@pytest.mark.parametrize("name", ["state", "outcome", "receipt", "code", "expand"])
def test_a_comma_list_is_described_as_it_is_read(name: str) -> None:
    pattern = re.compile(PARAMETERS[name][0]["pattern"])
    word = {"state": "running", "code": "131026", "expand": "errors", "receipt": "held"}
    one = word.get(name, "pending")
    assert pattern.search(one)
    assert pattern.search(f"{one},{one}")
    for bad in (
        "",
        ",",
        f"{one},",
        f",{one}",
        f"{one} {one}",
        "x",
        f"{one},x",
        f"{one},{one}," * 20,
    ):
        assert not pattern.search(bad), bad


def test_what_must_be_there_and_what_was_there_already_are_said() -> None:
    follow = MADE["paths"]["/realtime/bulk"]["get"]
    required = {word["name"] for word in follow["parameters"] if word.get("required")}
    assert required == {"jobs"}
    assert "422" in follow["responses"]
    assert "422" not in MADE["paths"]["/realtime/bulk/{jobId}"]["get"]["responses"]
    assert {"200", "201"} <= MADE["paths"]["/api/suppressions"]["post"]["responses"].keys()
