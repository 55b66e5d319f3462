"""An API on real stores, with two users and an admin, asked over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec
import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from api.app import application, open_resources, runner_of
from api.passwords import hash_password
from api.resources import Resources
from shared.archive import KeyRow, SenderRow
from shared.graph_codes import reason_of
from shared.ids import Ids
from shared.models import Detail, Fact, OutcomeEntry, State
from shared.settings import Settings

Client = TestClient[web.Request, web.Application]
PASSWORD = "correct horse battery"  # noqa: S105 - of a test's user
TEXT = {"kind": "text", "text": {"body": "Hello", "preview_url": False}}
NUMBERS = ["+15550000001", "+15550000002", "+15550000003"]


class Server(TestServer):
    """aiohttp's test server under our own runner."""

    def __init__(self, app: web.Application, settings: Settings) -> None:
        super().__init__(app)
        self.settings = settings

    async def _make_runner(self, **_rest: Any) -> web.AppRunner:
        return runner_of(self.app, self.settings)


class Api(NamedTuple):
    client: Client
    made: Resources
    ann: str
    ben: str
    root: str
    tokens: dict[str, str]

    async def ask(self, who: str, method: str, path: str, **rest: Any) -> ClientResponse:
        headers = {"Authorization": f"Bearer {self.tokens[who]}", **rest.pop("headers", {})}
        return await self.client.request(method, path, headers=headers, **rest)

    async def send(self, who: str = "ann", **fields: Any) -> ClientResponse:
        body = {"recipients": NUMBERS, "message": TEXT, **fields}
        headers = body.pop("headers", {})
        body = {name: value for name, value in body.items() if value is not ...}
        return await self.ask(who, "POST", "/api/bulk/send", json=body, headers=headers)


async def _user(made: Resources, name: str, role: str, tokens: dict[str, str]) -> str:
    ids, user_id = Ids(), str(Ids().user_id())
    await made.archive.add_user(user_id, f"{name}@example.com", await hash_password(PASSWORD), role)
    key_id = ids.object_id("key")[-10:]
    token = f"drb_{key_id}_{(ids.token(96).replace('-', '').replace('_', ''))[:43]}"
    scopes = ["read", "send", "admin"] if role == "admin" else ["read", "send"]
    await made.archive.add_key(
        KeyRow(
            id=key_id,
            user_id=user_id,
            name=name,
            sha256=sha256(token.encode()).digest(),
            scopes=scopes,
            last4=token[-4:],
            expires_at_ms=0,
            revoked=False,
            role=role,
            disabled=False,
        )
    )
    tokens[name] = token
    return user_id


async def opened(settings: Settings, stack: AsyncExitStack) -> Api:
    made = await open_resources(settings, stack, CollectorRegistry())
    tokens: dict[str, str] = {}
    people = [
        await _user(made, name, role, tokens)
        for name, role in (("ann", "user"), ("ben", "user"), ("root", "admin"))
    ]
    await made.archive.add_sender(
        SenderRow(
            id=Ids().object_id("snd"),
            name="main",
            phone_number_id="1",
            token_sealed=b"x",
            is_default=True,
        )
    )
    await made.queue.give_born(0, "b1")
    client = TestClient(Server(application(made), made.settings))
    await stack.enter_async_context(client)
    stack.push_async_callback(made.hub.close)  # streams end before the server waits for them
    return Api(client, made, *people, tokens)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    loose = msgspec.structs.replace(settings, bulk_submits_per_hour_ip=0)
    async with AsyncExitStack() as stack:
        made = await opened(loose, stack)
        yield made
        await made.made.queue.visitors.flushall()


async def problem(response: ClientResponse, status: int, code: str) -> dict[str, Any]:
    body = await response.json(content_type="application/problem+json")
    assert (response.status, body["code"]) == (status, code), body
    assert body["request_id"] == response.headers["X-Request-Id"]
    assert body["type"].endswith(("/errors/" + code, "#quota-exceeded"))
    return dict(body)


async def session_of(api: Api, name: str, password: str = PASSWORD) -> dict[str, str]:
    """Log in; return the cookie as a header."""
    login = {"email": f"{name}@example.com", "password": password}
    response = await api.client.post("/api/session", json=login)
    assert response.status == 200, await response.text()
    api.client.session.cookie_jar.clear()
    return {"Cookie": response.headers["Set-Cookie"].split(";")[0]}


async def come_to(
    api: Api, job_id: str, *outcomes: tuple[int, State, int | None], at_ms: int = 5
) -> None:
    """Log what recipients came to: position, state, and Graph's code or None."""
    row = await api.made.archive.job(job_id, None)
    assert row is not None
    entries = []
    for position, state, code in outcomes:
        chunk, index = divmod(position, row.chunk_size)
        wamid = f"wamid.{job_id}.{position}" if state == State.SENT else None
        detail = Detail(index, 15550000001 + position, at_ms, wamid, code)
        fact = Fact(index, state, 1, reason_of(code) if code is not None else 0)
        entries.append(
            OutcomeEntry(
                "7-0",
                "facts",
                job_id,
                chunk=chunk,
                chunk_size=row.chunk_size,
                facts=fact.pack(),
                record=msgspec.msgpack.encode([detail]),
            )
        )
    await api.made.archive.record(entries)


async def end(api: Api, job_id: str, state: str = "completed") -> None:
    """Let PostgreSQL know that a job is over."""
    entry = OutcomeEntry("8-0", "state", job_id, job_state=state, version=99, event="8-1",
                         finished_ms=8)  # fmt: skip
    await api.made.archive.record([entry])
