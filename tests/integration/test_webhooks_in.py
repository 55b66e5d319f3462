"""What Meta may send and what it is answered: corpus rows 61 to 64, byte by byte."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from io import BytesIO
from typing import Any

import pytest
from aiohttp import ClientResponse
from multidict import CIMultiDict

from api.fleet import Fleet
from api.webhooks import BODY_MAX
from shared import keys
from shared.settings import Secret, Settings
from tests.conftest import configured, replaced
from tests.integration.desk import Api, opened, problem

Eventually = Callable[..., Awaitable[Any]]
PATH = "/webhooks/whatsapp"
OLD, NEW, TOKEN = "old-app-secret", "new-app-secret", "agreed upon"
MANY = b'{"object":"whatsapp_business_account","entry":[' + b",".join([b"{}"] * 10_000) + b"]}"


@pytest.fixture
async def hooked(settings: Settings) -> AsyncIterator[Api]:
    made = replaced(
        settings,
        whatsapp_app_secret=(Secret(NEW), Secret(OLD)),
        whatsapp_verify_token=Secret(TOKEN),
        inbox_max=100,
    )
    async with AsyncExitStack() as stack:
        api = await opened(made, stack)
        yield api
        await api.made.queue.visitors.flushall()


def signature(body: bytes, secret: str = NEW, algorithm: str = "sha256") -> str:
    return f"{algorithm}={hmac.digest(secret.encode(), body, algorithm).hex()}"


async def post(api: Api, body: bytes, *signatures: str) -> ClientResponse:
    headers = CIMultiDict([("X-Hub-Signature-256", text) for text in signatures])
    headers["Content-Type"] = "application/json"
    return await api.client.post(PATH, data=BytesIO(body), headers=headers)


async def inbox(api: Api) -> list[bytes]:
    redis: Any = api.made.queue.visitors
    entries = await redis.xrange(keys.INBOX)
    return [fields[b"b"] for _, fields in entries]


def counted(api: Api, result: str) -> float:
    return float(api.made.metrics.webhooks_total.labels(result)._value.get())


async def check(api: Api, **more: str) -> ClientResponse:
    asked = {"hub.mode": "subscribe", "hub.verify_token": TOKEN, "hub.challenge": "11_5-aZ", **more}
    return await api.client.get(PATH, params=asked)


async def test_metas_check_is_answered_with_its_challenge(hooked: Api) -> None:
    response = await check(hooked)
    assert (response.status, await response.text()) == (200, "11_5-aZ")
    assert response.content_type == "text/plain"


@pytest.mark.parametrize(
    "more",
    [
        {"hub.verify_token": "agreed upo"},
        {"hub.verify_token": "äöü"},
        {"hub.mode": "unsubscribe"},
        {"hub.challenge": ""},
        {"hub.challenge": "<script>"},
        {"hub.challenge": "1" * 129},
        {"hub.challenge": "1\n"},
    ],
)
async def test_any_other_check_is_refused(hooked: Api, more: dict[str, str]) -> None:
    await problem(await check(hooked, **more), 403, "forbidden")


async def test_a_check_with_another_parameter_is_refused(hooked: Api) -> None:
    await problem(await check(hooked, x="1"), 422, "unknown_parameter")


@pytest.mark.parametrize("secret", [NEW, OLD])
async def test_a_signed_body_is_kept_as_it_came(hooked: Api, secret: str) -> None:
    body = b'{"name":"\\u00e4", "path":"a\\/b"} '
    response = await post(hooked, body, signature(body, secret))
    assert (response.status, await response.json()) == (200, {})
    assert await inbox(hooked) == [body]
    assert counted(hooked, "ok") == 1


BODY = b'{"object":"whatsapp_business_account","entry":[]}'
GOOD = signature(BODY)


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("",),
        (GOOD[:-2],),
        (GOOD[:-1] + ("0" if GOOD[-1] != "0" else "1"),),
        (signature(BODY, "another"),),
        (signature(BODY, NEW, "sha1"),),
        (GOOD.replace("sha256", "SHA256"),),
        ("sha256=" + GOOD[7:].upper(),),
        ("sha256= " + GOOD[7:],),
        (GOOD + "0",),
        (GOOD, GOOD),
    ],
)
async def test_row_61_what_is_not_signed_by_meta_leaves_nothing(
    hooked: Api, given: tuple[str, ...]
) -> None:
    await problem(await post(hooked, BODY, *given), 401, "bad_signature")
    assert await inbox(hooked) == []
    assert counted(hooked, "bad_signature") == 1


async def test_row_61_the_body_of_another_signature(hooked: Api) -> None:
    await problem(await post(hooked, BODY + b" ", GOOD), 401, "bad_signature")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"{}",
        b'{"object":"page","entry":[]}',
        MANY,
        b'{"object":"whatsapp_business_account","new":1}',
    ],
)
async def test_rows_62_and_63_whatever_is_signed_is_for_the_workers(
    hooked: Api, body: bytes
) -> None:
    response = await post(hooked, body, signature(body))
    assert response.status == 200
    assert await inbox(hooked) == [body]


async def test_row_64_metas_largest_is_taken_and_more_than_4_mb_is_not(hooked: Api) -> None:
    for size in (3_000_000, BODY_MAX):
        body = b" " * size
        assert (await post(hooked, body, signature(body))).status == 200
    body = b" " * (BODY_MAX + 1)
    await problem(await post(hooked, body, signature(body)), 413, "body_too_large")
    assert len(await inbox(hooked)) == 2


async def test_nothing_is_asked_for_but_the_signature(hooked: Api) -> None:
    """No session, no origin of ours, no quota: Meta is no browser and no user."""
    headers = {"X-Hub-Signature-256": GOOD, "Origin": "https://elsewhere.example",
               "Sec-Fetch-Site": "cross-site", "Cookie": "drumbeat=x"}  # fmt: skip
    response = await hooked.client.post(PATH, data=BODY, headers=headers)
    assert response.status == 200


async def test_a_full_inbox_says_come_again(hooked: Api) -> None:
    statuses = [(await post(hooked, BODY, GOOD)).status for _ in range(101)]
    assert statuses == [200] * 100 + [503]
    refused = await post(hooked, BODY, GOOD)
    await problem(refused, 503, "storage_full")
    assert int(refused.headers["Retry-After"]) >= 1
    redis: Any = hooked.made.queue.visitors
    await redis.xtrim(keys.INBOX, maxlen=0)
    assert (await post(hooked, BODY, GOOD)).status == 200


async def test_a_server_that_is_nearly_full_takes_none(
    hooked: Api, environ: dict[str, str]
) -> None:
    redis: Any = hooked.made.queue.visitors
    used = (await redis.info("memory"))["used_memory"]
    async with configured(environ["REDIS_URL"], "maxmemory", str(int(used * 1.05))):
        await problem(await post(hooked, BODY, GOOD), 503, "storage_full")
    assert (await post(hooked, BODY, GOOD)).status == 200


async def test_without_the_settings_there_is_nothing_here(api: Api) -> None:
    await problem(await post(api, BODY, GOOD), 404, "not_found")
    await problem(await check(api), 404, "not_found")


async def test_how_late_webhooks_are_is_shown(hooked: Api, eventually: Eventually) -> None:
    assert (await post(hooked, BODY, GOOD)).status == 200

    async def is_shown() -> bool:
        body = await (await hooked.ask("root", "GET", "/api/bulk/stats")).json()
        return bool(body["webhook_lag_s"] >= 0.1)

    await eventually(is_shown)
    await Fleet(hooked.made).refresh()
    assert hooked.made.metrics.inbox_age_seconds._value.get() > 0
