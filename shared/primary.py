"""Which server may be written to, and connections that notice when theirs may not any more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from redis.asyncio import Connection, Redis, Sentinel, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as LostConnectionError

from shared.errors import SettingsError

# A server that does not answer in time must not hold up the question to the next one.
ASK_S: Final = 1.0
_TLS: Final = frozenset({"sentinels", "clusters"})
_PORTS: Final = {"sentinel": 26379, "cluster": 6379}


class Address(NamedTuple):
    """REDIS_URL with several servers, taken apart.

    Attributes:
        kind: `sentinel` or `cluster`.
        is_tls: of all its connections.
        username, password: of the servers; '' = none.
        servers: whom to ask, host and port.
        name: of the primary, for Sentinel.
        db: number of the database, for Sentinel.
    """

    kind: str
    is_tls: bool
    username: str
    password: str
    servers: list[tuple[str, int]]
    name: str
    db: int


def address_of(url: str) -> Address | None:
    """Return a URL of several servers taken apart; None for one that redis-py reads itself.

    Raises:
        SettingsError: no server in it, or no name of the primary.

    >>> address_of("sentinel://:s@a:1,b/main").servers
    [('a', 1), ('b', 26379)]
    """
    parts = urlsplit(url)
    kind = parts.scheme.removesuffix("s") if parts.scheme in _TLS else parts.scheme
    if kind not in _PORTS:
        return None
    who, _, where = parts.netloc.rpartition("@")
    username, _, password = who.partition(":")
    servers = []
    for each in filter(None, where.split(",")):
        host, _, port = each.rpartition(":")
        servers.append((host, int(port)) if host else (each, _PORTS[kind]))
    path = [unquote(word) for word in parts.path.split("/") if word]
    if not servers or (kind == "sentinel" and not path):
        raise SettingsError("REDIS_URL: sentinel://host:port,…/name, or cluster://host:port,…")
    db = int(path[1]) if len(path) > 1 and path[1].isdigit() else 0
    name = path[0] if path else ""
    return Address(
        kind, parts.scheme in _TLS, unquote(username), unquote(password), servers, name, db
    )


def _once() -> Retry:
    # One that is gone would be asked ten times, for seconds, before the next one is.
    return Retry(NoBackoff(), 0)


class Where(Protocol):
    """Finds a primary."""

    async def find(self) -> tuple[str, int]:
        """Return host and port of the server to write to; raise LostConnectionError if none."""


class AskSentinel:
    """Asks one Sentinel after another."""

    def __init__(self, address: Address) -> None:
        """Ask nobody yet."""
        self._address = address

    async def find(self) -> tuple[str, int]:
        """Return the primary that a Sentinel knows by this name and can reach."""
        # Sentinels share the servers' TLS, not their password: theirs is not in this URL.
        figures = {
            "socket_timeout": ASK_S,
            "socket_connect_timeout": ASK_S,
            "ssl": self._address.is_tls,
            "retry": _once(),
        }
        sentinel = Sentinel(self._address.servers, sentinel_kwargs=figures)  # type: ignore[no-untyped-call]
        try:
            host, port = await sentinel.discover_master(self._address.name)
        finally:
            for each in sentinel.sentinels:
                await each.aclose()
        return str(host), int(port)


class AskCluster:
    """Asks any node who owns the slot of a key; remembers the nodes it was told of."""

    def __init__(self, address: Address, key: str) -> None:
        """Ask nobody yet."""
        self._address = address
        self._nodes = list(address.servers)
        self._slot = key_slot(key.encode())

    async def find(self) -> tuple[str, int]:
        """Return the primary that owns the slot."""
        seen: list[tuple[str, int]] = []
        for node in dict.fromkeys([*self._nodes, *self._address.servers]):
            try:
                ranges = await self._ask(node)
            except (RedisError, OSError, TimeoutError):
                continue
            owner = None
            for first, last, primary, *replicas in ranges:
                seen += [_node(each, node) for each in (primary, *replicas)]
                if first <= self._slot <= last:
                    owner = _node(primary, node)
            if owner is not None:
                self._nodes = [owner, *(each for each in dict.fromkeys(seen) if each != owner)]
                return owner
        raise LostConnectionError("no node of the cluster knows who owns the slot")

    async def _ask(self, node: tuple[str, int]) -> list[list[Any]]:
        address = self._address
        client = Redis(
            host=node[0],
            port=node[1],
            username=address.username or None,
            password=address.password or None,
            ssl=address.is_tls,
            socket_timeout=ASK_S,
            socket_connect_timeout=ASK_S,
            retry=_once(),
        )
        # Raw: redis-py's own reading loses which node of a range is the primary.
        client.response_callbacks.pop("CLUSTER SLOTS", None)
        try:
            return list(await client.execute_command("CLUSTER SLOTS"))  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()


def _node(raw: list[Any], asked: tuple[str, int]) -> tuple[str, int]:
    host = raw[0].decode() if isinstance(raw[0], bytes) else raw[0]
    return (host or asked[0], int(raw[1]))  # '' means: the one you asked


class Wary(AbstractConnection):
    """A connection that knows when its server is the wrong one, or gone.

    Told READONLY or MOVED it closes, so that the next command looks for the right server. And
    what uvloop says of writing to a closed transport, a RuntimeError that redis-py lets through,
    it calls a lost connection.
    """

    def __init__(self, *, where: Where | None = None, **kwargs: Any) -> None:  # noqa: ANN401 - redis-py's
        """Take redis-py's arguments, and whom to ask for the address."""
        super().__init__(**kwargs)
        self._where = where

    async def send_packed_command(
        self,
        command: bytes | str | Iterable[bytes],
        check_health: bool = True,  # noqa: FBT001, FBT002 - redis-py's
    ) -> None:
        """Send, and call a transport that is gone a lost connection."""
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            raise LostConnectionError("the connection was closed under us") from error

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - redis-py's
        """Read, and close when the server says that it is not the one to ask."""
        try:
            return await super().read_response(*args, **kwargs)
        except (ReadOnlyError, MovedError, AskError):
            await self.disconnect(nowait=True)
            raise

    async def _connect(self) -> None:
        if self._where is not None:
            self.host, self.port = await self._where.find()
        await super()._connect()  # type: ignore[safe-super,no-untyped-call]


class WaryPlain(Wary, Connection):
    """The same on TCP."""


class WaryTLS(Wary, SSLConnection):
    """The same with TLS."""


class WaryUnix(Wary, UnixDomainSocketConnection):
    """The same on a UNIX socket."""


CLASSES: Final[dict[type, type[Wary]]] = {
    Connection: WaryPlain,
    SSLConnection: WaryTLS,
    UnixDomainSocketConnection: WaryUnix,
}
