"""Meta's side of a stage: webhooks about what the ledger holds, repeated until they are taken.

Knows what was said of whom, and so what receipts must have come to whatever went wrong.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import msgspec

from api import webhooks
from shared import keys
from shared.opaque import opaque_for
from shared.receipts import Receipts
from shared.settings import Secret
from tests.faults.world import World, archive_lost
from tests.oracle import Accepted
from worker.webhooks import RUNGS

if TYPE_CHECKING:
    from tests.faults.stage import Stage

APP_SECRET: Final = "of the app"  # noqa: S105 - a test's
OPAQUE_KEY: Final = b"opaque"
AT_S: Final = 1_795_511_671
REPEATS: Final = 12


class FaultyReceipts(Receipts):
    """The PostgreSQL door of receipts. One method is one effect."""

    def __init__(self, pool: Any, world: World) -> None:
        super().__init__(pool)
        self._world = world


def _stand_before(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    method = getattr(Receipts, name)

    async def act(self: FaultyReceipts, *args: Any, **kwargs: Any) -> Any:
        return await self._world.call(
            "pg", name, lambda: method(self, *args, **kwargs), archive_lost, archive_lost
        )

    return act


for _name in ("find", "record", "ripe", "forget", "expire", "wish"):
    setattr(FaultyReceipts, _name, _stand_before(_name))


def open_to_meta(stage: Stage) -> None:
    """Let processes that start from now on take webhooks and work them off."""
    stage.tune(whatsapp_app_secret=(Secret(APP_SECRET),))
    stage.has_hooks = True


async def say(stage: Stage, job: Accepted, *said: tuple[int, str]) -> None:
    """Say these of what was accepted at these positions, as often as it takes to be heard."""
    lines = {
        line.position: line
        for line in stage.provider.ledger
        if line.job == job.job and line.verdict == "accepted"
    }
    statuses = []
    for position, word in said:
        line = lines.get(position)
        if line is None:
            continue
        stage.said.setdefault((job.job, position), set()).add(word)
        opaque = opaque_for(OPAQUE_KEY, job.job)(position, line.attempt)
        rung = RUNGS[word]
        status = {"id": line.wamid, "status": word, "timestamp": str(AT_S + rung)}
        statuses.append({**status, "biz_opaque_callback_data": opaque})
    value = {"metadata": {"phone_number_id": "1001"}, "statuses": statuses}
    entry = {"id": "0", "changes": [{"field": "messages", "value": value}]}
    body = {"object": "whatsapp_business_account", "entry": [entry]}
    digest = hmac.digest(APP_SECRET.encode(), msgspec.json.encode(body), "sha256").hex()
    headers = {"X-Hub-Signature-256": f"sha256={digest}"}
    for _ in range(REPEATS):
        answer = await stage.ask(webhooks.receive, "/webhooks/whatsapp", body, headers)
        if answer is not None and answer.status == 200:
            return
        await stage.later(1_000)
    stage.notes.append(("liveness", "a webhook is never taken"))


async def is_worked_off(stage: Stage) -> bool:
    """Tell whether nothing waits, in the inbox or for its row."""
    if await stage.redis.xlen(keys.INBOX):
        return False
    return not await stage.pool.fetchval("SELECT count(*) FROM early_receipts")


async def judge(stage: Stage, job: Accepted) -> None:
    """Note where a receipt is not the highest that was said, or totals are not their sum (I13)."""
    rows = await stage.pool.fetch("SELECT * FROM campaign_logs WHERE job_id = $1", job.job)
    have = {row["position"]: row["receipt"] for row in rows}
    for (name, position), words in stage.said.items():
        most = max(RUNGS[word] for word in words)
        if name == job.job and have.get(position) != most:
            words_ = f"{name}/{position} is {have.get(position)}, {sorted(words)} were said"
            stage.notes.append(("I13", words_))
        row = next((row for row in rows if row["position"] == position), None)
        if row is not None and row["outcome"] != "sent":
            stage.notes.append(("I13", f"{name}/{position} is {row['outcome']}, and was heard of"))
        if row is not None and row["wamid2"] is not None:
            stage.notes.append(("I13", f"{name}/{position} has a second message: {row['wamid2']}"))
    [of_job] = await stage.pool.fetch("SELECT * FROM bulk_jobs WHERE id = $1", job.job)
    names = ("delivered", "read", "undelivered")
    rungs = list(have.values())
    tally = tuple(
        sum(is_one(rung) for rung in rungs)
        for is_one in (lambda r: r >= 3, lambda r: r == 4, lambda r: r == 2)
    )
    told = await stage.redis.hmget(keys.job(job.job), names)
    seen = {
        "rows": tally,
        "job": tuple(of_job[name] for name in names),
        "Redis": tuple(int(value or 0) for value in told),
    }
    if len(set(seen.values())) > 1:
        stage.notes.append(("I13", f"{job.job} delivered, read, undelivered: {seen}"))
