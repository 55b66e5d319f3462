"""Who may do what: every route, every method, every kind of asker, own, foreign and absent.

The table below says it a second time, apart from the code; a route that is not in it fails.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, NamedTuple

import pytest
from aiohttp import ClientResponse, web

from api.app import ROUTES
from api.auth import ADMIN
from api.keyring import cut_key, shown_id
from api.router import Route, install
from shared.archive import KeyRow
from shared.errors import SettingsError
from shared.ids import Ids
from shared.office import Act
from tests.integration.desk import NUMBERS, PASSWORD, TEXT, Api

IDS = Ids()
SEND = {"recipients": NUMBERS, "message": TEXT, "campaignId": "autumn"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class Cell(NamedTuple):
    """What a route says.

    Attributes:
        who: `open`, `session`, `admin`, or the scope that a key needs.
        ok: to whom may: a user without an object, its owner with one.
        thing: what its path names; '' = nothing that somebody owns.
        admin: to an admin who is not the owner; 0 = as the owner.
        body: JSON sent.
        query: behind the path.
    """

    who: str
    ok: int = 200
    thing: str = ""
    admin: int = 0
    body: dict[str, Any] | None = None
    query: str = ""


_JOB = "/api/bulk/jobs/{job_id}"
_SENDER = "/api/senders/{sender_id}"
_UPLOAD = "/api/bulk/uploads/{upload_id}"
_PERSON = {"email": "new@example.com", "password": "a much better one"}
GRID: dict[str, Cell] = {
    "POST /api/bulk/send": Cell("send", 202, body=SEND),
    "GET /api/bulk/jobs": Cell("read"),
    f"GET {_JOB}": Cell("read", thing="job"),
    f"PATCH {_JOB}": Cell("send", thing="job", body={"name": "x"}),
    f"POST {_JOB}/pause": Cell("send", thing="job"),
    f"POST {_JOB}/resume": Cell("send", 409, thing="job"),
    f"POST {_JOB}/cancel": Cell("send", thing="job"),
    f"POST {_JOB}/retry": Cell("send", 409, thing="job", body={}),
    f"GET {_JOB}/recipients": Cell("read", thing="job"),
    f"GET {_JOB}/recipients.csv": Cell("read", thing="job"),
    f"GET {_JOB}/recipients.ndjson": Cell("read", thing="job"),
    f"GET {_JOB}/recipients.xlsx": Cell("read", thing="job"),
    "GET /realtime/bulk/{jobId}": Cell("read", thing="job"),
    "GET /realtime/bulk": Cell("read", thing="job", query="?jobs={id}"),
    "POST /api/bulk/preflight": Cell("send", body=SEND),
    "GET /api/bulk/recipients": Cell("read", query="?to=%2B15550000001"),
    "GET /api/bulk/campaigns/{campaign_id}": Cell("read", thing="campaign"),
    "POST /api/bulk/uploads": Cell("send", 201, query="?filename=a.csv"),
    f"GET {_UPLOAD}": Cell("send", thing="upload"),
    f"PATCH {_UPLOAD}": Cell("send", thing="upload", body={"default_region": "DE"}),
    f"DELETE {_UPLOAD}": Cell("send", 204, thing="upload"),
    f"GET {_UPLOAD}/problems.csv": Cell("send", thing="upload"),
    "GET /api/bulk/stats": Cell("admin"),
    "POST /api/bulk/disable": Cell("admin"),
    "POST /api/bulk/enable": Cell("admin"),
    "GET /webhooks/whatsapp": Cell("open", 404),
    "POST /webhooks/whatsapp": Cell("open", 404),
    "POST /api/session": Cell("open", 401, body={"email": "x@y", "password": "z"}),
    "GET /api/session": Cell("read"),
    "DELETE /api/session": Cell("session", 204),
    "POST /api/session/password": Cell(
        "session", 422, body={"current": PASSWORD, "new": "short"}),
    "GET /api/users": Cell("admin"),
    "POST /api/users": Cell("admin", 201, body=_PERSON),
    "PATCH /api/users/{user_id}": Cell("admin", thing="user", body={"role": "user"}),
    "GET /api/keys": Cell("session"),
    "POST /api/keys": Cell("session", 201, body={"name": "x", "scopes": ["read"]}),
    "DELETE /api/keys/{key_id}": Cell("session", 204, thing="key", admin=404),
    "GET /api/senders": Cell("read"),
    "POST /api/senders": Cell(
        "admin", 201, body={"name": "x", "phone_number_id": "1", "access_token": "x"}),
    f"GET {_SENDER}": Cell("read", thing="sender"),
    f"PATCH {_SENDER}": Cell("admin", thing="sender", body={"rate": 5}),
    f"POST {_SENDER}/pause": Cell("admin", thing="sender"),
    f"POST {_SENDER}/resume": Cell("admin", thing="sender"),
    "GET /api/suppressions": Cell("send"),
    "POST /api/suppressions": Cell("send", 201, body={"phone": "+15550000001"}),
    "DELETE /api/suppressions/{suppression_id}": Cell("admin", 204, thing="suppression"),
    "GET /api/templates": Cell("read"),
    "POST /api/templates/sync": Cell("read", 422),
    "POST /api/templates/{name}/preview": Cell("read", 404, body={"language_code": "en_US"}),
    "GET /api/audit": Cell("admin"),
    "GET /livez": Cell("open"),
    "GET /readyz": Cell("open"),
    "GET /": Cell("open"),
    "GET /login": Cell("open"),
    "GET /docs": Cell("open"),
    "GET /openapi.json": Cell("open"),
    "GET /jobs/{job_id}": Cell("open"),
    "GET /static/{name}": Cell("open", 404),
    "GET /errors/{code}": Cell("open", 404),
}  # fmt: skip
# What nobody owns: everybody who may, may with all of them.
COMMON = {"sender", "suppression", "user"}
WRONG = {"read": ["send"], "send": ["read"], "admin": ["read", "send"],
         "session": ["read", "send"]}  # fmt: skip


class Desk:
    """Askers and things of one API."""

    def __init__(self, api: Api) -> None:
        self.api = api

    async def session(self, user_id: str) -> dict[str, str]:
        token, _ = await self.api.made.visitors.open(user_id)
        return {"Cookie": f"drumbeat={token}"}

    async def revoked(self, user_id: str) -> dict[str, str]:
        token, session = await self.api.made.visitors.open(user_id)
        await self.api.made.visitors.close(user_id, session.hash)
        return {"Cookie": f"drumbeat={token}"}

    async def key(self, user_id: str, scopes: list[str]) -> tuple[str, dict[str, str]]:
        cut = cut_key(IDS)
        row = KeyRow(cut.id, user_id, "k", sha256(cut.text.encode()).digest(), scopes, "last", 0,
                     revoked=False, role="", disabled=False)  # fmt: skip
        await self.api.made.archive.add_key(row)
        return shown_id(cut.id), {"Authorization": f"Bearer {cut.text}"}

    async def made(self, thing: str) -> str:
        """Make a thing, of Ann's where somebody owns it; return its id."""
        api, office, act = self.api, self.api.made.office, Act("cli", "test", "")
        if thing in ("job", "campaign"):
            label = f"c{IDS.object_id('sup')}"
            body = await (await api.send(campaignId=label)).json()
            return str(body["jobId"] if thing == "job" else label)
        if thing == "upload":
            response = await self.ask("POST", "/api/bulk/uploads?filename=a.csv",
                                      await self.session(api.ann), None)  # fmt: skip
            return str((await response.json())["id"])
        if thing == "key":
            return (await self.key(api.ann, ["read"]))[0]
        if thing == "sender":
            row = await api.made.archive.default_sender()
            return row.id if row else ""
        if thing == "suppression":
            act = act._replace(object=IDS.object_id("sup"))
            row, _ = await office.suppress(act, 15550000000 + len(act.object), "all", "", "x")
            return row.id
        user_id = str(IDS.user_id())
        await office.add_user(act, user_id, f"{user_id}@example.com", "hash", "user")
        return user_id

    def absent(self, thing: str) -> str:
        prefix = {"sender": "snd", "upload": "upl", "suppression": "sup"}.get(thing, "")
        other = {"job": IDS.job_id(0), "campaign": "c" + IDS.object_id("sup"),
                 "key": shown_id("0" * 10), "user": str(IDS.user_id())}  # fmt: skip
        return other.get(thing) or IDS.object_id(prefix)

    async def ask(
        self, method: str, path: str, who: dict[str, str], body: dict[str, Any] | None
    ) -> ClientResponse:
        headers = {**who, "X-Request-Id": "same"}
        more: dict[str, Any] = {} if body is None else {"json": body}
        if path.startswith("/api/bulk/uploads?"):
            more = {"data": b"phone\n+15550000001\n"}
            headers["Content-Type"] = "text/csv"
        response = await self.api.client.request(method, path, headers=headers, **more)
        if response.content_type != "text/event-stream":
            await response.read()
        else:
            response.close()
        self.api.client.session.cookie_jar.clear()
        return response


def place(cell: Cell, path: str, thing_id: str) -> str:
    """Return the address of a thing."""
    start = path.index("{") if "{" in path else len(path)
    named = path[:start] + (thing_id + path[path.index("}") + 1 :] if "{" in path else "")
    return named + cell.query.replace("{id}", thing_id)


async def shape(response: ClientResponse, thing_id: str) -> tuple[Any, ...]:
    """Return an answer without its date and the id that was asked for."""
    headers = {name: value for name, value in response.headers.items() if name != "Date"}
    return response.status, headers, (await response.read()).replace(thing_id.encode(), b"<id>")


def test_every_route_is_in_the_table() -> None:
    assert {f"{route.method} {route.path}" for route in ROUTES} == set(GRID)


def test_a_route_without_a_policy_of_its_own_stops_the_start() -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response()

    for routes in (
        [Route("GET", "/x", handler)],
        [Route("GET", "/x", handler, ADMIN), Route("GET", "/y", handler, ADMIN)],
    ):
        with pytest.raises(SettingsError, match="policy"):
            install(web.Application(), routes)


async def test_each_asker_gets_exactly_what_the_table_says(api: Api) -> None:
    desk, wrong = Desk(api), []

    async def expect(
        name: str, asker: str, who: dict[str, str], thing_id: str, status: int
    ) -> ClientResponse:
        cell, (method, _, path) = GRID[name], name.partition(" ")
        response = await desk.ask(method, place(cell, path, thing_id), who, cell.body)
        if response.status != status:
            text = await response.text() if status != 200 else ""
            wrong.append(f"{name} by {asker}: {response.status}, not {status} {text[:200]}")
        return response

    for name, cell in GRID.items():
        absent = desk.absent(cell.thing) if cell.thing else "x"
        own = await desk.made(cell.thing) if cell.thing else "x"
        if cell.who == "open":
            for asker, who in (("nobody", {}), ("ann", await desk.session(api.ann))):
                await expect(name, asker, who, "x", cell.ok)
            continue
        for thing_id in (own, absent):
            await expect(name, "nobody", {}, thing_id, 401)
            await expect(name, "revoked", await desk.revoked(api.ann), thing_id, 401)
            _, key = await desk.key(api.root if cell.who == "admin" else api.ann, WRONG[cell.who])
            await expect(name, "wrong key", key, thing_id, 403)
        ann, ben = await desk.session(api.ann), await desk.session(api.ben)
        if cell.who == "admin":
            for asker, who in (("ann", ann), ("ben", ben)):
                for thing_id in (own, absent):
                    await expect(name, asker, who, thing_id, 403)
            _, key = await desk.key(api.root, ["admin"])
            if cell.thing:
                await expect(name, "admin, absent", key, absent, 404)
            await expect(name, "admin", key, own, cell.ok)
            continue
        if cell.thing and cell.thing not in COMMON:
            for other in (ben, {**ben, "Accept": "*/*"}):
                foreign = await expect(name, "ben, foreign", other, own, 404)
                nothing = await expect(name, "ben, absent", other, absent, 404)
                if await shape(foreign, own) != await shape(nothing, absent):
                    wrong.append(f"{name}: foreign and absent do not look the same")
            await expect(name, "ann, absent", ann, absent, 404)
            root = await desk.session(api.root)
            await expect(name, "admin", root, own, cell.admin or cell.ok)
            own = await desk.made(cell.thing)  # as it was before
        elif cell.thing:
            await expect(name, "ben, absent", ben, absent, 404)
            await expect(name, "ben", ben, own, cell.ok)
        else:
            await expect(name, "ben", ben, own, cell.ok)
        ann = await desk.session(api.ann)
        # The second to put a number on the list finds it there.
        is_there = name == "POST /api/suppressions"
        await expect(name, "ann", ann, own, 200 if is_there else cell.ok)
    assert not wrong, "\n" + "\n".join(wrong)


async def test_a_method_that_a_path_does_not_have_is_405_to_anybody(api: Api) -> None:
    paths: dict[str, dict[str, Route]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = route
    for path, routes in paths.items():
        address = path.split("{")[0] + "x" if "{" in path else path
        address += path[path.index("}") + 1 :] if "{" in path else ""
        for method in METHODS:
            known = routes.get("GET" if method == "HEAD" else method)
            if known is not None and not (method == "HEAD" and known.is_stream):
                if method == "HEAD" and GRID[f"GET {path}"].who != "open":
                    assert (await api.client.head(address)).status == 401, address
                continue
            response = await api.client.request(method, address)
            assert response.status == 405, f"{method} {address}"
            assert set(routes) <= set(response.headers["Allow"].split(","))
