"""Lists of templates on their way from Graph to PostgreSQL: paged, bounded, by one worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest

from shared.archive import Archive, SenderRow
from shared.clock import Clock
from shared.connect import open_postgres
from shared.queue import Queue
from shared.sealing import Sealing
from shared.settings import Settings
from shared.templates import Templates
from tests.integration.test_graph_sandbox import Far, far
from worker.graph_lists import Fetched, ListReader
from worker.sandbox.behaviour import Template
from worker.senders import Sender, Senders
from worker.templates import Lists

__all__ = ["far"]
BUILT_IN = {"order_update", "spring_sale", "picture_offer", "paused_offer"}
SENDER = Sender("snd_a", "main", "100", "t", "v22.0", "77", 0.0)


def towards(settings: Settings, url: str, **changes: Any) -> Settings:
    return msgspec.structs.replace(settings, graph_base_url=url, **changes)


class Kept(Templates):
    """Templates with their pool, which a test may look into."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        super().__init__(pool)
        self.pool = pool

    async def names(self, waba_id: str = "77") -> set[str]:
        return {row.definition.name for row in await self.page(waba_id, 0, 1000)}


@pytest.fixture
async def kept(settings: Settings) -> AsyncIterator[Kept]:
    pool = await open_postgres(settings)
    yield Kept(pool)
    await pool.close()


async def test_all_pages_are_read_whatever_their_size(far: Far, settings: Settings) -> None:
    for number in range(70):
        # Escaped, thirty-two of them are longer than an answer may be.
        body = "ü" * 1_000
        far.behaviour.templates[f"t{number}", "de"] = Template(f"t{number}", "de", body)
    fetched = await ListReader(towards(settings, far.url)).fetch(SENDER)
    assert fetched.why == ""
    assert fetched.found is not None
    assert {f"t{n}" for n in range(70)} | BUILT_IN == {each.name for each in fetched.found}


async def fetched_from(settings: Settings, raw: bytes) -> tuple[Fetched, list[str]]:
    """Ask a far side that answers each request with the same bytes; return what it was asked."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(raw)
        if raw:
            await writer.drain()
            writer.close()
        else:
            await reader.read()
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    given = towards(settings, url, graph_timeout_s=0.3)
    fetched = await ListReader(given).fetch(SENDER)
    server.close()
    return fetched, asked


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "Graph does not answer (time-out)"),
        (b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n", "HTTP 302"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<html/>..", "cannot be read"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + b" " * 70000, "HTTP 200"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nxx", "HTTP 200"),
        (b"nonsense\r\n\r\n", "Graph does not answer (no connection)"),
        (b'HTTP/1.1 400 Bad\r\nContent-Length: 24\r\n\r\n{"error":{"code":80008}}', "code 80008"),
    ],
)  # fmt: skip
async def test_whatever_the_far_side_does_it_comes_to_a_sentence(
    settings: Settings, raw: bytes, why: str
) -> None:
    fetched, asked = await fetched_from(settings, raw)
    assert fetched.found is None
    assert why in fetched.why
    assert asked[0].startswith("GET /v22.0/77/message_templates?fields=name,language")
    assert "Authorization: Bearer t\r\n" in asked[0]
    assert not [text for text in asked if "elsewhere" in text.split("\r\n")[0]]


async def test_a_refusal_by_the_call_limit_is_rested_on(far: Far, settings: Settings) -> None:
    reader = ListReader(towards(settings, far.url))
    far.behaviour.config.list_code = 80008
    far.behaviour.config.regain_min = 7
    fetched = await reader.fetch(SENDER)
    assert fetched == Fetched(None, "Graph refuses the list (code 80008)", 420.0)
    far.behaviour.config.list_code = 190
    assert (await reader.fetch(SENDER)).rest_s < 60


@pytest.fixture
async def lists(far: Far, settings: Settings, archive: Archive, queue: Queue, kept: Kept) -> Lists:
    sealing = Sealing(settings.bulk_secret_key)
    rows = [("a", "dead", "77"), ("b", "good", "77"), ("c", "good", None), ("d", "good", "../x")]
    for name, token, waba in rows:
        sealed = sealing.seal(token)
        await archive.add_sender(SenderRow(f"snd_{name}", name, "100", sealed, waba_id=waba))
    far.behaviour.config.revoked.append("dead")
    senders = Senders(archive, queue, settings, sealing, Clock())
    await senders.refresh()
    return Lists(kept, ListReader(towards(settings, far.url)), senders, Clock())


async def rested(kept: Kept) -> None:
    """Let the least time between two tries be over."""
    await kept.pool.execute("UPDATE template_lists SET not_before = now()")


async def test_a_list_is_fetched_when_due_and_when_asked_for(
    far: Far, kept: Kept, lists: Lists
) -> None:
    await lists.refresh()
    # The first token was refused; the other one is good.
    assert await kept.names() == BUILT_IN
    state = await kept.state("77")
    assert (state.error, state.is_settled) == ("", True)
    assert 0 < state.synced_ms <= await kept.ask("77")
    assert not (await kept.state("77")).is_settled
    del far.behaviour.templates["spring_sale", "en_US"]
    far.behaviour.templates["new_one", "en_US"] = Template("new_one", "en_US", "Hi")
    await lists.refresh()
    assert await kept.names() == BUILT_IN  # asked for a moment ago: Graph is given a rest
    await rested(kept)
    await lists.refresh()
    assert await kept.names() == BUILT_IN - {"spring_sale"} | {"new_one"}
    assert (await kept.state("77")).is_settled
    await rested(kept)
    assert await kept.due(["77"]) == []
    await kept.pool.execute("UPDATE template_lists SET due_at = now()")
    assert await kept.due(["77", "88"]) == ["77", "88"]


async def test_a_list_that_is_doubted_is_asked_for_once_a_minute(kept: Kept, lists: Lists) -> None:
    async def asked() -> object:
        return await kept.pool.fetchval("SELECT asked_at FROM template_lists")

    await lists.refresh()
    assert await asked() is None
    for _ in range(1000):
        lists.doubt("77")
        lists.doubt("")  # of a sender without an account
    await lists.refresh()
    first = await asked()
    assert first is not None
    lists.doubt("77")
    await lists.refresh()
    assert await asked() == first


async def test_a_failure_keeps_what_was_known_and_says_why(
    far: Far, kept: Kept, lists: Lists
) -> None:
    await lists.refresh()
    before = await kept.state("77")
    far.behaviour.config.list_code = 80008
    await kept.ask("77")
    await rested(kept)
    await lists.refresh()
    state = await kept.state("77")
    assert (state.error, state.is_settled) == ("Graph refuses the list (code 80008)", True)
    assert state.synced_ms == before.synced_ms
    assert await kept.names() == BUILT_IN


async def test_one_worker_of_several_fetches(kept: Kept) -> None:
    taken = await asyncio.gather(*(kept.take("77", 60.0) for _ in range(8)))
    assert sorted(taken) == [False] * 7 + [True]
    assert await kept.due(["77"]) == []


async def test_the_end_of_the_worker_does_not_wait_for_graph(far: Far, lists: Lists) -> None:
    await far.admin("POST", "down", {"seconds": 30, "mode": "hang"})
    stop = asyncio.Event()
    running = asyncio.create_task(lists.run(stop))
    await asyncio.sleep(0)
    stop.set()
    await asyncio.wait_for(running, 5)
