"""What Redis clients say of a connection that is gone, on the loop that the processes run on."""

from __future__ import annotations

import asyncio

import pytest
import redis.exceptions
import uvloop

from shared.archive import Archive
from shared.clock import Clock
from shared.connect import open_postgres, open_redis
from shared.embedded.postgres import Postgres
from shared.embedded.valkey import Valkey
from shared.errors import ArchiveError, QueueError
from shared.primary import Wary
from shared.queue import Queue
from shared.settings import Settings
from tests.conftest import replaced
from tests.faults.real.proxy import Proxy


@pytest.mark.redis
def test_a_connection_that_was_reset_is_a_lost_one_and_no_other_error(
    valkey: Valkey, settings: Settings
) -> None:
    """uvloop answers a write to a closed transport with RuntimeError: it ended whole workers."""

    async def act() -> list[str]:
        proxy, met = Proxy(valkey.port), []
        await proxy.open()
        url = valkey.url.replace(f":{valkey.port}/", f":{proxy.port}/")
        client = open_redis(replaced(settings, redis_url=url))
        for _ in range(5):
            await client.ping()
            proxy.cut_all()
            # The loop must have seen the reset: only then is the transport closed.
            await Clock().sleep(0.02)
            try:
                await client.ping()
            except redis.exceptions.RedisError as error:
                met.append(type(error).__name__)
        await client.aclose()
        await proxy.close()
        return met

    assert set(uvloop.run(act())) <= {"ConnectionError"}


@pytest.mark.redis
def test_a_script_comes_through_a_reset(valkey: Valkey, settings: Settings) -> None:
    async def act() -> int:
        proxy, lost = Proxy(valkey.port), 0
        await proxy.open()
        url = valkey.url.replace(f":{valkey.port}/", f":{proxy.port}/")
        queue = await Queue.open(replaced(settings, redis_url=url))
        for _ in range(5):
            await queue.give_born(0, "b")
            proxy.cut_all()
            await Clock().sleep(0.02)
            try:
                await queue.tick(0, "w1", slots=1)
            except QueueError:
                lost += 1
            await queue.begin("w1", [])
            assert await queue.born(0) == "b"
        await queue.close()
        await proxy.close()
        return lost

    assert uvloop.run(act()) <= 5


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://127.0.0.1:1/0", "Connection"),
        ("rediss://127.0.0.1:1/0", "SSLConnection"),
        ("unix:///tmp/none.sock", "UnixDomainSocketConnection"),
    ],
)
def test_every_kind_of_address_has_such_connections(url: str, kind: str) -> None:
    made = open_redis(replaced(Settings(), redis_url=url)).connection_pool.connection_class
    assert issubclass(made, Wary)
    assert kind in {base.__name__ for base in made.__mro__}


async def test_connections_to_postgresql_that_died_in_silence_cost_one_time_out_together(
    postgres: Postgres, settings: Settings
) -> None:
    """Each alone costs its statement's time-out and its cancel's: one after another, minutes."""
    proxy, clock = Proxy(postgres.port), Clock()
    await proxy.open()
    url = postgres.url.replace(f":{postgres.port}/", f":{proxy.port}/")
    pool = await open_postgres(replaced(settings, database_url=url, database_timeout_s=0.5))
    archive = Archive(pool)
    # Five connections, all in use once.
    await asyncio.gather(*(pool.fetchval("SELECT pg_sleep(0.1)") for _ in range(5)))
    proxy.half_open()
    await proxy.heal()
    began_s, failures = clock.monotonic(), 0
    while True:
        try:
            await archive.ping()
            break
        except ArchiveError:
            failures += 1
    assert failures == 1
    assert clock.monotonic() - began_s < 3
    pool.terminate()
    await proxy.close()
