"""Meta's side of a stage: webhooks about what the ledger holds, repeated until they are taken.

Knows what was said of whom, and so what receipts must have come to whatever went wrong.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from api import webhooks
from shared import keys
from shared.opaque import opaque_for
from shared.receipts import Receipts
from shared.settings import Secret
from tests.faults.world import World, archive_lost
from tests.oracle import Accepted, Line
from worker.webhooks import RUNGS

if TYPE_CHECKING:
    from tests.faults.stage import Stage

APP_SECRET: Final = "of the app"  # noqa: S105 - a test's
OPAQUE_KEY: Final = b"opaque"
AT_S: Final = 1_795_511_671
REPEATS: Final = 12
# What names its recipient waits for the row; what has only an id, for a row that has it too.
_WAITING: Final = """SELECT count(*) FROM early_receipts e WHERE e.job_id <> ''
  OR EXISTS (SELECT 1 FROM campaign_logs l WHERE e.wamid IN (l.wamid, l.wamid2))"""


class Said(NamedTuple):
    """What Meta said of a message; `is_placed`: with the value that names its recipient."""

    word: str
    wamid: str | None
    is_placed: bool


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
    lines = {line.position: line for line in accepts(stage) if line.job == job.job}
    statuses = [of(stage, lines[at], word) for at, word in said if at in lines]
    for _ in range(REPEATS):
        if await tell(stage, statuses):
            return
        await stage.later(1_000)
    stage.notes.append(("liveness", "a webhook is never taken"))


def accepts(stage: Stage) -> list[Line]:
    """Return the requests that the far side took."""
    return [line for line in stage.provider.ledger if line.verdict == "accepted"]


def of(stage: Stage, line: Line, word: str, *, is_placed: bool = True) -> dict[str, str]:
    """Return a status of a message that was taken, and remember that it was said."""
    said = Said(word, line.wamid, is_placed)
    stage.said.setdefault((line.job, line.position), set()).add(said)
    status = {"id": line.wamid or "", "status": word, "timestamp": str(AT_S + RUNGS[word])}
    if is_placed:
        opaque = opaque_for(OPAQUE_KEY, line.job)(line.position, line.attempt)
        status["biz_opaque_callback_data"] = opaque
    return status


def of_a_stranger(stage: Stage, number: int, word: str) -> dict[str, str]:
    """Return a status of a message that nobody here has sent."""
    wamid = f"wamid.stranger.{number}"
    stage.strangers.add((wamid, RUNGS[word]))
    return {"id": wamid, "status": word, "timestamp": str(AT_S + RUNGS[word])}


async def tell(stage: Stage, statuses: list[dict[str, str]]) -> bool:
    """Say statuses once, in one body; tell whether they were taken."""
    value = {"metadata": {"phone_number_id": "1001"}, "statuses": statuses}
    entry = {"id": "0", "changes": [{"field": "messages", "value": value}]}
    body = {"object": "whatsapp_business_account", "entry": [entry]}
    digest = hmac.digest(APP_SECRET.encode(), msgspec.json.encode(body), "sha256").hex()
    headers = {"X-Hub-Signature-256": f"sha256={digest}"}
    answer = await stage.ask(webhooks.receive, "/webhooks/whatsapp", body, headers)
    return answer is not None and answer.status == 200


async def is_worked_off(stage: Stage) -> bool:
    """Tell whether nothing waits, in the inbox or for a row that is there or will be."""
    if await stage.redis.xlen(keys.INBOX):
        return False
    return not await stage.pool.fetchval(_WAITING)


async def look(stage: Stage) -> None:
    """Note a receipt that has fallen since the last look (I13)."""
    for row in await stage.pool.fetch("SELECT job_id, position, receipt FROM campaign_logs"):
        at = (row["job_id"], row["position"])
        if row["receipt"] < stage.receipts_seen.get(at, 0):
            words = f"{at[0]}/{at[1]}: {stage.receipts_seen[at]}, then {row['receipt']}"
            stage.notes.append(("I13", words))
        stage.receipts_seen[at] = row["receipt"]


async def judge_strangers(stage: Stage) -> None:
    """Note where what was said of strangers' messages is not kept once (I13)."""
    rows = await stage.pool.fetch("SELECT wamid, receipt FROM early_receipts")
    kept = [tuple(row) for row in rows if row["wamid"].startswith("wamid.stranger.")]
    if sorted(kept) != sorted(stage.strangers):
        stage.notes.append(("I13", f"strangers said {stage.strangers}, kept is {kept}"))


async def judge(stage: Stage, job: Accepted) -> None:
    """Note where a receipt is not the highest that was said, or totals are not their sum (I13)."""
    rows = await stage.pool.fetch("SELECT * FROM campaign_logs WHERE job_id = $1", job.job)
    have = {row["position"]: row["receipt"] for row in rows}
    copies = Counter((line.job, line.position) for line in accepts(stage))
    for row in rows:
        at = (job.job, row["position"])
        # Without a place it is known by an id that we have, and none came with a lost answer.
        heard = [said for said in stage.said.get(at, ())
                 if said.is_placed or said.wamid in (row["wamid"], row["wamid2"])]  # fmt: skip
        most = max((RUNGS[said.word] for said in heard), default=0)
        where = f"{job.job}/{row['position']}"
        if row["receipt"] != most:
            stage.notes.append(("I13", f"{where} is {row['receipt']}, {heard} were said"))
        if heard and row["outcome"] != "sent":
            stage.notes.append(("I13", f"{where} is {row['outcome']}, and was heard of"))
        if row["wamid2"] is not None and copies[at] < 2:
            stage.notes.append(("I13", f"{where} has a second message: {row['wamid2']}"))
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
