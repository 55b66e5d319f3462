"""Templates over HTTP: what is known of them, and what is refused by it before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from shared.connect import open_postgres
from shared.definitions import Button, Definition
from shared.models import State
from shared.queue import Queue
from shared.templates import Templates
from tests.integration.desk import NUMBERS, TEXT, Api, come_to, end, problem
from worker.publisher import spec_of

Eventually = Callable[..., Awaitable[Any]]
WABA = "77"
UTILITY = Definition("order_update", "en_US", "UTILITY", "APPROVED", "POSITIONAL",
                     body="Your order {{1}} left.")  # fmt: skip
SALE = Definition("spring_sale", "en_US", "MARKETING", "APPROVED", "NAMED", "GREEN", "text",
                  "Hi {{first_name}}", "Use {{code}}", "Bye",
                  [Button("url", "Go", is_needed=True)])  # fmt: skip
PAUSED = Definition("paused_offer", "en_US", "MARKETING", "PAUSED", "POSITIONAL", body="Hi")


def order(text: str = "7", name: str = "order_update", language: str = "en_US") -> dict[str, Any]:
    parameters = [{"type": "text", "text": text}]
    components = [{"type": "body", "parameters": parameters}]
    template = {"name": name, "language_code": language, "components": components}
    return {"kind": "template", "template": template}


@pytest.fixture
async def known(api: Api) -> AsyncIterator[Templates]:
    """An account whose list was read just now."""
    pool = await open_postgres(api.made.settings)
    await pool.execute("UPDATE senders SET waba_id = $1", WABA)
    templates = Templates(pool)
    assert await templates.take(WABA, 60)
    await templates.keep(WABA, [UTILITY, SALE, PAUSED], 0, 300)
    yield templates
    await pool.close()


async def is_of_age(api: Api, age_s: int) -> None:
    pool = api.made.archive._pool
    await pool.execute(
        "UPDATE template_lists SET synced_at = now() - make_interval(secs => $1)", age_s
    )


async def look(api: Api, **fields: Any) -> dict[str, Any]:
    body = {"recipients": NUMBERS, "message": order(), **fields}
    response = await api.ask("ann", "POST", "/api/bulk/preflight", json=body)
    assert response.status == 200, await response.text()
    return dict(await response.json())


@pytest.mark.usefixtures("known")
async def test_the_list_is_shown_newest_first(api: Api) -> None:
    first = await (await api.ask("ann", "GET", "/api/templates?limit=2")).json()
    assert [row["name"] for row in first["data"]] == ["paused_offer", "spring_sale"]
    assert first["data"][1] == {
        "name": "spring_sale", "language_code": "en_US", "category": "MARKETING",
        "status": "APPROVED", "format": "NAMED", "params": ["first_name", "code", "button.0"],
        "quality": "GREEN", "synced_at": first["synced_at"],
    }  # fmt: skip
    assert first["why"] is None
    rest = await api.ask("ben", "GET", f"/api/templates?limit=2&cursor={first['next_cursor']}")
    await problem(rest, 422, "bad_cursor")
    path = f"/api/templates?limit=2&cursor={first['next_cursor']}"
    rest = await api.ask("ann", "GET", path)
    assert [row["name"] for row in (await rest.json())["data"]] == ["order_update"]
    await problem(await api.ask("ann", "GET", "/api/templates?sender=x"), 422, "no_sender")
    await problem(await api.ask("ann", "GET", "/api/templates?x=1"), 422, "unknown_parameter")


async def test_a_sender_without_an_account_is_told_so(api: Api) -> None:
    shown = await (await api.ask("ann", "GET", "/api/templates?sender=main")).json()
    assert (shown["data"], shown["synced_at"]) == ([], None)
    assert "waba_id" in shown["why"]
    await problem(await api.ask("ann", "POST", "/api/templates/sync"), 422, "no_sender")
    told = (await look(api))["template"]
    assert (told["checked"], "waba_id" in told["why"]) == (False, True)


async def test_a_sync_is_asked_for_and_served_by_whoever_fetches(
    api: Api, known: Templates
) -> None:
    response = await api.ask("ann", "POST", "/api/templates/sync?sender=main")
    asked = await response.json()
    assert (response.status, asked["sender"]) == (202, "main")
    assert asked["asked_at"].endswith("Z")
    assert await known.due([WABA]) == [WABA]


CASES: list[tuple[dict[str, Any], str, str]] = [
    (order(name="nobodys"), "/message/template/name", "no template of this name"),
    (order(language="de"), "/message/template/language_code", "in en_US only"),
    (order(name="paused_offer"), "/message/template/name", "as PAUSED"),
    (order(name="spring_sale"), "/message/template/components", "first_name"),
    ({"kind": "template", "template": {"name": "order_update", "language_code": "en_US"}},
     "/message/template/components", "the parameter 1"),
]  # fmt: skip


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(("message", "pointer", "words"), CASES, ids=lambda case: str(case)[:20])
async def test_what_graph_would_refuse_is_refused_before(
    api: Api, message: dict[str, Any], pointer: str, words: str
) -> None:
    told = await problem(await api.send(message=message), 422, "bad_template")
    assert told["errors"][0]["pointer"] == pointer
    assert words in told["errors"][0]["detail"]
    seen = await look(api, message=message)
    assert (seen["ok"], seen["template"]["checked"]) == (False, True)
    rows = {(row["pointer"], row["code"], row["detail"]) for row in seen["problems"]}
    assert {(e["pointer"], e["code"], e["detail"]) for e in told["errors"]} <= rows
    listed = await (await api.ask("ann", "GET", "/api/bulk/jobs")).json()
    assert listed["data"] == []


async def test_a_message_that_fits_is_shown_as_it_will_be_read(api: Api, known: Templates) -> None:
    rows = [{"to": number, "vars": {"n": str(at)}} for at, number in enumerate(NUMBERS)]
    seen = await look(api, recipients=rows, message=order("#{{n}}"))
    assert seen["ok"]
    assert seen["template"] == {
        "checked": True, "status": "APPROVED", "category": "UTILITY", "format": "POSITIONAL",
        "missing_params": [], "why": None,
    }  # fmt: skip
    assert [row["text"] for row in seen["preview"]] == [f"Your order #{n} left." for n in range(3)]
    seen = await look(api, message=order(name="spring_sale"))
    assert seen["template"]["missing_params"] == ["first_name", "code", "button.0"]
    assert (await look(api, message=TEXT))["template"] is None
    cards = msgspec.structs.replace(UTILITY, others=["carousel"])
    await known.keep(WABA, [cards], 0, 300)
    seen = await look(api)
    assert (seen["ok"], seen["template"]["checked"]) == (True, False)
    assert "carousel" in seen["template"]["why"]
    bad = [{"to": NUMBERS[0], "vars": {"n": "a\tb"}}, {"to": NUMBERS[1], "vars": {"m": "x"}}]
    told = await problem(
        await api.send(recipients=bad, message=order("#{{n}}")), 422, "invalid_recipients"
    )
    assert [row["code"] for row in told["errors"]] == ["param_whitespace", "missing_variable"]


async def test_what_is_too_long_once_it_is_filled_in_is_refused_before(
    api: Api, known: Templates
) -> None:
    around = len("Your order  left.")
    assert (await api.send(message=order("7" * (1024 - around)))).status == 202
    told = await problem(await api.send(message=order("7" * (1025 - around))), 422, "bad_template")
    assert told["errors"][0]["pointer"] == "/message/template/components/0"
    assert "more than 1024" in told["errors"][0]["detail"]
    rows = [{"to": number, "vars": {"n": "7" * (1023 - around + at)}}
            for at, number in enumerate(NUMBERS)]  # fmt: skip
    send = {"recipients": rows, "message": order("{{n}}")}
    told = await problem(await api.send(**send), 422, "invalid_recipients")
    (row,) = told["errors"]
    assert (row["pointer"], row["code"]) == ("/recipients/2/vars", "too_long")
    seen = await look(api, **send)
    assert (seen["ok"], seen["rows"]["invalid"], seen["problems"]) == (False, 1, told["errors"])
    accepted = await (await api.send(**send, on_invalid="skip")).json()
    assert accepted["intake"]["accepted"] == 2
    body = {"language_code": "en_US", "components": send["message"]["template"]["components"],
            "vars": rows[2]["vars"]}  # fmt: skip
    path = "/api/templates/order_update/preview"
    shown = await (await api.ask("ann", "POST", path, json=body)).json()
    assert [row["code"] for row in shown["problems"]] == ["too_long"]
    # What is not known well refuses nobody; what does not fit at all is said as such.
    assert not (await look(api, recipients=rows, message=order("{{n}}", "spring_sale")))["ok"]
    await known.keep(WABA, [UTILITY], 0, 300)
    await is_of_age(api, 601)
    assert (await api.send(**send)).status == 202


async def test_an_old_list_refuses_nothing_and_says_so(api: Api, known: Templates) -> None:
    await is_of_age(api, 601)
    message = order(name="nobodys")
    assert (await api.send(message=message)).status == 202
    shown = await (await api.ask("ann", "GET", "/api/templates")).json()
    assert "no worker renews it" in shown["why"]
    # Nobody may ask for a while: then nobody waits for it either.
    await known.missed(WABA, "Graph refuses the list (code 80008)", 60, 60)
    seen = await look(api, message=order(name="paused_offer"))
    assert (seen["ok"], seen["template"]["checked"]) == (True, False)
    assert seen["template"]["why"] == "Graph refuses the list (code 80008)"
    assert (seen["template"]["status"], seen["template"]["category"]) == ("PAUSED", "MARKETING")


async def test_preflight_waits_for_a_fresh_list(
    api: Api, known: Templates, eventually: Eventually
) -> None:
    await is_of_age(api, 301)

    async def serve() -> None:
        await eventually(lambda: known.due([WABA]))
        assert await known.take(WABA, 60)
        changed = msgspec.structs.replace(UTILITY, status="DISABLED")
        await known.keep(WABA, [changed], 0, 300)

    serving = asyncio.create_task(serve())
    seen = await look(api)
    await serving
    assert (seen["ok"], seen["template"]["status"]) == (False, "DISABLED")
    await problem(await api.send(message=order()), 422, "bad_template")


async def test_the_category_of_now_is_kept_with_the_job(
    api: Api, known: Templates, queue: Queue
) -> None:
    async def category_of(response: Any) -> tuple[str, str | None, str]:
        job = str((await response.json())["jobId"])
        row, found = await api.made.archive.job(job, None), await queue.message(job)
        assert row is not None
        assert found is not None
        # As it is told to a Redis that has lost it.
        assert spec_of(row, row.reserved).category == found.category
        return job, row.template_category, found.category

    job, *kept = await category_of(await api.send(message=order()))
    assert kept == ["UTILITY", "UTILITY"]
    _, *kept = await category_of(await api.send(message=TEXT))
    assert kept == [None, ""]
    await known.keep(WABA, [], 0, 300)
    await come_to(api, job, *((n, State.FAILED, 131026 if n else 131000) for n in range(3)))
    await end(api, job)
    response = await api.ask("ann", "POST", f"/api/bulk/jobs/{job}/retry", json={})
    assert response.status == 202, await response.text()
    # Meta no longer has it: what the parent was is the next best guess.
    assert (await category_of(response))[1:] == ("UTILITY", "UTILITY")


@pytest.mark.usefixtures("known")
async def test_only_marketing_is_counted_as_stopped_by_a_wish_for_none(api: Api) -> None:
    body = {"phone": NUMBERS[0], "scope": "marketing"}
    assert (await api.ask("ann", "POST", "/api/suppressions", json=body)).status == 201
    for message, count in ((order(), 0), (order(name="paused_offer"), 1), (TEXT, 0)):
        assert (await look(api, message=message))["rows"]["suppressed"] == count


@pytest.mark.usefixtures("known")
async def test_one_row_is_rendered(api: Api) -> None:
    async def shown(name: str, **body: Any) -> Any:
        body = {"language_code": "en_US", **body}
        return await api.ask("ann", "POST", f"/api/templates/{name}/preview", json=body)

    components = order("#{{n}} {{m}}")["template"]["components"]
    body = await (await shown("order_update", components=components, vars={"n": "7"})).json()
    assert body["text"] == "Your order #7 {{m}} left."
    assert [(row["pointer"], row["code"]) for row in body["problems"]] == [
        ("/vars/m", "missing_variable")
    ]
    body = await (await shown("spring_sale")).json()
    assert body["text"] == "Hi {{first_name}}\nUse {{code}}\nBye"
    assert body["missing_params"] == ["first_name", "code", "button.0"]
    body = await (await shown("order_update", components=components, vars={"n": "     "})).json()
    assert "param_whitespace" in {row["code"] for row in body["problems"]}
    await problem(await shown("nobodys"), 404, "not_found")
    await problem(await shown("order_update", language_code="de"), 404, "not_found")
    await problem(await shown("ORDER"), 404, "not_found")
    wrong = [{"type": "body", "parameters": [{"type": "nonsense"}]}]
    await problem(await shown("order_update", components=wrong), 422, "validation_failed")
    await problem(await shown("order_update", x=1), 422, "unknown_field")


async def test_a_page_that_was_never_read_is_told(api: Api) -> None:
    await api.made.archive._pool.execute("UPDATE senders SET waba_id = '78'")
    shown = await (await api.ask("ann", "GET", "/api/templates")).json()
    assert shown["why"] == "the list of templates has not been read yet"
    assert (await api.send(message=order())).status == 202
