"""The API killed while it takes submissions: whoever repeats his key gets one job, whole."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec

from tests import oracle
from tests.e2e.stack import KEY
from tests.faults.real.rig import IDS, Rig, require

SIZES: Final = (1, 60, 700, 2000)
LARGE: Final = 50_000
ASK_S: Final = 15
_decode: Final = msgspec.json.Decoder().decode


class Answer(NamedTuple):
    """What a client got; status 0: nothing, or half of something."""

    status: int
    code: str
    body: dict[str, Any]


async def ask(origin: str, key: str, again: str, phones: list[int], sender: str) -> Answer:
    """Submit once, with an Idempotency-Key."""
    body = {
        "message": {"kind": "text", "text": {"body": "hello"}},
        "recipients": [f"+{phone}" for phone in phones],
        "sender": sender,
    }
    headers = {
        "Authorization": f"Bearer {key}",
        "Idempotency-Key": again,
        "Content-Type": "application/json",
    }
    return await _ask(f"{origin}/api/bulk/send", headers, msgspec.json.encode(body))


async def _ask(url: str, headers: dict[str, str], data: bytes = b"") -> Answer:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_S)) as session,
            session.post(url, data=data, headers=headers) as response,
        ):
            found = _decode(await response.read() or b"{}")
            return Answer(response.status, str(found.get("code", "")), found)
    except (aiohttp.ClientError, OSError, TimeoutError):
        return Answer(0, "", {})


class Customer:
    """One client: submits, and repeats its key until it has an answer it can keep."""

    def __init__(self, rig: Rig, count: int) -> None:
        """Draw a key."""
        self.rig = rig
        self.key = IDS.token(12)
        self.phones = rig.phones(count)
        self.tries = 0

    async def submit(self, origins: list[str], within_s: float) -> None:
        """Ask one after the other of these, until one has said 202, then once more.

        Whoever was told 202 must get the same again, and owns exactly one row.
        """
        end_s = self.rig.clock.monotonic() + within_s
        while True:
            origin = origins[min(self.tries, 1) % len(origins)]
            answer = await ask(origin, KEY, self.key, self.phones, "main")
            self.tries += 1
            if answer.status == 202:
                break
            # Nothing, the 503s that say so, and "another of yours is read now" may be repeated.
            may = answer.status in (0, 503) or answer.code == "rate_limited"
            require(may, f"submit was answered {answer[:2]}")
            require(self.rig.clock.monotonic() < end_s, f"no 202 in {within_s:g} s: {answer[:2]}")
            await self.rig.clock.sleep(0.1)
        job = answer.body["jobId"]
        self.rig.accepted.append(oracle.Accepted(job, self.phones))
        if len(self.phones) == LARGE:
            await _ask(
                f"{origins[-1]}/api/bulk/jobs/{job}/cancel", {"Authorization": f"Bearer {KEY}"}
            )
        again = await ask(origins[-1], KEY, self.key, self.phones, "main")
        if again.status == 202 or again.status not in (0, 429, 503):
            same = again.status == 202 and again.body["jobId"] == job
            require(same, f"{job} was answered, then {again.status} {again.body.get('jobId')}")

    async def owns_one(self) -> None:
        """Require one row for the key."""
        rows = await self.rig.pool.fetchval(
            "SELECT count(*) FROM bulk_jobs WHERE idempotency_key = $1", self.key
        )
        require(rows == 1, f"{rows} rows for one Idempotency-Key")


async def api_kills(rig: Rig, chance: Random, index: int) -> dict[str, float]:
    """G5: one of two API processes dies while four clients submit through it."""
    await rig.workers(2)
    await rig.apis_ready(2)
    victim, origin = rig.apis.pop(0)
    sizes = [chance.choice(SIZES) for _ in range(4)]
    if index % 20 == 7:
        sizes[0] = LARGE
    customers = [Customer(rig, size) for size in sizes]
    origins = [origin, rig.apis[0][1]]
    async with asyncio.TaskGroup() as group:
        for customer in customers:
            group.create_task(customer.submit(origins, 20))
        await rig.clock.sleep(chance.uniform(0, 1.5 if LARGE in sizes else 0.5))
        await victim.kill()
        rig.start_api()
    for customer in customers:
        await customer.owns_one()
    return {
        "submissions": len(customers),
        "answered at once": sum(customer.tries == 1 for customer in customers),
    }
