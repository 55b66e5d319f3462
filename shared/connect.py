"""Open Redis clients and the PostgreSQL pool with time-outs that hold; notice another server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import asyncpg
from redis.asyncio import Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnectionError

from shared.errors import ArchiveError, SettingsError
from shared.settings import Settings

# A blocking read must end well before its socket does (pitfalls R2).
_BLOCKING_MARGIN_S: Final = 3.0
_SOCKET_TIMEOUT_S: Final = 5.0
OnConnect = Callable[[Connection], Awaitable[None]]


class _Told(AbstractConnection):
    """Says what uvloop says of a connection that was reset as redis-py says it.

    Writing to a transport that is closed already is a RuntimeError there, which redis-py lets
    through and nobody who expects a lost connection catches.
    """

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


class _ToldPlain(_Told, Connection):
    """The same on TCP."""


class _ToldSSL(_Told, SSLConnection):
    """The same with TLS."""


class _ToldUnix(_Told, UnixDomainSocketConnection):
    """The same on a UNIX socket."""


_CLASSES: Final = {
    Connection: _ToldPlain,
    SSLConnection: _ToldSSL,
    UnixDomainSocketConnection: _ToldUnix,
}


def open_redis(
    settings: Settings, *, blocking: bool = False, on_connect: OnConnect | None = None
) -> Redis:
    """Return a client that makes no retries of its own.

    redis-py repeats a command ten times by default when its answer was lost (pitfalls R1); here
    only whole scripts are repeated, by the queue.

    Args:
        settings: for REDIS_URL and WORKER_BLOCK_MS.
        blocking: for reads with BLOCK: one connection, whose time-out is longer than the block.
        on_connect: called on every new connection before any other command.

    Raises:
        SettingsError: REDIS_URL is not set.
    """
    if settings.redis_url is None:
        raise SettingsError("REDIS_URL is needed: set it, or use `drumbeat up`")
    timeout = _SOCKET_TIMEOUT_S
    if blocking:
        timeout = settings.worker_block_ms / 1000 + _BLOCKING_MARGIN_S
    extra: dict[str, Any] = {} if on_connect is None else {"redis_connect_func": on_connect}
    client = Redis.from_url(
        _plain(settings.redis_url),
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
        socket_connect_timeout=2.0,
        socket_keepalive=True,
        health_check_interval=0,
        **extra,
    )
    pool = client.connection_pool
    pool.connection_class = _CLASSES[pool.connection_class]
    return client


def _plain(value: object) -> str:
    reveal = getattr(value, "reveal", None)
    return str(reveal() if callable(reveal) else value)


async def open_postgres(settings: Settings, *, size: int | None = None) -> asyncpg.Pool[Any]:
    """Return a pool whose connections look into DATABASE_SCHEMA alone.

    Raises:
        SettingsError: DATABASE_URL is not set.
        ArchiveError: PostgreSQL cannot be reached.
    """
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is needed: set it, or use `drumbeat up`")
    try:
        return await asyncpg.create_pool(
            _plain(settings.database_url),
            min_size=1,
            max_size=size or settings.database_pool,
            command_timeout=settings.database_timeout_s,
            timeout=settings.database_timeout_s,
            server_settings={
                "search_path": settings.database_schema,
                "application_name": "drumbeat",
            },
        )
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise ArchiveError(f"PostgreSQL cannot be reached ({type(error).__name__})") from error
