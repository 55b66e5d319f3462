"""The served document, taken at its word: whatever fits it or breaks it is answered as it says.

Schemathesis makes the requests; `make test-openapi` brings it, `make test` does without.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from api.app import ROUTES
from api.openapi import document
from api.passwords import hash_password
from shared.archive import KeyRow
from shared.ids import Ids
from tests.e2e.stack import KEY, KEY_ID, Stack
from tests.integration.desk import PASSWORD

Eventually = Callable[..., Awaitable[Any]]
CONFIG = Path(__file__).with_name("schemathesis.toml")
EMAIL = "root@example.com"
# They refuse every submission, end the session of the others and lock their admin out.
LAST = ("/api/bulk/disable", "/api/session", "/api/users/{user_id}")
LEAST_CASES = 2000

pytestmark = pytest.mark.skipif(
    find_spec("schemathesis") is None, reason="without Schemathesis: make test-openapi"
)


class Report(NamedTuple):
    """What a run of Schemathesis came to."""

    code: int
    cases: int
    told: str


async def add_admin(stack: Stack) -> None:
    """Add an admin who may do everything, with a password and `KEY`."""
    admin = str(Ids().user_id())
    await stack.archive.add_user(admin, EMAIL, await hash_password(PASSWORD), "admin")
    await stack.archive.add_key(
        KeyRow(
            id=KEY_ID, user_id=admin, name="t", sha256=hashlib.sha256(KEY.encode()).digest(),
            scopes=["read", "send", "admin"], last4=KEY[-4:], expires_at_ms=0, revoked=False,
            role="admin", disabled=False,
        )
    )  # fmt: skip


async def session(origin: str) -> str:
    """Log in; return what the cookie holds."""
    login = {"email": EMAIL, "password": PASSWORD}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{origin}/api/session", json=login) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return answer.cookies["drumbeat"].value


async def asked(origin: str, cookie: str, folder: Path, *words: str) -> Report:
    """Let Schemathesis read the document and ask."""
    report = folder / "report.json"
    options = ["--report", "json", "--report-json-path", str(report), "--warnings", "off"]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run",
        f"{origin}/openapi.json", *options, *words, cwd=folder,
        env={"PATH": os.environ["PATH"], "DRUMBEAT_API_KEY": KEY,
             "DRUMBEAT_SESSION": cookie},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await child.communicate()
    cases = json.loads(report.read_text())["test_cases"]["generated"] if report.exists() else 0
    return Report(child.returncode or 0, cases, out.decode()[-20_000:])


def test_a_validator_finds_nothing() -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator  # noqa: PLC0415 - not in `make test`

    made = document(ROUTES, "0.1.0", "https://example.org")
    assert not [error.message for error in OpenAPIV31SpecValidator(made).iter_errors()]


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_every_request_is_answered_as_the_document_says(
    stack: Stack, eventually: Eventually, tmp_path: Path
) -> None:
    await add_admin(stack)
    await stack.add_workers(1, eventually)
    hooks = {"WHATSAPP_APP_SECRET": "s" * 32, "WHATSAPP_VERIFY_TOKEN": "agreed upon"}
    child, origin = await stack.add_api(eventually, SSE_PER_USER="1000", SSE_PER_IP="1000", **hooks)
    cookie = await session(origin)
    most = await asked(origin, cookie, tmp_path, *(f"--exclude-path={path}" for path in LAST))
    assert most.code == 0, most.told
    rest = await asked(origin, cookie, tmp_path, *(f"--include-path={path}" for path in LAST))
    assert rest.code == 0, rest.told
    assert most.cases + rest.cases >= LEAST_CASES
    statuses = re.findall(r'"status": (\d+)', child.log.read_text())
    assert len(statuses) >= most.cases
    assert not [status for status in statuses if status >= "500"]
    assert '"level": "error"' not in child.log.read_text()
