"""Every kind of message over HTTP: accepted as it is, or refused with the place."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.desk import NUMBERS, Api, problem

LINK = "https://cdn.example.com/a.png"
KINDS: list[dict[str, Any]] = [
    {"kind": "image", "image": {"link": LINK, "caption": "Hi {{name}},\nlook"}},
    {"kind": "document", "document": {"id": "1", "filename": "a.pdf"}},
    {"kind": "location", "location": {"latitude": 1, "longitude": 2}},
    {"kind": "contacts", "contacts": [{"name": {"formatted_name": "Ann"}}]},
    {"kind": "interactive", "interactive": {
        "type": "button", "body": {"text": "Zoë?\n{{name}}"},
        "action": {"buttons": [{"type": "reply", "reply": {"id": "y", "title": "Yes"}}]}}},
]  # fmt: skip


@pytest.mark.parametrize("message", KINDS)
async def test_a_kind_is_accepted_and_shown(api: Api, message: dict[str, Any]) -> None:
    rows = [{"to": number, "vars": {"name": f"N{number[-1]}"}} for number in NUMBERS]
    response = await api.send(message=message, recipients=rows)
    body = await response.json()
    assert response.status == 202, body
    job = await (await api.ask("ann", "GET", body["links"]["self"])).json()
    assert (job["kind"], job["template"]) == (message["kind"], None)
    stored = await api.made.queue.message(body["jobId"])
    assert stored is not None


async def test_filled_captions_keep_their_limit_and_name_the_row(api: Api) -> None:
    message = {"kind": "image", "image": {"id": "1", "caption": "x" * 1000 + "{{name}}"}}
    rows = [{"to": NUMBERS[0], "vars": {"name": "y" * 24}},
            {"to": NUMBERS[1], "vars": {"name": "y" * 25}}, NUMBERS[2]]  # fmt: skip
    body = await problem(
        await api.send(message=message, recipients=rows), 422, "invalid_recipients"
    )
    assert [(row["row"], row["code"]) for row in body["errors"]] == [
        (1, "too_long"),
        (2, "missing_variable"),
    ]


@pytest.mark.parametrize(
    ("message", "code", "pointer"),
    [
        ({"kind": "image"}, "validation_failed", "/message/image"),
        ({"kind": "image", "image": []}, "validation_failed", "/message/image"),
        ({"kind": "image", "image": {"id": "1"}, "text": {}}, "unknown_field", "/message/text"),
        ({"kind": "image", "image": {"link": "https://10.0.0.1/a"}}, "bad_media_url",
         "/message/image/link"),
        ({"kind": "image", "image": {"id": "1", "caption": "a\u0007"}}, "control_char",
         "/message/image/caption"),
        ({"kind": "document", "document": {"id": "1", "filename": "a\nb"}}, "control_char",
         "/message/document/filename"),
        ({"kind": "contacts", "contacts": {}}, "validation_failed", "/message/contacts"),
        ({"kind": "contacts", "contacts": [1]}, "validation_failed", "/message/contacts/0"),
        ({"kind": "reaction", "reaction": {}}, "validation_failed", "/message/kind"),
        ({"kind": "text", "text": {"body": "x"}, "image": {}}, "unknown_field", "/message/image"),
    ],
)  # fmt: skip
async def test_a_kind_is_refused(
    api: Api, message: dict[str, Any], code: str, pointer: str
) -> None:
    body = await problem(await api.send(message=message), 422, code)
    assert body["errors"][0]["pointer"] == pointer
    listed = await (await api.ask("ann", "GET", "/api/bulk/jobs")).json()
    assert listed["data"] == []


async def test_breaks_are_for_texts_whatever_else_the_body_holds(api: Api) -> None:
    for name in ("a\nb", "a\tb", "é\nb"):
        await problem(await api.send(name=name), 422, "control_char")
    message = {"kind": "text", "text": {"body": "Zoë\n\tand"}}
    assert (await api.send(message=message, name="é")).status == 202
