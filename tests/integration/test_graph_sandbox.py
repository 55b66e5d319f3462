from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from shared.clock import Clock
from shared.embedded.children import is_open
from shared.ids import Ids
from shared.models import Answer
from worker.graph import GraphClient
from worker.sandbox.app import Sandbox
from worker.sandbox.behaviour import Behaviour, Config
from worker.sandbox.ledger import Ledger

Eventually = Callable[..., Awaitable[Any]]


def text(to: str, body: str = "hello") -> bytes:
    return msgspec.json.encode(
        {
            "messaging_product": "whatsapp",
            "recipient_type": "individual",
            "to": to,
            "type": "text",
            "text": {"body": body},
            "biz_opaque_callback_data": "d1.job_1.7.1.00ff",
        }
    )


def template(name: str, *values: str) -> bytes:
    parameters = [{"type": "text", "text": value} for value in values]
    content = {
        "name": name,
        "language": {"code": "en_US"},
        "components": [{"type": "body", "parameters": parameters}],
    }
    return msgspec.json.encode(
        {
            "messaging_product": "whatsapp",
            "to": "+393331234567",
            "type": "template",
            "template": content,
        }
    )


class Far:
    """The sandbox in this process, with a client towards it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.behaviour = Behaviour(Config(rate=0, latency_ms=0))
        self.sandbox = Sandbox(self.behaviour, Ledger(path), Clock(), Ids(1))

    async def open(self) -> None:
        await self.sandbox.listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.sandbox.port}"
        self.client = GraphClient(self.url, timeout_s=0.5)
        await self.client.__aenter__()

    async def send(self, body: bytes, bearer: str = "t", **more: Any) -> Answer:
        return await self.client.send("v22.0", "100", bearer, body, **more)

    async def admin(self, method: str, path: str, body: Any = None) -> str:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"{self.url}/_sandbox/{path}", json=body) as reply,
        ):
            assert reply.status == 200
            return await reply.text()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
async def far(tmp_path: Path) -> AsyncIterator[Far]:
    made = Far(tmp_path / "ledger.ndjson")
    await made.open()
    yield made
    await made.client.__aexit__(None, None, None)
    await made.sandbox.close()


async def test_an_acceptance_is_in_the_ledger_with_the_same_wamid(far: Far) -> None:
    left = []
    answer = await far.send(text("+393331234567"), on_wire=lambda: left.append(1))
    (line,) = far.lines()
    assert answer.kind == line["verdict"] == "accepted"
    assert answer.wamid == line["wamid"]
    assert left == [1]
    assert line["parsed"] == {"job": "job_1", "position": 7, "attempt": 1, "mac": "00ff"}
    assert (line["seq"], line["attempt"], line["to"]) == (1, 1, "+393331234567")


@pytest.mark.parametrize(
    ("digits", "kind", "why", "taken"),
    [
        ("5001", "unknown", "reset", 0),
        ("5101", "unknown", "reset", 1),
        ("5002", "unknown", "timeout", 0),
        ("5103", "unknown", "reset", 1),
        ("5104", "unknown", "bad_reply", 1),
        ("8026", "rejected", "", 0),
        ("7000", "rejected", "", 0),
        ("0001", "accepted", "", 1),
    ],
)
async def test_each_family_of_faults_has_its_class(
    far: Far, digits: str, kind: str, why: str, taken: int
) -> None:
    answer = await far.send(text(f"+1555000{digits}"))
    assert (answer.kind, answer.why) == (kind, why)
    assert sum(line["verdict"] == "accepted" for line in far.lines()) == taken


async def test_a_number_refused_twice_is_then_accepted(far: Far) -> None:
    answers = [await far.send(text("+15550006200")) for _ in range(3)]
    assert [answer.code for answer in answers] == [131000, 131000, None]


async def test_a_refused_connection_never_left(far: Far, eventually: Eventually) -> None:
    await far.admin("POST", "down", {"seconds": 0.3})
    await eventually(lambda: not is_open(far.sandbox.port))
    left = []
    answer = await far.send(text("+393331234567"), on_wire=lambda: left.append(1))
    assert (answer.kind, answer.why, left) == ("not_sent", "refused", [])
    await eventually(lambda: is_open(far.sandbox.port))
    assert (await far.send(text("+393331234567"))).kind == "accepted"


async def test_a_wait_for_the_pool_never_left(far: Far) -> None:
    async with GraphClient(far.url, limit=1, connect_timeout_s=0.2, timeout_s=1) as narrow:
        left = asyncio.Event()
        body = text("+15550005002")
        first = asyncio.create_task(narrow.send("v22.0", "100", "t", body, on_wire=left.set))
        await asyncio.wait_for(left.wait(), 5)
        second = await narrow.send("v22.0", "100", "t", text("+15550000002"))
        assert (second.kind, second.why) == ("not_sent", "pool")
        assert (await first).why == "timeout"


async def test_a_trickling_answer_ends_at_the_deadline(far: Far) -> None:
    step = {"record": True, "accept": True, "drip_bytes_per_s": 50}
    await far.admin("POST", "scripts", {"match": {"suffix": "77"}, "steps": [step]})
    answer = await far.send(text("+393331234577"))
    assert (answer.kind, answer.why) == ("unknown", "timeout")
    await far.admin("DELETE", "scripts")
    assert (await far.send(text("+393331234577"))).kind == "accepted"


@pytest.mark.parametrize("status", [302, 307])
async def test_a_redirect_is_not_followed(far: Far, status: int) -> None:
    raw = {"status": status, "body": ""}
    await far.admin("POST", "scripts", {"match": {}, "steps": [{"record": False, "raw": raw}]})
    answer = await far.send(text("+393331234567"))
    assert (answer.kind, answer.http_status) == ("rejected", status)
    assert len(far.lines()) == 1


async def test_a_body_beyond_the_limit_is_unknown(far: Far) -> None:
    raw = {"status": 200, "body": " " * 70_000}
    await far.admin("POST", "scripts", {"match": {}, "steps": [{"record": False, "raw": raw}]})
    answer = await far.send(text("+393331234567"))
    assert (answer.kind, answer.why) == ("unknown", "bad_reply")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (template("order_update", "A1"), None),
        (template("order_update"), 132000),
        (template("order_update", "a\nb"), 132018),
        (template("order_update", "a" * 1_100), 132005),
        (template("nobody"), 132001),
        (template("paused_offer"), 132015),
        (template("spring_sale", "a", "b"), 100),
        (text("+393331234567", " "), 131009),
        (text("nobody"), 100),
        (b"[]", 100),
        (b"{", 100),
    ],
)
async def test_requests_are_checked_as_graph_does(far: Far, body: bytes, code: int | None) -> None:
    assert (await far.send(body)).code == code


async def test_a_revoked_token_is_refused(far: Far) -> None:
    await far.admin("POST", "token", {"revoke": "old"})
    answer = await far.send(text("+393331234567"), bearer="old")
    assert (answer.code, answer.http_status) == (190, 401)


async def test_beyond_the_rate_graph_throttles(far: Far) -> None:
    await far.admin("PATCH", "config", {"rate": 20})
    answers = [await far.send(text(f"+3933312345{n}")) for n in range(10, 20)]
    assert [answer.kind for answer in answers[:2]] == ["accepted", "accepted"]
    assert answers[-1].kind == "throttled"
    stats = json.loads(await far.admin("GET", "stats"))
    assert stats["senders"]["100"]["max_in_1s"] == 10


async def test_a_number_without_plus_gets_the_senders_country(far: Far) -> None:
    await far.admin("PATCH", "config", {"country": "91"})
    await far.send(text("1 (631) 555-1234"))
    assert far.lines()[0]["delivered"] == "9116315551234"


async def test_the_same_share_fails_in_any_order(far: Far) -> None:
    await far.admin("PATCH", "config", {"fail": 0.3})
    numbers = [f"+3933300000{n}" for n in range(10, 60)]
    first = {to: (await far.send(text(to))).kind for to in numbers}
    again = {to: (await far.send(text(to))).kind for to in reversed(numbers)}
    assert first == again
    assert 5 <= list(first.values()).count("rejected") <= 25


async def test_the_ledger_is_read_back_without_its_torn_line(far: Far, tmp_path: Path) -> None:
    await far.send(text("+393331234567"))
    path = tmp_path / "again.ndjson"
    path.write_bytes(far.path.read_bytes() + b'{"seq":2,"t_m')
    ledger = Ledger(path)
    assert (ledger.seq, ledger.counts["+393331234567"].accepted) == (1, 1)
    assert path.read_bytes() == far.path.read_bytes()
    await ledger.close()


async def test_ledger_and_counts_are_served(far: Far) -> None:
    for _ in range(2):
        await far.send(text("+393331234567"))
    await far.send(text("+393331234568"))
    lines = (await far.admin("GET", "ledger?after=1")).splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [2, 3]
    counts = json.loads(await far.admin("GET", "counts?min=2"))
    assert list(counts) == ["+393331234567"]
    await far.admin("POST", "reset", {"ledger": True})
    assert far.lines() == []
