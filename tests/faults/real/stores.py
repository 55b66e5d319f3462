"""Redis and PostgreSQL that are killed, frozen, emptied, filled up, cut short and failed over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from random import Random
from typing import Final

import redis.exceptions

from shared.embedded.valkey import Valkey
from tests import oracle
from tests.e2e.stack import KEY
from tests.faults.real.door import ask
from tests.faults.real.proxy import Proxy
from tests.faults.real.rig import LEASE_S, Rig, require
from tests.faults.real.workers import FINISH_S

_ACCEPTED: Final = 202
COUNT: Final = 2000
RATE: Final = 400  # of the sender `fast`
# A row that nobody has in Redis is taken when it is 10 s old, by the look that comes 5 s later.
PUBLISH_S: Final = 16
MARKS_S: Final = 0.02


async def redis_kills(rig: Rig, chance: Random, index: int) -> dict[str, float]:
    """G6: kill -9 of Valkey while it sends; every fifth time SIGSTOP for lease + 2 s."""
    await rig.workers(2)
    is_stop = index % 5 == 4
    job = await rig.submit(COUNT, chance.choice(["main", "fast", "fast"]))
    await rig.has_sent(job, chance.randrange(1, COUNT * 7 // 10))
    reaped, child = rig.logged("worker.reaped"), rig.valkey.child
    assert child is not None
    if is_stop:
        child.send(signal.SIGSTOP)
        await rig.clock.sleep(LEASE_S + 2)
        child.send(signal.SIGCONT)
    else:
        await rig.valkey.kill()
        await rig.clock.sleep(chance.choice([0.0, 0.3, 1.5, LEASE_S + 1]))
        await rig.valkey.start()
    back_s, took_s = rig.clock.monotonic(), 0.0
    if rig.asked(job) < COUNT:
        took_s = await rig.goes_on(back_s, 5, "Redis was back")
    await rig.has_ended(job, 5 + FINISH_S)
    unknown = await rig.ended_well(job)
    rig.bounded(unknown, 0)
    require(rig.logged("worker.reaped") == reaped, "a worker that lives was reaped")
    return {"unknown": unknown, "worst pause s": took_s}


async def wipe(rig: Rig, chance: Random, _index: int) -> dict[str, float]:
    """G6: FLUSHALL while it sends: no silent second send, and the doubt is bounded and counted."""
    await rig.workers(2)
    count = 2 * COUNT
    job = await rig.submit(count, "fast", step=RATE)
    await rig.has_sent(job, chance.randrange(100, COUNT))
    logged = await rig.pool.fetchval("SELECT count(*) FROM campaign_logs")
    async with rig.redis() as client:
        await client.flushall()
    wiped_s = rig.clock.monotonic()
    row = await rig.stack.archive.job(job, None)
    assert row is not None
    doubts = row.reserved - logged
    rig.unknown_max += doubts
    # The rebuilt job goes on where nobody can have been before.
    took_s = await rig.starts(job, set(range(row.reserved + 1, count)), wiped_s, 15) - wiped_s
    await rig.has_ended(job, count / RATE + FINISH_S)
    unknown = await rig.ended_well(job)
    rig.bounded(unknown, doubts)
    return {"unknown": unknown, "may be unknown": doubts, "worst pause s": took_s}


# -- PostgreSQL --------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """Return a process and its children: each backend is a session of its own."""
    found = [pid]
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid:
                    found.append(int(folder.name))
    return found


def tell(pids: list[int], number: int) -> None:
    """Send a signal to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def postgres_outages(rig: Rig, chance: Random, index: int) -> dict[str, float]:
    """G8: PostgreSQL killed -9 for a moment or for 6 s, or frozen for 10 s, while it sends.

    Released is as far as PostgreSQL knows and no further; that far it goes on without it.
    """
    await rig.workers(2)
    rate, step = 200, 600
    job = await rig.submit(COUNT, "steady", step=step)
    await rig.has_sent(job, chance.randrange(50, COUNT // 3))
    child = rig.postgres.child
    assert child is not None
    kind = ("killed", "frozen", "away")[index % 3]
    began_s, asked = rig.clock.monotonic(), rig.asked(job)
    pids = family(child.pid)
    away_s = {"killed": 0.0, "frozen": 10.0, "away": 6.0}[kind]
    if kind == "frozen":
        tell(pids, signal.SIGSTOP)
    else:
        tell(pids[1:], signal.SIGKILL)
        await rig.postgres.kill()
    await rig.clock.sleep(away_s)
    highest, gone = rig.asked(job), rig.clock.monotonic() - began_s
    async with rig.redis() as client:
        reserved = int(await client.hget(f"{{s0}}:job:{job}", "reserved") or 0)
    is_paused = highest >= min(reserved, COUNT)
    if kind == "frozen":
        tell(pids, signal.SIGCONT)
    else:
        await rig.postgres.start()
    back_s, took_s = rig.clock.monotonic(), 0.0
    require(highest <= reserved, f"{highest} were asked for, {reserved} are reserved")
    if away_s:
        enough = min(0.8 * rate * (gone - 1), reserved - asked - 1)
        require(highest - asked >= enough, f"{highest - asked} in {gone:.1f} s without PostgreSQL")
    if is_paused and highest < COUNT:
        took_s = await rig.goes_on(back_s, 2, "PostgreSQL was back")
    await rig.has_ended(job, COUNT / rate + FINISH_S)
    unknown = await rig.ended_well(job)
    rig.bounded(unknown, 0)
    return {"unknown": unknown, "paused at the mark": int(is_paused), "worst pause s": took_s}


# -- a shorter history -------------------------------------------------------------------------


async def power_cuts(rig: Rig, chance: Random, index: int) -> dict[str, float]:
    """G7: the append-only file ends up to a second before the kill, or inside an entry.

    Every fifth time a worker dies in the same second, whose sends of it may then be repeated.
    """
    await rig.workers(2)
    takes_worker = index % 5 == 4
    job = await rig.submit(COUNT, "fast")
    await rig.has_sent(job, chance.randrange(RATE, COUNT * 6 // 10))
    [file] = sorted((rig.valkey.folder / "appendonlydir").glob("*.incr.aof"))[-1:]
    marks: list[tuple[float, int]] = []
    watched_s = rig.clock.monotonic() + 1.2
    late = ""
    while (now_s := rig.clock.monotonic()) < watched_s:
        marks.append((now_s, file.stat().st_size))
        if not late and watched_s - now_s < 0.3 and index % 2:
            late = await rig.submit(200, "main")
        await rig.clock.sleep(MARKS_S)
    await rig.valkey.kill()
    killed_s = rig.clock.monotonic()
    if takes_worker:
        await rig.stack.workers.pop(0).kill()
    last_s, size = chance.choice([mark for mark in marks if killed_s - mark[0] <= 1.0])
    whole = file.stat().st_size
    if chance.random() < 0.5:
        size = min(whole, size + chance.randrange(1, 200))
    os.truncate(file, size)
    again = 0
    if takes_worker:
        # What the dead one sent after the mark nobody can tell again, nor what it had in the air.
        again = sum(last_s - 0.5 <= t <= killed_s + 0.1 for t in rig.times())
        rig.again_max += again
        rig.unknown_max += again
        rig.accepted = [oracle.Accepted(*one[:2], resend=True) for one in rig.accepted]
        rig.add_worker()
    await rig.valkey.start()
    back_s = rig.clock.monotonic()
    took_s = await rig.goes_on(back_s, 5, "a power cut")
    await rig.has_ended(job, COUNT / RATE + FINISH_S)
    unknown = await rig.ended_well(job)
    if late:
        await rig.has_ended(late, PUBLISH_S + FINISH_S)
        unknown += await rig.ended_well(late)
    rig.bounded(unknown, again)
    return {
        "with a worker": int(takes_worker),
        "unknown": unknown,
        "second copies with a worker": rig.second_copies(),
        "bytes cut": whole - size,
        "worst pause s": took_s,
    }


async def failovers(rig: Rig, chance: Random, index: int) -> dict[str, float]:
    """G15: a replica whose link has been dead for 0.8 s takes over, which stands for Sentinel.

    By turns with answers of 3 s, and with a job submitted 0.3 s before.
    """
    front = rig.proxies["redis"]
    link = Proxy(rig.valkey.port)
    await link.open()
    replica = Valkey(rig.folder / f"replica-{rig.clock.now_ms()}")
    replica.folder.mkdir(mode=0o700)
    (replica.folder / "server.json").write_text(
        json.dumps({"port": 0, "password": rig.valkey.password})
    )
    await replica.start()
    raw = redis.asyncio.Redis.from_url(replica.url)
    try:
        await raw.config_set("masterauth", rig.valkey.password)
        await raw.replicaof("127.0.0.1", link.port)

        async def is_up() -> bool:
            info = await raw.info("replication")
            return bool(info["master_link_status"] == "up")

        await rig.until(is_up, 20, "the replica follows")
        slow = index % 2 == 1
        if slow:
            await rig.stack.configure(latency_ms=3000, latency_p99_ms=3500)
        await rig.workers(2)
        # Two workers with answers of 3 s send 53 a second.
        job = await rig.submit(COUNT // 2 if slow else COUNT, "main" if slow else "fast")
        if slow:
            await rig.until(lambda: rig.asked(job) > 200, 30, "200 are asked for")
        else:
            await rig.has_sent(job, chance.randrange(100, COUNT * 6 // 10))
        link.half_open()
        await rig.clock.sleep(0.5)
        late = await rig.submit(200, "main")
        await rig.clock.sleep(0.3)
        await rig.valkey.kill()
        front.cut_all()
        await rig.clock.sleep(chance.choice([0.1, 1.0, 2.0]))
        await raw.replicaof("NO", "ONE")
        front.point_to(replica.port)
        back_s = rig.clock.monotonic()
        took_s = await rig.goes_on(back_s, 5, "a fail-over")
        await rig.has_ended(job, 40 + FINISH_S)
        await rig.has_ended(late, PUBLISH_S + 10 + FINISH_S)
        unknown = await rig.ended_well(job) + await rig.ended_well(late)
        rig.bounded(unknown, 0)
        found = await rig.verdict()
        require(not found, "; ".join(found[:5]))
        return {"unknown": unknown, "worst pause s": took_s}
    finally:
        await raw.aclose()
        await rig.put_away()
        await replica.stop()
        await link.close()
        await rig.valkey.start()


# -- a full server -----------------------------------------------------------------------------


async def full(rig: Rig, chance: Random, _index: int) -> dict[str, float]:
    """G12: 8 MB of memory, filled while it sends: no submission, no new release, nothing lost."""
    await rig.workers(2)
    await rig.apis_ready(1)
    origin = rig.apis[0][1]
    job = await rig.submit(COUNT, "fast")
    await rig.has_sent(job, chance.randrange(100, COUNT // 2))
    refused, junk = "", []
    async with rig.redis() as client:
        await client.config_set("maxmemory", "8mb")
        for turn in range(5):
            with contextlib.suppress(redis.exceptions.OutOfMemoryError):
                for number in range(10_000):
                    name = f"junk:{turn}:{number}"
                    await client.set(name, b"x" * 10_000, ex=600)
                    junk.append(name)
            phones = rig.phones(1000)
            answer = await ask(origin, KEY, f"full-{turn}", phones, sender="main")
            refused = f"{answer.status} {answer.code}"
            if answer.status != _ACCEPTED:
                break
            # What was written to PostgreSQL meanwhile has left room for it.
            rig.accepted.append(oracle.Accepted(answer.body["jobId"], phones))
        require(refused == "503 storage_full", f"a full Redis was answered {refused}")
        # What is released goes on, what is not waits.
        await rig.until(lambda: rig.stands_still(1.0), 15, "nothing is released", 0.2)
        held = rig.asked(job)
        await client.delete(*junk)
        await client.config_set("maxmemory", "0")
    freed_s = rig.clock.monotonic()
    took_s = await rig.goes_on(freed_s, 5, "memory was free") if held < COUNT else 0.0
    await rig.has_ended(job, COUNT / RATE + FINISH_S)
    unknown = await rig.ended_well(job)
    rig.bounded(unknown, 0)
    return {"unknown": unknown, "waited": COUNT - held, "worst pause s": took_s}
