"""The Redis door to the inbox: bodies of webhooks as they came, until their effect is committed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Self, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from shared import keys
from shared.clock import Clock
from shared.connect import open_redis
from shared.queue import error_of
from shared.replies import age_of, entries_of, text_of
from shared.settings import Settings

_BODY: Final = "b"
# Between two looks at length and memory; meanwhile what is appended here is counted.
_LOOK_S: Final = 1.0
_MEMORY_SHARE: Final = 0.9  # the queue stops releasing at 0.85
_T = TypeVar("_T")


class Hook(NamedTuple):
    """One webhook that waits: its stream id and the body as Meta sent it."""

    entry: str
    body: bytes


class Inbox:
    """Webhooks that nobody has worked off. Every method raises QueueError.

    Nothing is repeated here: who appends is asked again by Meta, who reads comes back anyway.

    Args:
        commands, reads: a client for commands and one for blocking reads.
        settings: INBOX_MAX.
        clock: between two looks.
    """

    def __init__(self, commands: Redis, reads: Redis, settings: Settings, clock: Clock) -> None:
        """Borrow the clients."""
        self._commands = commands
        self._reads = reads
        self._most = settings.inbox_max
        self._clock = clock
        self._left = 0
        self._looked_s = float("-inf")

    @classmethod
    def open(cls, settings: Settings, clock: Clock) -> Self:
        """Open both clients; nothing is sent yet."""
        commands = open_redis(settings, keys.HOOKS)
        return cls(commands, open_redis(settings, keys.HOOKS, blocking=True), settings, clock)

    async def close(self) -> None:
        """Close every connection."""
        await self._commands.aclose()
        await self._reads.aclose()

    async def append(self, body: bytes) -> bool:
        """Keep a body; False: too many wait, or the server is nearly full."""
        now_s = self._clock.monotonic()
        if now_s - self._looked_s >= _LOOK_S:
            self._left = await self._room()
            self._looked_s = now_s
        if self._left <= 0:
            self._looked_s = float("-inf")  # room is looked for again by the next one
            return False
        self._left -= 1
        await _asked(lambda: self._commands.xadd(keys.INBOX, {_BODY: body}))
        return True

    async def _room(self) -> int:
        """Return how many more entries there is room for."""

        async def look() -> list[Any]:
            pipe = self._commands.pipeline(transaction=False)
            pipe.xlen(keys.INBOX)
            pipe.info("memory")
            return list(await pipe.execute())

        length, info = await _asked(look)
        most = int(info.get("maxmemory", 0))
        if most and int(info.get("used_memory", 0)) > _MEMORY_SHARE * most:
            return 0
        return self._most - int(length)

    async def prepare(self) -> None:
        """Make the group; harmless when it is there. From 0: what waits was promised to Meta."""
        try:
            await _asked(
                lambda: self._commands.xgroup_create(
                    keys.INBOX, keys.GROUP_RECEIPTS, id="0", mkstream=True
                ),
                passing="BUSYGROUP",
            )
        except ResponseError:
            return

    async def read(self, consumer: str, count: int, block_ms: int, *, given: bool) -> list[Hook]:
        """Take new bodies; wait up to `block_ms` for the first.

        With `given`, return at once what this consumer was given and never acknowledged: a reply
        that was lost on its way.
        """
        start = "0" if given else ">"

        async def act() -> list[Any]:
            reply = await self._reads.xreadgroup(
                keys.GROUP_RECEIPTS, consumer, {keys.INBOX: start}, count=count, block=block_ms
            )
            return entries_of(reply)

        try:
            entries = await _asked(act, passing="NOGROUP")
        except ResponseError:
            await self.prepare()
            return []
        return [Hook(entry, fields.get(_BODY, b"")) for entry, fields in entries]

    async def claim_stale(
        self, consumer: str, cursor: str, idle_ms: int = 30_000
    ) -> tuple[str, list[Hook]]:
        """Take over bodies whose reader died; carry the returned cursor (pitfalls S4)."""
        try:
            reply: Any = await _asked(
                lambda: self._commands.xautoclaim(
                    keys.INBOX, keys.GROUP_RECEIPTS, consumer, idle_ms, start_id=cursor, count=100
                ),
                passing="NOGROUP",
            )
        except ResponseError:
            await self.prepare()
            return "0-0", []
        hooks = [
            Hook(text_of(entry), fields[_BODY.encode()]) for entry, fields in reply[1] if fields
        ]
        return text_of(reply[0]), hooks

    async def ack(self, entries: list[str]) -> None:
        """Acknowledge and delete bodies whose effect is committed."""
        if not entries:
            return

        async def act() -> list[Any]:
            pipe = self._commands.pipeline(transaction=True)
            pipe.xack(keys.INBOX, keys.GROUP_RECEIPTS, *entries)
            pipe.xdel(keys.INBOX, *entries)
            return list(await pipe.execute())

        await _asked(act)

    async def age_ms(self) -> int:
        """Return how long the oldest body has waited; 0 when none does."""

        async def look() -> list[Any]:
            pipe = self._commands.pipeline(transaction=False)
            pipe.time()
            pipe.xrange(keys.INBOX, count=1)
            return list(await pipe.execute())

        time, head = await _asked(look)
        return age_of(int(time[0]) * 1000 + int(time[1]) // 1000, head)


async def _asked(act: Callable[[], Awaitable[_T]], passing: str = "") -> _T:
    """Translate what redis-py raises; an answer that begins with `passing` comes through."""
    try:
        return await act()
    except (RedisError, OSError, TimeoutError) as error:
        if passing and isinstance(error, ResponseError) and str(error).startswith(passing):
            raise
        raise error_of(error) from error
