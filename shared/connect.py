"""Open Redis clients and the PostgreSQL pool with time-outs that hold; notice another server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.errors import ArchiveError, SettingsError
from shared.primary import (
    CLASSES,
    AskCluster,
    AskSentinel,
    Wary,
    WaryPlain,
    WaryTLS,
    Where,
    address_of,
)
from shared.settings import Settings

# A blocking read must end well before its socket does (pitfalls R2).
_BLOCKING_MARGIN_S: Final = 3.0
_SOCKET_TIMEOUT_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 2.0
OnConnect = Callable[[Connection], Awaitable[None]]


def open_redis(
    settings: Settings,
    tag: str = "",
    *,
    blocking: bool = False,
    on_connect: OnConnect | None = None,
) -> Redis:
    """Return a client that makes no retries of its own.

    redis-py repeats a command ten times by default when its answer was lost (pitfalls R1); here
    only whole scripts are repeated, by the queue.

    Args:
        settings: for REDIS_URL and WORKER_BLOCK_MS.
        tag: what its keys begin with: in a cluster, who owns that slot is asked.
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
    kind, options = _options_of(_plain(settings.redis_url), tag)
    pool = ConnectionPool(
        connection_class=kind,
        **options,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
        socket_connect_timeout=_CONNECT_TIMEOUT_S,
        socket_keepalive=True,
        health_check_interval=0,
        **extra,
    )
    return Redis.from_pool(pool)


def _options_of(url: str, tag: str) -> tuple[type[Wary], dict[str, Any]]:
    address = address_of(url)
    if address is None:
        options: dict[str, Any] = dict(parse_url(url))
        return CLASSES[options.pop("connection_class", Connection)], options
    where: Where = AskCluster(address, tag)
    if address.kind == "sentinel":
        where = AskSentinel(address)
    options = {"where": where, "host": "", "db": address.db}
    if address.username:
        options["username"] = address.username
    if address.password:
        options["password"] = address.password
    return (WaryTLS if address.is_tls else WaryPlain), options


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
            # To connect, and to wait for a cancelled statement: a dead line costs both.
            timeout=min(_CONNECT_TIMEOUT_S, settings.database_timeout_s),
            server_settings={
                "search_path": settings.database_schema,
                "application_name": "drumbeat",
            },
        )
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise ArchiveError(f"PostgreSQL cannot be reached ({type(error).__name__})") from error
