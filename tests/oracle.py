"""What must hold when a run has drained: the invariants, read from every source there is.

Reads the client's record, the provider's ledger, Redis and PostgreSQL; changes nothing. It asks the
servers directly and not through our doors, which are what is judged.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis

from shared import keys
from shared.models import State, attempts_of, state_of

EXAMPLES_MAX: Final = 10
_OK, _NO_MORE = 200, 204
COUNTERS: Final = ("sent", "failed", "skipped", "unknown", "cancelled")
_KEPT: Final = re.compile(
    "|".join(
        re.escape(family.pattern).replace("P\\ ", r"\{s\d+\}:").replace(re.escape("<id>"), "[^:]+")
        for family in keys.FAMILIES
        if family.lifetime.startswith("kept")
    )
)


class Line(NamedTuple):
    """One request as the provider saw it; `code` is Graph's when it refused."""

    seq: int
    phone: int
    job: str
    position: int
    attempt: int
    verdict: str
    wamid: str | None
    code: int | None
    where: str = ""
    at_s: float = 0.0


class Accepted(NamedTuple):
    """A job as the client knows it."""

    job: str
    phones: list[int]
    resend: bool = False


class Connection(NamedTuple):
    """One connection of a subscriber: the `Last-Event-ID` it came with, and what it was told.

    Attributes:
        status: of the answer; 0 when none came.
        events: with `id` and `data`, as they came whole.
    """

    given: str
    status: int
    events: Sequence[Any]


class Watched(NamedTuple):
    """Everything one subscriber of a job was told, connection by connection.

    Attributes:
        has_come_back: he came back until the end, and once more.
    """

    job: str
    connections: Sequence[Connection]
    has_come_back: bool = True


class Evidence(NamedTuple):
    """What is known from outside.

    Attributes:
        accepted: every job that was answered 202.
        ledger: every request that reached the provider.
        unknown_max: how many recipients may be unknown (I6).
        again_max: how many second accepts `on_unknown: resend` may have made.
        workers: names of workers that are alive.
        refused: idempotency keys whose last answer was a refusal.
        notes: what was seen while the run went on: (invariant, sentence).
        rate, burst: what the one sender may do; rate 0 when none was set (I9).
        watched: what subscribers were told (I8).
    """

    accepted: list[Accepted]
    ledger: list[Line]
    unknown_max: int = 0
    again_max: int = 0
    workers: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    notes: tuple[tuple[str, str], ...] = ()
    rate: float = 0.0
    burst: float = 0.0
    watched: tuple[Watched, ...] = ()


class Violation(NamedTuple):
    """An invariant that does not hold, with an example and what every source says of it."""

    invariant: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.text}"


class Job(NamedTuple):
    """A job as the stores have it."""

    states: bytes
    fields: dict[str, str]
    row: Any
    logs: dict[int, list[Any]]


async def examine(evidence: Evidence, redis: Redis, pool: Any) -> list[Violation]:
    """Return what does not hold, at most ten examples an invariant."""
    found: list[Violation] = [Violation(*note) for note in evidence.notes]
    jobs = await _read(evidence, redis, pool)
    by_recipient: dict[tuple[str, int], list[Line]] = defaultdict(list)
    for line in evidence.ledger:
        by_recipient[line.job, line.position].append(line)
    unknown = again = 0
    for accepted in evidence.accepted:
        job = jobs[accepted.job]
        found += _one_job(accepted, job)
        for position, phone in enumerate(accepted.phones):
            lines = by_recipient.pop((accepted.job, position), [])
            found += _one_recipient(accepted, job, position, phone, lines)
            again += max(0, sum(line.verdict == "accepted" for line in lines) - 1)
            is_known = position < len(job.states)
            unknown += is_known and state_of(job.states[position]) is State.UNKNOWN
    for (name, position), lines in by_recipient.items():
        found.append(Violation("I2", f"nobody submitted {name}/{position}: {lines}"))
    if unknown > evidence.unknown_max:
        text = f"{unknown} unknown, at most {evidence.unknown_max} can be"
        found.append(Violation("I6", text))
    if again > evidence.again_max:
        text = f"{again} second copies, resend allows {evidence.again_max}"
        found.append(Violation("I2", text))
    found += await _nothing_left(evidence, redis, pool)
    found += paced(evidence.ledger, evidence.rate, evidence.burst)
    for watched in evidence.watched:
        found += told_in_order(watched, jobs[watched.job])
    return _few(found)


def paced(ledger: Sequence[Line], rate: float, burst: float) -> list[Violation]:
    """I9: in no window more calls than the rate allows, by the ledger's clock; 0: no limit."""
    if not rate:
        return []
    at, found = [line.at_s for line in ledger], []
    for i, first in enumerate(at):
        for j in range(i, len(at)):
            calls, most = j - i + 1, rate * (at[j] - first) + burst
            if calls > most + 0.01:
                words = f"{calls} calls in {at[j] - first:.3f} s, at most {most:.1f}"
                found.append(Violation("I9", words))
    return found


def told_in_order(watched: Watched, job: Job) -> list[Violation]:
    """I8: what a subscriber of one job was told only goes up, and ends once, with the truth."""
    found: list[str] = []
    last, has_end = (0, 0), False
    heights: list[int] = []
    for number, connection in enumerate(watched.connections):
        where = f"connection {number} from {connection.given or 'nothing'}"
        if has_end != (connection.status == _NO_MORE) and connection.status in (_OK, _NO_MORE):
            found.append(f"{where}: answered {connection.status}, the end was told: {has_end}")
        for event in connection.events:
            if not event.data or event.name:
                continue
            said = json.loads(event.data)
            if has_end:
                found.append(f"{where}: after the end came {event.id} {said['type']}")
            if said["reset"]:
                last, heights = (0, 0), []
            # What Redis does not have yet has no id: the reader keeps his.
            at = _moment(event.id) if event.id else last
            if event.id and at <= last:
                found.append(f"{where}: {event.id} {said['type']} after {last}")
            now = _heights(said["progress"])
            if any(a < b for a, b in zip(now, heights, strict=False)):
                found.append(f"{where}: {event.id} {said['progress']} after {heights}")
            last, heights, has_end = at, now, said["type"] == "end"
            if has_end:
                found += [f"{where}: {words}" for words in _untrue(event.id, said, job)]
    if watched.has_come_back and not (has_end and watched.connections[-1].status == _NO_MORE):
        found.append(f"no end, or no 204 after it: {[c.status for c in watched.connections]}")
    return [Violation("I8", f"{watched.job}: {words}") for words in found]


def _heights(numbers: Mapping[str, int]) -> list[int]:
    """Return how many have come to an outcome at least so high, the highest first.

    An outcome may only be raised: none of these ever falls.
    """
    counts = [numbers["sent"], numbers["failed"], numbers["skipped"],
              numbers["unknown"] + numbers["cancelled"]]  # fmt: skip
    return list(accumulate(counts))


def _untrue(event: str, said: Any, job: Job) -> Iterable[str]:
    """Yield what a told end does not share with the job as it is."""
    numbers = said["progress"]
    true = {counter: int(job.fields.get(counter, 0)) for counter in COUNTERS}
    told = {counter: numbers[counter] for counter in COUNTERS}
    if sum(told.values()) != numbers["total"]:
        yield f"the end does not add up: {numbers}"
    # A late answer raises an unknown after the end.
    if event == job.fields.get("event") and told != true:
        yield f"the end says {told}, and it is {true}"
    if any(a > b for a, b in zip(_heights(told), _heights(true), strict=True)):
        yield f"the end said {told}, and now it is {true}"
    if said["state"] != job.fields.get("state"):
        yield f"the end says {said['state']}, and it is {job.fields.get('state')}"


def _few(found: Iterable[Violation]) -> list[Violation]:
    counts: Counter[str] = Counter()
    kept = []
    for violation in found:
        counts[violation.invariant] += 1
        if counts[violation.invariant] <= EXAMPLES_MAX:
            kept.append(violation)
    return kept


async def _read(evidence: Evidence, redis: Redis, pool: Any) -> dict[str, Job]:
    ids = [accepted.job for accepted in evidence.accepted]
    pipe = redis.pipeline(transaction=False)
    for job in ids:
        pipe.get(keys.states(job))
        pipe.hgetall(keys.job(job))
    raw = await pipe.execute()
    rows = {row["id"]: row for row in await pool.fetch("SELECT * FROM bulk_jobs")}
    logs: dict[str, dict[int, list[Any]]] = {job: defaultdict(list) for job in ids}
    for row in await pool.fetch(
        "SELECT l.*, j.id AS job FROM campaign_logs l JOIN bulk_jobs j ON j.number = l.job_number"
    ):
        if row["job"] in logs:
            logs[row["job"]][row["position"]].append(row)
    out = {}
    for i, job in enumerate(ids):
        fields = {k.decode(): v.decode(errors="replace") for k, v in raw[2 * i + 1].items()}
        out[job] = Job(raw[2 * i] or b"", fields, rows.get(job), logs[job])
    return out


def _one_job(accepted: Accepted, job: Job) -> list[Violation]:
    """I1, I4 and I5 of a whole job."""
    name, total = accepted.job, len(accepted.phones)
    if job.row is None:
        return [Violation("I1", f"{name} was accepted and has no row")]
    found = []
    if job.row["state"] not in ("completed", "cancelled"):
        found.append(Violation("I1", f"{name} has not ended: {job.row['state']}"))
    tally = Counter(state_of(byte).name.lower() for byte in job.states)
    logged = Counter(row["outcome"] for rows in job.logs.values() for row in rows)
    for counter in COUNTERS:
        seen = {
            "hash": int(job.fields.get(counter, 0)),
            "states": tally[counter],
            "row": job.row[counter],
            "logs": logged[counter],
        }
        if len(set(seen.values())) > 1:
            found.append(Violation("I4", f"{name} {counter}: {seen}"))
    found += [
        Violation("I4", f"{name} {counter}: {job.fields[counter]} at the end")
        for counter in ("in_flight", "retrying")
        if int(job.fields.get(counter, 0))
    ]
    if sum(tally[counter] for counter in COUNTERS) != total:
        found.append(Violation("I4", f"{name} sums to {tally}, not to {total}"))
    reasons = {k: int(v) for k, v in job.fields.items() if k.startswith("by:") and int(v)}
    if sum(reasons.values()) != tally["failed"] + tally["skipped"]:
        found.append(Violation("I4", f"{name} reasons {reasons} beside {tally}"))
    if job.row["state"] != job.fields.get("state"):
        words = f"{job.row['state']} in PostgreSQL, {job.fields.get('state')} in Redis"
        found.append(Violation("I4", f"{name} is {words}"))
    ended, last = job.row["end_event"] or "", job.fields.get("event", "")
    # A late answer raises an unknown after the end, and is announced.
    if not ended or _moment(ended) > _moment(last):
        found.append(Violation("I4", f"{name} ended with the event {ended}, the last is {last}"))
    return found


def _moment(event: str) -> tuple[int, ...]:
    return tuple(int(part) for part in event.split("-")) if event else ()


def _one_recipient(
    accepted: Accepted, job: Job, position: int, phone: int, lines: list[Line]
) -> list[Violation]:
    """I1, I2, I3 and I5 of one recipient."""
    found: list[tuple[str, str]] = []
    rows = job.logs.get(position, [])
    state = state_of(job.states[position]) if position < len(job.states) else None
    outcome = state.name.lower() if state is not None else "absent"
    accepts = [line for line in lines if line.verdict == "accepted"]
    refusals = len(lines) - len(accepts)
    if outcome not in COUNTERS:
        found.append(("I1", f"no outcome: {outcome}"))
    if len(rows) != 1:
        found.append(("I5", f"{len(rows)} rows"))
    elif rows[0]["outcome"] != outcome or int(rows[0]["phone"]) != phone:
        found.append(("I5", f"row says {rows[0]['outcome']} {rows[0]['phone']}, Redis {outcome}"))
    if not accepted.resend and len(lines) > 1 + refusals:
        found.append(("I2", f"{len(lines)} requests after {refusals} refusals"))
    if any(line.phone != phone for line in lines):
        found.append(("I2", "went to another number"))
    wamids = {line.wamid for line in accepts}
    if outcome == "sent":
        if not accepts:
            found.append(("I3", "sent, and the provider never took it"))
        elif rows and rows[0]["wamid"] not in wamids:
            found.append(("I3", f"wamid {rows[0]['wamid']} is not among {wamids}"))
    elif accepts and outcome != "unknown":
        found.append(("I3", f"the provider took it, and it is {outcome}"))
    if state is not None and rows and lines and outcome in ("sent", "failed"):
        attempts = {attempts_of(job.states[position]), rows[0]["attempts"]}
        if len(attempts) > 1 or max(attempts) < max(line.attempt for line in lines):
            found.append(("I5", f"attempts {attempts}, the provider saw {len(lines)}"))
    return [
        Violation(invariant, f"{text}; {_timeline(accepted, job, position, lines)}")
        for invariant, text in found
    ]


def _timeline(accepted: Accepted, job: Job, position: int, lines: list[Line]) -> str:
    byte = job.states[position] if position < len(job.states) else None
    redis = "absent" if byte is None else f"{state_of(byte).name}/{attempts_of(byte)}"
    rows = [
        (row["outcome"], row["attempts"], row["reason"], row["wamid"])
        for row in job.logs.get(position, [])
    ]
    asked = [(line.where, line.attempt, line.verdict, line.wamid or line.code) for line in lines]
    return f"{accepted.job}/{position}: provider {asked}, Redis {redis}, logs {rows}"


async def _nothing_left(evidence: Evidence, redis: Redis, pool: Any) -> list[Violation]:
    """I1 and I7: no work, no key without a lifetime, no consumer, no row that nobody asked for."""
    found = []
    names = [name async for name in redis.scan_iter(count=1000)]
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.ttl(name)
    lifetimes = dict(zip(names, await pipe.execute(), strict=True))
    accepted = {job.job for job in evidence.accepted}
    for name, ttl in lifetimes.items():
        text = name.decode()
        if ttl == -1 and not _KEPT.fullmatch(text):
            found.append(Violation("I7", f"{text} has no lifetime"))
        job = re.fullmatch(r"\{s\d+\}:job:([^:]+)", text)
        if job and job[1] not in accepted:
            found.append(Violation("I1", f"Redis knows {job[1]}, which nobody was promised"))
    shards = {keys.shard_of(job) for job in accepted} or {0}
    for shard in shards:
        found += await _streams(evidence, redis, shard)
    for row in await pool.fetch("SELECT id, idempotency_key FROM bulk_jobs"):
        if row["id"] not in accepted:
            is_refused = row["idempotency_key"] in evidence.refused
            words = "was refused" if is_refused else "nobody was promised"
            found.append(Violation("I1", f"a row of {row['id']}, which {words}"))
    return found


async def _streams(evidence: Evidence, redis: Redis, shard: int) -> list[Violation]:
    found = []
    for key, group in (
        (keys.ready(shard), keys.GROUP_WORKERS),
        (keys.outcomes(shard), keys.GROUP_ARCHIVE),
    ):
        if length := await redis.xlen(key):
            found.append(Violation("I7", f"{key} holds {length}"))
        if not await redis.exists(key) or not await redis.xinfo_groups(key):
            continue
        if pending := (await redis.xpending(key, group))["pending"]:
            found.append(Violation("I7", f"{key} has {pending} pending"))
        if group == keys.GROUP_WORKERS:
            consumers = {c["name"].decode() for c in await redis.xinfo_consumers(key, group)}
            # With nobody left to reap, a dead one's sign is what the next worker will find.
            signs = {name.decode() for name in await redis.zrange(f"{{s{shard}}}:workers", 0, -1)}
            if strays := consumers - (evidence.workers or signs):
                found.append(Violation("I7", f"consumers without a worker: {sorted(strays)}"))
    return found
