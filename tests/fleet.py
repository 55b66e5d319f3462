"""Several servers that are one to their clients: Sentinel with a primary, and Cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from shared.embedded.children import Child, free_port
from shared.embedded.valkey import binary, wait_open

Eventually = Callable[..., Awaitable[Any]]
DOWN_MS: Final = 500  # from the last answer until a Sentinel calls the primary down
NODE_TIMEOUT_MS: Final = 1000
SENTINELS: Final = 3
SPANS: Final = ((0, 5460), (5461, 10922), (10923, 16383))
NAME: Final = "main"


class Fleet:
    """Several servers of one topology, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[Child] = []
        self.ports: list[int] = []

    async def start(self, *lines: str, mode: str = "") -> int:
        """Start one server with these lines of configuration; return its port."""
        port, number = free_port(), len(self.children)
        home = self.folder / f"server-{number}"
        home.mkdir()
        config = home / "server.conf"
        text = [f"bind 127.0.0.1\nport {port}\ndir {home}\nset-proc-title no", *lines]
        if not mode:
            text.append('appendonly yes\nsave ""\nrepl-diskless-sync-delay 0')
        config.write_text("\n".join(text) + "\n")
        words = [binary(), str(config), *([mode] if mode else [])]
        child = Child(f"server-{number}", words, self.folder, {"TZ": "UTC"})
        child.start()
        await wait_open(child, port)
        self.children.append(child)
        self.ports.append(port)
        return port

    async def ask(self, port: int, *words: str) -> Any:
        # One that is gone must not be asked ten times.
        client = redis.asyncio.Redis(port=port, protocol=2, retry=Retry(NoBackoff(), 0))
        client.response_callbacks.clear()  # type: ignore[no-untyped-call]
        try:
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()

    async def kill(self, port: int) -> None:
        """Kill -9 the server of a port."""
        await self.children[self.ports.index(port)].kill()

    async def stop(self) -> None:
        await asyncio.gather(*(child.kill() for child in self.children))


class Topology(Fleet):
    """A fleet that is whole, behind one REDIS_URL.

    Attributes:
        url: what REDIS_URL must be.
        primary: port of the server to write to, as `look` found it last.
    """

    url = ""
    primary = 0

    async def open(self, eventually: Eventually) -> None:
        """Start all of it; return when each knows the others."""
        raise NotImplementedError

    async def look(self) -> int:
        """Ask who may be written to now; raise OSError while nobody is known to be."""
        raise NotImplementedError


class Guarded(Topology):
    """A primary, its replica and three Sentinels.

    Attributes:
        replica: port.
    """

    replica = 0

    async def open(self, eventually: Eventually) -> None:
        """Start all; return when the Sentinels know each other and the replica follows."""
        self.primary = await self.start()
        self.replica = await self.start(f"replicaof 127.0.0.1 {self.primary}")
        self._sentinels = [
            await self.start(
                f"sentinel monitor {NAME} 127.0.0.1 {self.primary} 2",
                f"sentinel down-after-milliseconds {NAME} {DOWN_MS}",
                f"sentinel failover-timeout {NAME} 3000",
                mode="--sentinel",
            )
            for _ in range(SENTINELS)
        ]
        where = ",".join(f"127.0.0.1:{port}" for port in self._sentinels)
        self.url = f"sentinel://{where}/{NAME}"
        await eventually(self._is_whole, within_s=30)

    async def _is_whole(self) -> bool:
        for port in self._sentinels:
            row = await self.ask(port, "SENTINEL", "MASTER", NAME)
            if row[row.index(b"num-other-sentinels") + 1] != b"%d" % (SENTINELS - 1):
                return False
            if row[row.index(b"num-slaves") + 1] != b"1":
                return False
        return b"master_link_status:up" in await self.ask(self.replica, "INFO", "replication")

    async def lose_sentinel(self) -> None:
        """Kill -9 the Sentinel that stands first in the URL."""
        await self.kill(self._sentinels[0])

    async def look(self) -> int:
        """Ask the last Sentinel."""
        found = await self.ask(self._sentinels[-1], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        self.primary = int(found[1])
        return self.primary

    async def cut_link(self) -> None:
        """Cut the replica off: it may come back to its primary, and is told nothing any more."""
        await self.ask(self.primary, "ACL", "SETUSER", "default", "-psync", "-sync")
        await self.ask(self.primary, "CLIENT", "KILL", "TYPE", "replica")


class Sharded(Topology):
    """A cluster of three primaries, each with a replica; what is looked for is one key's owner."""

    def __init__(self, folder: Path, key: str) -> None:
        super().__init__(folder)
        self._slot = int(key_slot(key.encode()))

    async def open(self, eventually: Eventually) -> None:
        """Start all; return when every node says that the cluster is whole."""
        for _ in range(2 * len(SPANS)):
            await self.start(
                "cluster-enabled yes",
                f"cluster-port {free_port()}",
                f"cluster-node-timeout {NODE_TIMEOUT_MS}",
            )
        primaries, replicas = self.ports[: len(SPANS)], self.ports[len(SPANS) :]
        buses = [
            int((await self.ask(port, "CONFIG", "GET", "cluster-port"))[1]) for port in self.ports
        ]
        for port, (low, high) in zip(primaries, SPANS, strict=True):
            await self.ask(port, "CLUSTER", "ADDSLOTSRANGE", str(low), str(high))
        for port in self.ports[1:]:
            await self.ask(port, "CLUSTER", "MEET", "127.0.0.1", str(self.ports[0]), str(buses[0]))
        await eventually(self._is_whole, within_s=30)
        for port, primary in zip(replicas, primaries, strict=True):
            name = await self.name_of(primary)
            await self.ask(port, "CLUSTER", "REPLICATE", name)

        async def follow() -> bool:
            infos = [await self.ask(port, "INFO", "replication") for port in replicas]
            return all(b"master_link_status:up" in info for info in infos)

        await eventually(follow, within_s=30)
        self.url = f"cluster://127.0.0.1:{primaries[0]},127.0.0.1:{primaries[1]}"
        await self.look()

    async def _is_whole(self) -> bool:
        infos = [await self.ask(port, "CLUSTER", "INFO") for port in self.ports]
        known = b"known_nodes:%d" % len(self.ports)
        return all(b"cluster_state:ok" in info and known in info for info in infos)

    async def name_of(self, port: int) -> str:
        """Return the id of a node."""
        return str((await self.ask(port, "CLUSTER", "MYID")).decode())

    async def look(self) -> int:
        """Ask every node that answers; the owner is who says so of itself."""
        for port in self.ports:
            with contextlib.suppress(redis.exceptions.RedisError, OSError):
                for low, high, owner, *_ in await self.ask(port, "CLUSTER", "SLOTS"):
                    if low <= self._slot <= high and owner[1] == port:
                        self.primary = port
                        return port
        raise ConnectionError("no node owns the slot")

    async def move(self) -> int:
        """Have the slot moved to another primary; return that one's port.

        Atomically, as Valkey 9 does it: all keys of the slot change hands in one moment.
        """
        giver = await self.look()
        for taker in self.ports:
            if taker != giver and await self._owns_slots(taker):
                words = ["SLOTSRANGE", str(self._slot), str(self._slot)]
                await self.ask(
                    giver, "CLUSTER", "MIGRATESLOTS", *words, "NODE", await self.name_of(taker)
                )
                return taker
        raise ConnectionError("no other node can take the slot")

    async def _owns_slots(self, port: int) -> bool:
        try:
            return any(row[2][1] == port for row in await self.ask(port, "CLUSTER", "SLOTS"))
        except (redis.exceptions.RedisError, OSError):
            return False
