"""Any input, over every route: an answer of ours, soon, without a 5xx nobody promised.

Corpus rows of reliability.md 8 are tested one by one elsewhere; here are those nobody wrote down.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as sized
from yarl import URL

from api.app import ROUTES
from api.examples import EXAMPLES
from api.keyring import cut_key
from api.openapi import OPERATIONS
from api.papers import NewSuppression
from api.problems import CODES
from api.router import Route
from api.sessions import Visitors
from api.wire import SendRequest
from shared.archive import Archive, KeyRow, SenderRow
from shared.embedded.children import Child, is_open
from shared.ids import Ids
from shared.queue import Queue
from shared.settings import Settings
from tests.conftest import Processes
from tests.e2e.test_memory import rss_mb

Eventually = Callable[..., Awaitable[Any]]
UNAVAILABLE = {"bulk_disabled", "storage_full"}
# Stands in every value that is made up, never in a name or a path: no answer may repeat it.
CANARY = "vq7zkx"
LONGEST_S = 1.0
TARGET_MAX = 6000
WARM, MANY, MORE_MB = 1000, 3000, 16.0

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ODD = st.sampled_from(
    ["", " ", "\x00", "\n", "\u202e", "\ufeff", "'; DROP TABLE x;--", "${jndi:ldap://x}", "../..",
     "%00", "1e9", "-1", "NaN", "null", "true", "[]", "{}", "__proto__", "+15550000001", "٣",
     "2026-11-24T09:14:09Z", "9" * 400, "a" * 5000, "é" * 300, "<script>", "\U0001f600"]
)  # fmt: skip
TEXTS = st.one_of(WORDS, ODD).map(lambda text: text + CANARY if len(text) % 2 else text)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXTS,
    st.sampled_from([2**53, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -0.0]),
)  # fmt: skip
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
RAW = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [b"", b" ", b"{", b"{}{}", b"[" * 5000, b'{"a":' * 5000, b"\xef\xbb\xbf{}", b'"\\ud800"',
         b'{"recipients":["+15550000001"', "{}".encode("utf-16"), b"\xc0\x80", b"PK\x03\x04"]
    ),
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from(
        ["Idempotency-Key", "X-Request-Id", "Last-Event-ID", "Accept", "Cookie", "Origin",
         "Content-Encoding", "X-Forwarded-For", "X-Hub-Signature-256", "If-None-Match", "Range",
         "Sec-Fetch-Site", "Referer", "X-HTTP-Method-Override", "Expect", "Upgrade"]
    ),
    st.one_of(
        st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"),
                max_size=40),
        st.sampled_from(["gzip", "text/event-stream", "*/*", "null", "a" * 300, "sha256=00"]),
    ),
    max_size=3,
)  # fmt: skip
TYPES = st.sampled_from(
    ["application/json", "application/json", "application/json; charset=utf-8", "text/plain",
     "text/csv", "application/x-ndjson", "multipart/form-data; boundary=x", "", "a/b",
     "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"]
)  # fmt: skip


class Case(NamedTuple):
    """One request."""

    route: Route
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    who: str


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return every place in a JSON value."""
    found = [at]
    pairs = value.items() if isinstance(value, dict) else ()
    pairs = enumerate(value) if isinstance(value, list) else pairs
    for key, inner in pairs:
        found += places(inner, (*at, key))
    return found


@st.composite
def bent(draw: st.DrawFn, good: dict[str, Any]) -> bytes:
    """Draw a good body with something wrong in up to three places."""
    value: Any = {"": copy.deepcopy(good)}
    for _ in range(draw(st.integers(1, 3))):
        *steps, last = draw(st.sampled_from(places(value)[1:]))
        where = value
        for step in steps:
            where = where[step]
        act = draw(st.sampled_from(["replace", "remove", "add", "repeat"]))
        if act == "remove":
            del where[last]
        elif act == "add" and isinstance(where, dict):
            where[draw(WORDS)] = draw(JSON)
        elif act == "repeat" and isinstance(where[last], list):
            where[last] = where[last] * draw(st.integers(2, 200))
        else:
            where[last] = draw(JSON)
        if "" not in value or not places(value)[1:]:
            break
    return json.dumps(value.get("", None), ensure_ascii=draw(st.booleans())).encode(
        errors="surrogatepass"
    )


@st.composite
def cases(draw: st.DrawFn, known: dict[str, str]) -> Case:
    """Draw a request to any route; `known` are ids that exist, by the parameter's name."""
    route = draw(st.sampled_from(ROUTES))
    operation = OPERATIONS.get(f"{route.method} {route.path}")
    path = route.path
    while "{" in path:
        name = path[path.index("{") + 1 : path.index("}")]
        text = draw(st.one_of(st.just(known.get(name, "x")), st.just(known.get(name, "x")), TEXTS))
        path = path.replace(f"{{{name}}}", quote(text, safe="'()*!~"), 1)
    names = operation.query if operation else ()
    offered = st.sampled_from(names) if names else WORDS
    pairs = draw(st.lists(st.tuples(offered | WORDS, TEXTS), max_size=3))
    body = RAW | JSON.map(lambda value: json.dumps(value).encode())
    if operation is not None and operation.takes is not None:
        body = body | bent(EXAMPLES[operation.takes]) | bent(EXAMPLES[operation.takes])
    kind = draw(TYPES if draw(st.booleans()) else st.just("application/json"))
    method = draw(st.sampled_from([route.method] * 9 + ["PUT", "HEAD", "OPTIONS", "DELETE"]))
    return Case(
        route, method, path,
        # A target over 8 KiB is no HTTP here (test_raw_http): nobody looks at its method.
        "&".join(f"{quote(name)}={quote(value)}" for name, value in pairs)[:TARGET_MAX],
        {**draw(HEADERS), "Content-Type": kind},
        draw(body) if route.method != "GET" or draw(st.booleans()) else b"",
        draw(st.sampled_from(["ann", "root", "root", "session", "nobody"])),
    )  # fmt: skip


class Asker:
    """Sends cases and judges their answers."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        origin: str,
        tokens: dict[str, str],
        session: Callable[[], Awaitable[str]],
    ) -> None:
        self.http, self.origin, self.tokens, self.session = http, origin, tokens, session
        self.statuses: dict[int, int] = {}
        self.longest_s = 0.0

    async def send(self, case: Case) -> tuple[int, str, bytes, float]:
        """Send one; return status, type, body and how long it took, in seconds."""
        headers = dict(case.headers)
        if case.who in self.tokens:
            headers["Authorization"] = f"Bearer {self.tokens[case.who]}"
        elif case.who == "session":
            # A new one each time: a case may have ended the last one.
            headers["Cookie"] = await self.session()
        url = URL(f"{self.origin}{case.path}?{case.query}", encoded=True)
        began = time.monotonic()
        async with self.http.request(
            case.method, url, headers=headers, data=case.body or None, allow_redirects=False
        ) as answer:
            is_stream = answer.content_type == "text/event-stream"
            body = b"" if is_stream else await answer.read()
            return answer.status, answer.content_type, body, time.monotonic() - began

    async def judge(self, case: Case) -> None:
        """Ask, and fail on what was not promised."""
        status, kind, body, took_s = await self.send(case)
        for _ in range(2):
            if took_s > LONGEST_S:
                # A machine with other work stalls a client too; what is slow is slow again.
                status, kind, body, took_s = await self.send(case)
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.longest_s = max(self.longest_s, took_s)
        assert took_s <= LONGEST_S, took_s
        if status >= 400 and case.method != "HEAD":
            assert kind == "application/problem+json", (status, kind)
            said = json.loads(body)
            assert CODES[said["code"]][0] == said["status"] == status
            assert status < 500 or said["code"] in UNAVAILABLE, said
            assert CANARY not in json.dumps({**said, "instance": ""}), said
        assert status < 500 or status == 503
        if case.route.path == "/api/bulk/disable" and status == 200:
            # Or nothing else would be looked at from here on.
            enable = case._replace(path="/api/bulk/enable", method="POST", body=b"", query="")
            assert (await self.send(enable))[0] == 200

    def __str__(self) -> str:
        return f"longest {self.longest_s:.3f} s; {dict(sorted(self.statuses.items()))}"

    async def throw(self, count: int, known: dict[str, str], *, derandomize: bool = False) -> None:
        """Send that many, from a thread: Hypothesis does not wait for coroutines."""
        loop = asyncio.get_running_loop()

        @sized(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=derandomize,
            suppress_health_check=list(HealthCheck),
        )
        @given(cases(known))
        def ask(case: Case) -> None:
            asyncio.run_coroutine_threadsafe(self.judge(case), loop).result(30)

        await asyncio.to_thread(ask)


@pytest.fixture
async def asker(
    processes: Processes,
    queue: Queue,
    archive: Archive,
    settings: Settings,
    eventually: Eventually,
) -> AsyncIterator[tuple[Asker, Child]]:
    """An API process with a user, an admin and something of each noun."""
    await queue.give_born(0, "b")
    await archive.add_sender(SenderRow(Ids().object_id("snd"), "main", "1", b"x", is_default=True))
    tokens, visitors, user = {}, Visitors(queue, settings, Ids()), ""
    for name, role, scopes in (
        ("ann", "user", ["read", "send"]), ("root", "admin", ["read", "send", "admin"]),
    ):  # fmt: skip
        user, cut = str(Ids().user_id()), cut_key(Ids())
        await archive.add_user(user, f"{name}@example.com", "no hash", role)
        row = KeyRow(cut.id, user, "k", sha256(cut.text.encode()).digest(), scopes, cut.text[-4:],
                     0, revoked=False, role=role, disabled=False)  # fmt: skip
        await archive.add_key(row)
        tokens[name] = cut.text

    async def session() -> str:
        return f"drumbeat={(await visitors.open(user))[0]}"

    child, origin = processes.api(
        BULK_SUBMITS_PER_HOUR_IP="0", SSE_PER_USER="1000", SSE_PER_IP="1000",
        WHATSAPP_APP_SECRET="s" * 32, WHATSAPP_VERIFY_TOKEN="agreed upon",  # noqa: S106
    )  # fmt: skip
    await eventually(lambda: is_open(int(origin.rpartition(":")[2])), within_s=30)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        yield Asker(http, origin, tokens, session), child


async def known_ids(asker: Asker) -> dict[str, str]:
    """Make something of each noun; return the ids by the names that paths give them."""

    async def made(method: str, path: str, body: dict[str, Any] | str, kind: str) -> Any:
        headers = {"Authorization": f"Bearer {asker.tokens['root']}", "Content-Type": kind}
        data = body if isinstance(body, str) else json.dumps(body)
        url = asker.origin + path
        async with asker.http.request(method, url, data=data, headers=headers) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json()

    job = await made("POST", "/api/bulk/send", EXAMPLES[SendRequest], "application/json")
    upload = await made("POST", "/api/bulk/uploads", "phone\n+15550000001\nx\n", "text/csv")
    entry = await made("POST", "/api/suppressions", EXAMPLES[NewSuppression], "application/json")
    person = {"email": "new@example.com", "password": "a much better one"}
    user = await made("POST", "/api/users", person, "application/json")
    return {
        "job_id": job["jobId"], "jobId": job["jobId"], "upload_id": upload["id"],
        "suppression_id": entry["id"], "user_id": user["userId"], "campaign_id": "autumn",
        "code": "bad_json", "name": "order_update",
    }  # fmt: skip


def unhandled(child: Child) -> list[str]:
    """Return the lines of a log that nobody answers for."""
    lines = child.log.read_text().splitlines()
    return [line for line in lines if '"level": "error"' in line or not line.startswith("{")]


async def test_no_request_is_too_odd(asker: tuple[Asker, Child]) -> None:
    asking, child = asker
    await asking.throw(300, await known_ids(asking), derandomize=True)
    assert not unhandled(child)
    assert asking.statuses.keys() >= {200, 400, 401, 403, 404, 405, 415, 422}, asking.statuses


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
async def test_thousands_of_odd_requests_leave_nothing_behind(
    asker: tuple[Asker, Child],
) -> None:
    asking, child = asker
    known = await known_ids(asking)
    # Each of the two threads that hash keeps the 19 MB that a first log-in takes.
    login = {"email": "nobody@example.com", "password": "not this one"}
    url = f"{asking.origin}/api/session"
    for answer in await asyncio.gather(*(asking.http.post(url, json=login) for _ in range(4))):
        assert answer.status == 401
        answer.release()
    await asking.throw(WARM, known)
    warm_mb = rss_mb(child.pid)
    await asking.throw(MANY, known)
    more_mb = rss_mb(child.pid) - warm_mb
    print(f"\n{MANY} requests, {warm_mb:.1f} MB {more_mb:+.1f} MB; {asking}")  # noqa: T201
    assert not unhandled(child)
    assert more_mb <= MORE_MB
