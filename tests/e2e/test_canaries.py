"""Canaries in everything that is secret, a whole run, then every output is searched for them.

What may stand where is the list below; anything else is a hit. Packed recipients (`bulk_jobs.blob`,
`uploads`, chunks in Redis) are where numbers and values belong; they are no text to be searched.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from api.passwords import hash_password
from shared.embedded.children import free_port
from shared.embedded.postgres import Postgres
from shared.embedded.valkey import Valkey
from shared.ids import Ids
from shared.settings import Settings
from tests.conftest import SECRET
from tests.e2e.stack import Eventually, Stack

PASSWORD = "canary password 8141"  # noqa: S105 - canaries, all of them
SECOND = "canary password 9252"
APP_SECRET = "canary-app-secret-7730"  # noqa: S105
VERIFY = "canary-verify-token-5521"
METRICS = "canary-metrics-token-6632"
TOKEN = "EAAG-canary-sender-token-3310"  # noqa: S105
TEXT = "canary text of a message"
VALUE, REF = "canary value of somebody", "canary-ref-4410"
PHONE, LISTED, BAD = "15557654321", "15557654322", "155576543210000099"
EMAIL = "canary@example.com"
SECRETS = {"password": PASSWORD, "second": SECOND, "app secret": APP_SECRET, "verify": VERIFY,
           "metrics": METRICS, "token": TOKEN, "secret key": SECRET}  # fmt: skip
# Who may hold what else; `table.column` of PostgreSQL, key families of Redis.
MAY = {
    "text": {"bulk_jobs.message", "redis job"},
    "value": {"redis job:chunks"},
    "ref": set(),
    "phone": {"campaign_logs.phone"},
    "listed": {"campaign_logs.phone", "suppressions.phone"},
    "bad": set(),
    "email": {"users.email"},
}  # fmt: skip


class Outputs:
    """Everything that came out of a run, by where it stands."""

    def __init__(self) -> None:
        self.parts: dict[str, bytes] = {}

    def add(self, place: str, text: bytes | str) -> None:
        raw = text.encode(errors="surrogateescape") if isinstance(text, str) else text
        self.parts[place] = self.parts.get(place, b"") + b"\n" + raw

    def holding(self, canary: str) -> set[str]:
        """Return where a canary stands, as it is or in hex or base64's alphabet."""
        forms = {canary.encode(), canary.encode().hex().encode()}
        return {place for place, raw in self.parts.items() if any(form in raw for form in forms)}


async def postgres_of(settings: Settings, outputs: Outputs) -> None:
    """Read every column of every table."""
    connection = await asyncpg.connect(settings.database_url)
    columns = await connection.fetch(
        "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = $1", settings.database_schema,
    )  # fmt: skip
    for table, column, kind in columns:
        name = f'"{settings.database_schema}"."{table}"'
        cells = await connection.fetch(f'SELECT "{column}" AS cell FROM {name}')  # noqa: S608 - names from the catalogue
        for (cell,) in cells:
            raw = bytes(cell) if kind == "bytea" and cell is not None else str(cell)
            outputs.add(f"{table}.{column}", raw)
    await connection.close()


async def redis_of(stack: Stack, outputs: Outputs) -> None:
    """Read every key, whatever its type."""
    client = stack.raw()
    async for name in client.scan_iter(count=1000):
        text, kind = name.decode(), (await client.type(name)).decode()
        calls: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
            "string": (client.get, ()),
            "hash": (client.hgetall, ()),
            "list": (client.lrange, (0, -1)),
            "set": (client.smembers, ()),
            "zset": (client.zrange, (0, -1)),
            "stream": (client.xrange, ()),
        }
        call, more = calls[kind]
        family = re.sub(r"\{s\d+\}:", "", text)
        family = re.sub(r":job_[0-9a-z]+", "", family)
        outputs.add(f"redis {family}", text)
        outputs.add(f"redis {family}", b"\n".join(flat(await call(name, *more))))
    await client.aclose()


def flat(value: Any) -> list[bytes]:
    if isinstance(value, bytes):
        return [value]
    if isinstance(value, dict):
        return [part for pair in value.items() for inner in pair for part in flat(inner)]
    if isinstance(value, list | tuple | set):
        return [part for inner in value for part in flat(inner)]
    return [str(value).encode()]


class Visit:
    """Everything a person does, with a canary in each secret."""

    def __init__(self, http: aiohttp.ClientSession, outputs: Outputs) -> None:
        self.http, self.outputs = http, outputs
        self.headers: dict[str, str] = {}

    async def ask(self, method: str, path: str, status: int, **rest: Any) -> Any:
        """Ask; what is refused is an output."""
        headers = {**self.headers, **rest.pop("headers", {})}
        async with self.http.request(method, path, headers=headers, **rest) as answer:
            text = await answer.text()
            assert answer.status == status, (path, text)
            if status >= 400:
                self.outputs.add("errors", text)
            is_json = answer.content_type == "application/json" and text
            return (await answer.json()) if is_json else answer


@pytest.mark.slow
async def test_no_output_of_a_whole_run_holds_a_canary(
    stack: Stack, settings: Settings, valkey: Valkey, postgres: Postgres, eventually: Eventually
) -> None:
    outputs, ports = Outputs(), (free_port(), free_port())
    admin = str(Ids().user_id())
    await stack.archive.add_user(admin, EMAIL, await hash_password(PASSWORD), "admin")
    _, origin = await stack.add_api(
        eventually, METRICS_PORT=str(ports[0]), METRICS_TOKEN=METRICS, LOG_LEVEL="debug",
        WHATSAPP_APP_SECRET=APP_SECRET, WHATSAPP_VERIFY_TOKEN=VERIFY,
    )  # fmt: skip
    await stack.add_workers(
        1, eventually, METRICS_PORT=str(ports[1]), METRICS_TOKEN=METRICS, LOG_LEVEL="debug"
    )
    secrets = dict(SECRETS)
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(origin, cookie_jar=jar) as http:
        visit = Visit(http, outputs)
        await visit.ask("POST", "/api/session", 401, json={"email": EMAIL, "password": SECOND})
        login = {"email": EMAIL, "password": PASSWORD}
        async with http.post("/api/session", json=login) as answer:
            secrets["cookie"] = answer.cookies["drumbeat"].value
        visit.headers = {"Cookie": f"drumbeat={secrets['cookie']}"}
        change = {"current": PASSWORD, "new": SECOND}
        await visit.ask("POST", "/api/session/password", 204, json=change)
        wish = {"name": "crm", "scopes": ["read", "send", "admin"]}
        secrets["key"] = (await visit.ask("POST", "/api/keys", 201, json=wish))["key"]
        visit.headers = {"Authorization": f"Bearer {secrets['key']}"}
        sender = {"name": "canary", "phone_number_id": "424242", "access_token": TOKEN}
        await visit.ask("POST", "/api/senders", 201, json=sender)
        await visit.ask("POST", "/api/senders", 409, json=sender)
        await visit.ask("POST", "/api/suppressions", 201, json={"phone": f"+{LISTED}"})
        message = {"kind": "text", "text": {"body": f"{TEXT} {{{{first_name}}}}"}}
        rows = [
            {"to": f"+{PHONE}", "ref": REF, "vars": {"first_name": VALUE}},
            {"to": f"+{LISTED}", "vars": {"first_name": VALUE}},
        ]
        body = {"recipients": rows, "message": message, "sender": "canary"}
        key = {"Idempotency-Key": "k1"}
        job = (await visit.ask("POST", "/api/bulk/send", 202, json=body, headers=key))["jobId"]
        await eventually(lambda: stack.is_over(job), within_s=30)
        for wrong in (
            {"recipients": [f"+{BAD}", VALUE]}, {"message": {"kind": TEXT}}, {"name": TEXT * 9},
            {"sender": TOKEN}, {"userId": EMAIL}, {"timezone": VALUE}, {"scheduled_at": VALUE},
            {"priority": VALUE}, {"campaignId": f"{VALUE}!"}, {"metadata": {"a": [VALUE]}},
        ):  # fmt: skip
            await visit.ask("POST", "/api/bulk/send", 422, json={**body, **wrong})
        file = f"phone,first_name\n+{PHONE},{VALUE}\n{BAD},{VALUE}\n"
        kind = {"Content-Type": "text/csv"}
        await visit.ask("POST", "/api/bulk/uploads", 201, data=file, headers=kind)
        await visit.ask("GET", f"/api/bulk/jobs?q=%2B{PHONE}", 200)
        await visit.ask("GET", f"/api/bulk/jobs?cursor={PHONE}", 422)
        await visit.ask("GET", f"/api/bulk/recipients?to=%2B{PHONE}", 200)
        await visit.ask("GET", f"/api/bulk/jobs/{job}/recipients?q={PHONE}", 200)
        hub = f"hub.mode=subscribe&hub.challenge=1&hub.verify_token={VERIFY}"
        await visit.ask("GET", f"/webhooks/whatsapp?{hub}", 200)
        await visit.ask("GET", f"/webhooks/whatsapp?{hub}x", 403)
        hook = b'{"object":"whatsapp_business_account","entry":[{"from":"%s"}]}' % PHONE.encode()
        signed = f"sha256={hmac.digest(APP_SECRET.encode(), hook, 'sha256').hex()}"
        headers = {"X-Hub-Signature-256": signed, "Content-Type": "application/json"}
        await visit.ask("POST", "/webhooks/whatsapp", 200, data=hook, headers=headers)
        headers["X-Hub-Signature-256"] = f"sha256={APP_SECRET}"
        await visit.ask("POST", "/webhooks/whatsapp", 401, data=hook, headers=headers)
        for bearer in (f"{secrets['key']}x", secrets["key"][:-1], TOKEN):
            await visit.ask("GET", "/api/bulk/jobs", 401,
                            headers={"Authorization": f"Bearer {bearer}"})  # fmt: skip
        for port in ports:
            token = {"Authorization": f"Bearer {METRICS}"}
            for path in ("/metrics", "/scale", "/readyz?verbose"):
                async with http.get(f"http://127.0.0.1:{port}{path}", headers=token) as answer:
                    outputs.add("metrics", await answer.text())

        async def is_archived() -> bool:
            page = await visit.ask("GET", f"/api/bulk/jobs/{job}/recipients?outcome=pending", 200)
            return not page["data"]

        await eventually(is_archived, within_s=20)
        for path in ("", "?expand=errors,timeline"):
            await visit.ask("GET", f"/api/bulk/jobs/{job}{path}", 200)
    await redis_of(stack, outputs)
    await stack.processes.stop()
    await postgres_of(settings, outputs)
    for path in await asyncio.to_thread(lambda: [*stack.processes.folder.glob("*.log")]):
        outputs.add("logs", path.read_bytes())
    for server in (valkey, postgres):
        assert server.child is not None
        outputs.add("server logs", Path(server.child.log).read_bytes())
    assert job.encode() in outputs.parts["logs"], "the logs were not read"
    assert b"drumbeat_" in outputs.parts["metrics"], "the metrics were not read"
    assert outputs.parts["errors"].count(b"request_id") > 15, "the errors were not read"
    found = {name: outputs.holding(canary) for name, canary in secrets.items()}
    assert found == {name: set() for name in secrets}
    others = {"text": TEXT, "value": VALUE, "ref": REF, "phone": PHONE, "listed": LISTED,
              "bad": BAD, "email": EMAIL}  # fmt: skip
    held = {name: outputs.holding(canary) for name, canary in others.items()}
    print(f"\n{held}")  # noqa: T201
    assert {name: places - MAY[name] for name, places in held.items()} == {
        name: set() for name in others
    }
