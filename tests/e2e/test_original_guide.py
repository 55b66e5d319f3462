"""The original guide, letter for letter, against `drumbeat up`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.conftest import ROOT

ENV_BLOCK = """\
GRAPH_API_VERSION=v22.0
BULK_BATCH_SIZE=50              # Messages per batch
BULK_CONCURRENCY=5              # Concurrent sends per batch  
BULK_PAUSE_MS=1000              # Pause between batches (ms)
BULK_MAX_RETRIES=3              # Max retries for failed messages
BULK_RETRY_BASE_MS=500          # Base retry delay (ms)
BULK_HARD_CAP=50000             # Max recipients per job
"""  # noqa: W291 - the guide's own blanks
TEXT = {
    "recipients": ["+15550000001", "+15550000002", "+15550000003"],
    "message": {
        "kind": "text",
        "text": {"body": "Hello from Prime SMS!", "preview_url": False},
    },
}
TEMPLATE = {
    "recipients": ["+15550000001", "+15550000002"],
    "message": {
        "kind": "template",
        "template": {
            "name": "order_update",
            "language_code": "en_US",
            "components": [{"type": "body", "parameters": [{"type": "text", "text": "John Doe"}]}],
        },
    },
}


CHECK = "https://your-domain.com/api/bulk/jobs"  # the guide's; 401 is right
DOMAIN = "your-domain.com"
HOP_BY_HOP = {"connection", "host", "keep-alive", "transfer-encoding"}


class Guide:
    """A running system and somebody logged in."""

    def __init__(
        self, origin: str, user: str, http: aiohttp.ClientSession, proxy: Proxy | None
    ) -> None:
        self.origin, self.user, self.http, self.proxy = origin, user, http, proxy

    async def send(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        async with self.http.post(f"{self.origin}/api/bulk/send", json=body) as answer:
            return answer.status, await answer.json(content_type=None)

    async def follow(
        self, job: str, last: str | None = None
    ) -> tuple[int, list[dict[str, Any]], str]:
        """Return the status, every event up to the end, and the last id."""
        headers = {"Last-Event-ID": last} if last else {}
        url = f"{self.origin}/realtime/bulk/{job}"
        async with self.http.get(url, headers=headers) as answer:
            text = await answer.text()
            ids = re.findall(r"^id: (.+)$", text, re.MULTILINE)
            data = [json.loads(x) for x in re.findall(r"^data: (.+)$", text, re.MULTILINE)]
            return answer.status, data, ids[-1] if ids else ""


class Proxy(AbstractResolver):
    """A reverse proxy with a certificate for the guide's domain, and the way to it.

    Args:
        behind: origin of what it passes requests on to.
    """

    def __init__(self, behind: str) -> None:
        self.behind = behind
        self.port = 0
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, DOMAIN)])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        certificate = (
            builder.not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(DOMAIN)]), critical=False)
            .sign(key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )
        self.trust = ssl.create_default_context(cadata=certificate.decode())
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile() as file:
            form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            file.write(certificate + key.private_bytes(*form))
            file.flush()
            self._server.load_cert_chain(file.name)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        runner = web.ServerRunner(web.Server(self._pass_on))
        await runner.setup()
        # Compressed bytes go through as they are.
        async with aiohttp.ClientSession(auto_decompress=False) as self._http:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._server)
            await site.start()
            self.port = runner.addresses[0][1]
            yield self
            await runner.cleanup()

    def client(self, jar: aiohttp.abc.AbstractCookieJar | None = None) -> aiohttp.ClientSession:
        """Return a client for which the domain is here."""
        connector = aiohttp.TCPConnector(resolver=self, ssl=self.trust)
        return aiohttp.ClientSession(connector=connector, cookie_jar=jar)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        assert (host, port) == (DOMAIN, 443)
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=self.port, family=family, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        """Hold nothing."""

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        kept = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        headers = {**kept, "Host": request.host, "X-Forwarded-For": "203.0.113.9"}
        async with self._http.request(
            request.method, self.behind + request.raw_path, headers=headers,
            data=await request.read(), allow_redirects=False,
        ) as answer:  # fmt: skip
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    response.headers.add(name, value)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


@asynccontextmanager
async def running(
    eventually: Callable[..., Awaitable[Any]], **extra: str
) -> AsyncIterator[dict[str, str]]:
    """Run `drumbeat up` with the guide's `.env`; yield what it printed: address, password, id."""
    home = Path(tempfile.mkdtemp(prefix="drumbeat-guide-"))
    home.chmod(0o711)
    (home / ".env").write_text(ENV_BLOCK)
    names = ("PATH", "HOME", "TMPDIR", "LANG")
    env = {name: os.environ[name] for name in names if name in os.environ}
    env |= {"PYTHONPATH": str(ROOT), "DRUMBEAT_HOME": str(home / "data"), "NO_COLOR": "1"} | extra
    out = home / "out.log"
    with out.open("wb") as stream:
        up = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "api.cli", "up", "--port", "0", cwd=home, env=env,
            stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        await eventually(lambda: "/api/bulk/stats" in out.read_text(), within_s=50)
        names = ("address", "password", "user id")
        found = {name: re.search(rf"{name}\s+(\S+)", out.read_text()) for name in names}
        assert all(found.values()), out.read_text()
        yield {name: match[1] for name, match in found.items() if match}
    finally:
        up.send_signal(signal.SIGTERM)
        await asyncio.wait_for(up.wait(), 20)
        shutil.rmtree(home, ignore_errors=True)


async def log_in(http: aiohttp.ClientSession, origin: str, up: dict[str, str]) -> None:
    credentials = {"email": "admin@localhost", "password": up["password"]}
    async with http.post(f"{origin}/api/session", json=credentials) as answer:
        assert answer.status == 200, await answer.text()


@pytest.fixture(params=["direct", "domain"])
async def guide(
    eventually: Callable[..., Awaitable[Any]], request: pytest.FixtureRequest
) -> AsyncIterator[Guide]:
    is_direct = request.param == "direct"
    told = {"PUBLIC_URL": f"https://{DOMAIN}", "TRUSTED_PROXIES": "127.0.0.1/32"}
    jar = aiohttp.CookieJar(unsafe=True)
    async with running(eventually, **({} if is_direct else told)) as up, AsyncExitStack() as stack:
        if is_direct:
            http = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=jar))
            origin, proxy = up["address"], None
        else:
            proxy = await stack.enter_async_context(Proxy(up["address"]).running())
            http = await stack.enter_async_context(proxy.client(jar))
            origin = told["PUBLIC_URL"]
        await log_in(http, origin, up)
        yield Guide(origin, up["user id"], http, proxy)


async def test_the_guide_works_as_printed(guide: Guide) -> None:
    if guide.proxy is None:
        # Before the domain is set: its proxy is told what to set.
        async with (
            Proxy(guide.origin).running() as proxy,
            proxy.client() as stranger,
            stranger.get(CHECK) as answer,
        ):
            assert answer.status == 421
            detail = (await answer.json(content_type=None))["detail"]
            assert "PUBLIC_URL" in detail
            assert "ALLOWED_HOSTS" in detail
    check = f"{guide.origin}/api/bulk/jobs"
    assert guide.proxy is None or check == CHECK
    async with (
        guide.proxy.client() if guide.proxy else aiohttp.ClientSession() as stranger,
        stranger.get(check) as answer,
    ):
        assert answer.status == 401
    for body in (
        TEXT,
        {**TEMPLATE, "userId": guide.user},
        {"userId": guide.user, **TEXT},
        TEMPLATE,
    ):
        status, made = await guide.send(body)
        assert status == 202, made
        assert made["userId"] == guide.user
        code, events, last = await guide.follow(made["jobId"])
        assert code == 200
        assert events[-1]["type"] == "end"
        assert events[-1]["progress"]["sent"] == len(body["recipients"])
        assert (await guide.follow(made["jobId"], last))[0] == 204
    for printed in ("user-uuid", "<your-user-id>"):
        status, problem = await guide.send({**TEXT, "userId": printed, "campaignId": "optional"})
        assert status == 422
        assert problem["errors"][0]["pointer"] == "/userId"
        assert "/api/session" in json.dumps(problem)
    status, made = await guide.send({**TEXT, "recipients": ["+1234567890"]})
    assert (status, made["intake"]["suspect"]) == (202, 1)
    async with guide.http.get(f"{guide.origin}/api/bulk/jobs") as answer:
        assert len((await answer.json())["data"]) == 5
    async with guide.http.get(f"{guide.origin}/api/bulk/stats") as answer:
        assert answer.status == 200
        assert "connections" in (await answer.json())["streams"]
