"""What scripts and reads answer, as structs; a job as a script takes it. Pure."""

from __future__ import annotations

import math
import struct
from typing import Any, Final, Literal, cast

import msgspec

from shared.models import (
    Argument,
    Begun,
    Chunk,
    Claim,
    Go,
    JobSpec,
    JobStatus,
    OutcomeEntry,
    Refused,
    SenderStatus,
    SubmitResult,
    Tally,
    Wait,
)

SPEED_TAU_MS: Final = 5000  # time constant of the moving average in parts/states.lua
_decode_chunk: Final = msgspec.msgpack.Decoder(Chunk).decode


def text_of(value: object) -> str:
    """Return what redis-py gave, bytes or a string, as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def int_of(fields: dict[str, bytes], name: str) -> int:
    """Return a hash's number; 0 when it has none."""
    return int(float(fields.get(name) or 0))


def float_of(fields: dict[str, bytes], name: str) -> float:
    """Return a hash's number; 0.0 when it has none."""
    return float(fields.get(name) or 0)


def hash_of(spec: JobSpec) -> list[Argument]:
    """Return a job's hash as `submit` and `restore` take it: names and values in turn."""
    return [
        "sender", spec.sender, "owner", spec.owner, "recipients", spec.recipients,
        "chunk_size", spec.chunk_size, "reserved", spec.reserved, "step", spec.step,
        "message", spec.message, "vars", msgspec.json.encode(spec.vars),
        "rate", spec.rate, "weight", spec.weight, "scheduled_ms", spec.scheduled_ms,
        "expires_ms", spec.expires_ms, "on_unknown", spec.on_unknown,
        "created_ms", spec.created_ms, "version", spec.version, "category", spec.category,
    ]  # fmt: skip


def submitted_of(reply: Any) -> SubmitResult:  # noqa: ANN401 - redis-py's reply
    """Return what `submit` or `restore` answered."""
    kind = cast("Literal['made', 'exists', 'missing']", text_of(reply[0]))
    return SubmitResult(kind, text_of(reply[1]), text_of(reply[2]), int(reply[3]))


def entries_of(reply: Any) -> list[tuple[str, dict[str, bytes]]]:  # noqa: ANN401 - redis-py's
    """Return the entries of one stream, from either shape of redis-py's answer."""
    if not reply:
        return []
    rows = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    if rows and isinstance(rows[0], list) and rows[0] and isinstance(rows[0][0], (list, tuple)):
        rows = rows[0]
    return [
        (text_of(entry), {text_of(k): v for k, v in fields.items()})
        for entry, fields in rows
        if fields
    ]


def claim_of(shard: int, entry: str, f: dict[str, bytes]) -> Claim:
    """Return the claim that an entry of `ready` carries."""
    return Claim(
        shard=shard,
        entry=entry,
        job=text_of(f["j"]),
        chunk=int(f["c"]),
        offsets=f["o"],
        size=int(f["n"]),
        start_ms=int(f["s"]),
        gap_us=int(f["g"]),
        delivery=int(f["d"]),
    )


def begun_of(reply: Any) -> Begun:  # noqa: ANN401 - redis-py's reply
    """Return what `begin` said of one claim."""
    word = text_of(reply[0])
    if word == "wait":
        return Wait(int(reply[1]))
    if word != "go":
        return Refused(cast("Literal['lost', 'gone', 'back']", word))
    return Go(
        now_ms=int(reply[1]),
        start_ms=int(reply[2]),
        gap_us=int(reply[3]),
        job_state=text_of(reply[4]),
        expires_ms=int(float(reply[5])),
        chunk=_decode_chunk(reply[6]),
        states=reply[7],
    )


def outcome_of(entry: str, f: dict[str, bytes]) -> OutcomeEntry:
    """Return an entry of `outcomes`, whichever of its three kinds it is."""
    kind, job = text_of(f["k"]), text_of(f["j"])
    if kind == "facts":
        return OutcomeEntry(
            entry,
            "facts",
            job,
            chunk=int(f["c"]),
            chunk_size=int(f["z"]),
            facts=f["f"],
            record=f["d"],
        )
    if kind == "range":
        packed = f["p"]
        numbers = struct.unpack(f">{len(packed) // 4}I", packed)
        pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
        return OutcomeEntry(
            entry, "range", job, state=int(f["s"]), reason=int(f["r"]), ranges=pairs
        )
    return OutcomeEntry(
        entry,
        "state",
        job,
        job_state=text_of(f["s"]),
        version=int(f["v"]),
        by=text_of(f["b"]),
        text=text_of(f["r"]),
        event=text_of(f["e"]),
        at_ms=int(f["t"]),
        started_ms=int(float(f["a"])),
        finished_ms=int(float(f["f"])),
    )


def sender_of(sender_id: str, f: dict[str, bytes], jobs: int) -> SenderStatus:
    """Return a sender's hash as a struct; `jobs` is how many of its jobs are runnable."""
    return SenderStatus(
        id=sender_id,
        rate=float_of(f, "rate_now") or float_of(f, "rate_max"),
        rate_max=float_of(f, "rate_max"),
        paused=f.get("paused") == b"1",
        why=text_of(f.get("why", b"")),
        blocked_until_ms=int_of(f, "blocked_until"),
        jobs=jobs,
        backlog=max(0, int_of(f, "backlog")),
        outstanding=int_of(f, "outstanding"),
        known="rate_max" in f,
    )


def tally_of(f: dict[str, bytes]) -> Tally:
    """Return the counters of a job's hash; what is in none of them is queued."""
    t = Tally(
        total=int_of(f, "recipients"),
        in_flight=int_of(f, "in_flight"),
        retrying=int_of(f, "retrying"),
        sent=int_of(f, "sent"),
        failed=int_of(f, "failed"),
        skipped=int_of(f, "skipped"),
        cancelled=int_of(f, "cancelled"),
        unknown=int_of(f, "unknown"),
    )
    t.queued = t.total - t.in_flight - t.retrying - t.done
    return t


def status_of(
    job_id: str, f: dict[str, bytes], sender: SenderStatus, gate: dict[str, bytes], now_ms: int
) -> JobStatus:
    """Return a job's hash as a struct, its speed faded to `now_ms`."""
    age_ms = max(0, now_ms - int_of(f, "speed_at"))
    return JobStatus(
        id=job_id,
        state=text_of(f["state"]),
        owner=text_of(f["owner"]),
        event=text_of(f.get("event", b"0-0")),
        is_ended=f.get("ended") == b"1",
        tally=tally_of(f),
        reasons={int(k[3:]): int(v) for k, v in f.items() if k.startswith("by:")},
        delivered=int_of(f, "delivered"),
        read=int_of(f, "read"),
        undelivered=int_of(f, "undelivered"),
        speed=float_of(f, "speed") * math.exp(-age_ms / SPEED_TAU_MS),
        version=int_of(f, "version"),
        created_ms=int_of(f, "created_ms"),
        started_ms=int_of(f, "started_ms"),
        finished_ms=int_of(f, "finished_ms"),
        expires_ms=int_of(f, "expires_ms"),
        scheduled_ms=int_of(f, "scheduled_ms"),
        reason=text_of(f.get("reason", b"")),
        by=text_of(f.get("by", b"")),
        sender=sender,
        rate=float_of(f, "rate"),
        weight=int_of(f, "weight"),
        off=gate["off"] == b"1",
        unreachable=gate["unreachable"] == b"1",
        stale=gate["unreachable"] == b"2",
        cursor=int_of(f, "cursor"),
        reserved=int_of(f, "reserved"),
    )


def age_of(now_ms: int, head: Any) -> int:  # noqa: ANN401 - redis-py's reply
    """Return how old the first entry of a stream is, ms; 0 when there is none."""
    return max(0, now_ms - int(text_of(head[0][0]).split("-")[0])) if head else 0
