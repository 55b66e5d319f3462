"""Sentinel and Cluster as they are: who may be written to is found, and found anew."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis.asyncio

from shared.clock import Clock
from shared.embedded.children import free_port
from shared.errors import QueueError, SettingsError
from shared.ids import Ids
from shared.models import Chunk, JobSpec
from shared.primary import AskCluster, AskSentinel, Where, address_of
from shared.queue import Queue
from shared.settings import Settings
from tests.conftest import SECRET, replaced
from tests.fleet import Fleet
from tests.integration.test_queue_core import MESSAGE

Eventually = Callable[..., Awaitable[Any]]
pytestmark = pytest.mark.redis


@pytest.mark.parametrize(
    ("url", "servers", "name"),
    [
        ("sentinel://a:1,b:2,c/main", [("a", 1), ("b", 2), ("c", 26379)], "main"),
        ("sentinels://u:p%40s@a/main/3", [("a", 26379)], "main"),
        ("cluster://a,b:7001", [("a", 6379), ("b", 7001)], ""),
    ],
)
def test_an_address_of_several(url: str, servers: list[tuple[str, int]], name: str) -> None:
    address = address_of(url)
    assert address is not None
    assert (address.servers, address.name) == (servers, name)
    assert address.is_tls == url.startswith("sentinels")
    assert address.password == ("p@s" if "@" in url else "")


@pytest.mark.parametrize("url", ["sentinel://a:1", "sentinel:///main", "cluster://"])
def test_an_address_without_its_parts_says_what_is_missing(url: str) -> None:
    with pytest.raises(SettingsError, match="REDIS_URL"):
        address_of(url)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    await made.stop()


def settings_for(url: str, **more: Any) -> Settings:
    return replaced(Settings(), redis_url=url, bulk_secret_key=(SECRET,), **more)


async def submit(queue: Queue, shard: int = 0) -> str:
    """Make a job of two known to a shard, as the API does."""
    job = Ids().job_id(shard)
    await queue.give_born(shard, "b")
    await queue.sender(shard, "s", version=1, rate=0, burst=0, paused=False, why="")
    await queue.stage(job, 0, [msgspec.msgpack.encode(Chunk([393331000001, 393331000002]))])
    made = await queue.submit(JobSpec(job, "s", "u", 2, 50, 2, 2, MESSAGE, []))
    assert made.kind == "made"
    return job


async def test_sentinel_leads_to_the_primary_and_to_the_next_one(
    fleet: Fleet, eventually: Eventually
) -> None:
    first = await fleet.start()
    second = await fleet.start(f"replicaof 127.0.0.1 {first}")
    sentinels = [
        await fleet.start(
            f"sentinel monitor main 127.0.0.1 {first} 2",
            "sentinel down-after-milliseconds main 500",
            "sentinel failover-timeout main 3000",
            mode="--sentinel",
        )
        for _ in range(3)
    ]

    async def are_known() -> bool:
        for port in sentinels:
            row = await fleet.ask(port, "SENTINEL", "MASTER", "main")
            if row[row.index(b"num-other-sentinels") + 1] != b"2":
                return False
            if row[row.index(b"num-slaves") + 1] != b"1":
                return False
        return True

    await eventually(are_known, within_s=30)
    where = ",".join(f"127.0.0.1:{port}" for port in sentinels)
    queue = await Queue.open(settings_for(f"sentinel://{where}/main", worker_lease_ms=2000))
    try:
        await queue.prepare(0)
        old = await submit(queue)

        async def is_copied() -> bool:
            info = await fleet.ask(second, "EXISTS", f"{{s0}}:job:{old}")
            return bool(info)

        await eventually(is_copied, within_s=10)
        await fleet.children[0].kill()

        async def takes_work() -> str:
            try:
                return await submit(queue)
            except QueueError:
                return ""

        new = await eventually(takes_work, within_s=30)
        assert await queue.exists([old, new]) == [True, True]
        assert await fleet.ask(second, "EXISTS", f"{{s0}}:job:{new}") == 1
        # Another run id: the shard holds until its workers have told what they know.
        assert (await queue.tick(0, "w", slots=1)).held_ms > 0
    finally:
        await queue.close()


async def test_a_primary_that_became_a_replica_is_left_at_once(fleet: Fleet) -> None:
    first = await fleet.start()
    second = await fleet.start(f"replicaof 127.0.0.1 {first}")
    sentinel = await fleet.start(
        f"sentinel monitor main 127.0.0.1 {first} 1",
        "sentinel down-after-milliseconds main 60000",
        mode="--sentinel",
    )
    queue = await Queue.open(settings_for(f"sentinel://127.0.0.1:{sentinel}/main"))
    try:
        await submit(queue)
        # The old primary lives on, and answers: only READONLY tells.
        await fleet.ask(second, "REPLICAOF", "NO", "ONE")
        await fleet.ask(sentinel, "SENTINEL", "REMOVE", "main")
        await fleet.ask(sentinel, "SENTINEL", "MONITOR", "main", "127.0.0.1", str(second), "1")
        await fleet.ask(first, "REPLICAOF", "127.0.0.1", str(second))
        job = await submit(queue)
        assert await fleet.ask(second, "EXISTS", f"{{s0}}:job:{job}") == 1
    finally:
        await queue.close()


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
async def test_one_that_is_gone_is_asked_once_and_the_next_one_at_once(
    fleet: Fleet, kind: str
) -> None:
    gone = free_port()
    if kind == "sentinel":
        first = await fleet.start()
        lines, mode = f"sentinel monitor main 127.0.0.1 {first} 1", "--sentinel"
        port = await fleet.start(lines, mode=mode)
    else:
        first = port = await fleet.start("cluster-enabled yes")
        await fleet.ask(port, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    address = address_of(f"{kind}://127.0.0.1:{gone},127.0.0.1:{port}/main")
    assert address is not None
    where: Where = AskSentinel(address) if kind == "sentinel" else AskCluster(address, "{s0}:")
    clock = Clock()
    began_s = clock.monotonic()
    assert await where.find() == ("127.0.0.1", first)
    # redis-py's own ten tries take 4 s and more.
    assert clock.monotonic() - began_s < 0.5


async def test_every_shard_finds_its_node_and_follows_its_slot(
    fleet: Fleet, eventually: Eventually
) -> None:
    ports = [await fleet.start("cluster-enabled yes", "cluster-node-timeout 2000") for _ in "abc"]
    names = [(await fleet.ask(port, "CLUSTER", "MYID")).decode() for port in ports]
    spans = [(0, 5460), (5461, 10922), (10923, 16383)]
    for port, (low, high) in zip(ports, spans, strict=True):
        await fleet.ask(port, "CLUSTER", "ADDSLOTSRANGE", str(low), str(high))
        await fleet.ask(port, "CLUSTER", "MEET", "127.0.0.1", str(ports[0]))

    async def is_whole() -> bool:
        infos = [await fleet.ask(port, "CLUSTER", "INFO") for port in ports]
        return all(b"cluster_state:ok" in i and b"known_nodes:3" in i for i in infos)

    await eventually(is_whole, within_s=30)
    queue = await Queue.open(settings_for(f"cluster://127.0.0.1:{ports[0]}", queue_shards=4))
    try:
        for shard in range(4):
            await queue.prepare(shard)
        jobs = [await submit(queue, shard) for shard in range(4)]
        assert await queue.exists(jobs) == [True] * 4
        await queue.visitors.set("{v}:probe", "1", ex=5)
        owners = [await _owner(fleet, ports, f"{{s{shard}}}:gate") for shard in range(4)]
        assert len(set(owners)) > 1, "all shards on one node: the test shows nothing"

        # An empty slot moves to another node; the door follows by MOVED.
        slot = await fleet.ask(ports[0], "CLUSTER", "KEYSLOT", "{s3}:gate")
        giver = owners[3]
        taker = next(port for port in ports if port != giver)
        await fleet.ask(giver, "FLUSHALL")
        await _move(fleet, slot, dict(zip(ports, names, strict=True)), giver, taker)

        async def takes_work() -> str:
            try:
                return await submit(queue, 3)
            except QueueError:
                return ""

        job = await eventually(takes_work, within_s=10)
        assert await fleet.ask(taker, "EXISTS", f"{{s3}}:job:{job}") == 1
    finally:
        await queue.close()


async def _move(fleet: Fleet, slot: int, nodes: dict[int, str], giver: int, taker: int) -> None:
    """Give an empty slot to another node, as ``valkey-cli --cluster reshard`` does.

    Who was importing takes a newer epoch with the slot. Without it a heartbeat that the
    giver sent before would win the slot back, and each node would name the other for ever.
    """
    await fleet.ask(taker, "CLUSTER", "SETSLOT", str(slot), "IMPORTING", nodes[giver])
    await fleet.ask(giver, "CLUSTER", "SETSLOT", str(slot), "MIGRATING", nodes[taker])
    others = [port for port in nodes if port not in (giver, taker)]
    for port in (taker, giver, *others):
        await fleet.ask(port, "CLUSTER", "SETSLOT", str(slot), "NODE", nodes[taker])


async def _owner(fleet: Fleet, ports: list[int], key: str) -> int:
    for port in ports:
        try:
            if await fleet.ask(port, "EXISTS", key):
                return port
        except redis.exceptions.RedisError:
            continue
    raise AssertionError(key)
