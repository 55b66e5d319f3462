"""Every Redis key: name, type, lifetime, writer. Names begin with the shard's hash tag."""

from __future__ import annotations

from typing import Final, NamedTuple

from shared.ids import ALPHABET

GROUP_WORKERS: Final = "workers"
GROUP_ARCHIVE: Final = "archive"
GROUP_RECEIPTS: Final = "receipts"
VISITORS: Final = "{v}:"  # keys about callers of the API; nothing about jobs
HOOKS: Final = "{hooks}:"
INBOX: Final = f"{HOOKS}inbox"
_TIME_AND_PREFIX: Final = 14  # `job_` and 10 characters of time; 2 of shard follow


class Family(NamedTuple):
    """One family of keys.

    Attributes:
        pattern: the name with `P` for the shard tag and `<id>` for an identifier.
        type: Redis type.
        lifetime: `kept` (no TTL, on the list), or what gives it one.
        writer: the scripts that write it.
    """

    pattern: str
    type: str
    lifetime: str
    writer: str


FAMILIES: Final = (
    Family("P ready", "stream", "kept", "release"),
    Family("P job:<id>", "hash", "TTL after archived", "submit, report, control, release"),
    Family("P job:<id>:chunks", "stream", "TTL 10 min staged, then as the job", "stage"),
    Family("P job:<id>:states", "string", "as the job", "submit, report, control"),
    Family("P job:<id>:again", "zset", "as the job", "report, begin, release"),
    Family("P sender:<id>", "hash", "kept", "sender, release, report"),
    Family("P sender:<id>:jobs", "zset", "kept", "release"),
    Family("P turns", "zset", "kept", "release"),
    Family("P timers", "zset", "kept", "release, report, control"),
    Family("P outcomes", "stream", "kept", "report, control"),
    Family("P events", "stream", "kept, MAXLEN ~ EVENTS_MAX", "tick, submit, report"),
    Family("P changed", "set", "kept", "report, control, release"),
    Family("P low", "set", "kept", "release"),
    Family("P workers", "zset", "kept", "tick, leave"),
    Family("P slots", "hash", "kept", "tick, leave"),
    Family("P told", "hash", "kept", "tick, leave, hold"),
    Family("P gate", "hash", "kept", "tick, hold"),
    Family("P off", "zset", "kept", "switch"),
    Family("P minute:<n>", "hash", "TTL 25 h", "report"),
    Family("P probe", "string", "TTL 10 s", "readiness"),
    Family("{hooks}:inbox", "stream", "kept, INBOX_MAX", "webhooks"),
    Family("{v}:session:<hash>", "hash", "TTL", "sessions"),
    Family("{v}:user:<id>", "set", "TTL", "sessions"),
    Family("{v}:quota:<who>", "zset", "TTL", "sessions"),
    Family("{v}:login:<who>", "hash", "TTL", "sessions"),
    Family("{v}:streams", "hash", "TTL 30 s", "hub"),
)


def tag(shard: int) -> str:
    """Return the prefix of a shard's keys.

    >>> tag(0)
    '{s0}:'
    """
    return f"{{s{shard}}}:"


def shard_of(job_id: str) -> int:
    """Return the shard that a job id carries; the id must have the right form.

    >>> shard_of("job_01m86db0v300hd99fdtgj8yepfzx")
    0
    """
    at = _TIME_AND_PREFIX
    return ALPHABET.index(job_id[at]) * 32 + ALPHABET.index(job_id[at + 1])


def ready(shard: int) -> str:
    """Return the key of released claims."""
    return f"{tag(shard)}ready"


def outcomes(shard: int) -> str:
    """Return the key of facts, ranges and states on their way to PostgreSQL."""
    return f"{tag(shard)}outcomes"


def events(shard: int) -> str:
    """Return the key of change notes."""
    return f"{tag(shard)}events"


def gate(shard: int) -> str:
    """Return the key every script declares: it carries the shard's tag."""
    return f"{tag(shard)}gate"


def job(job_id: str) -> str:
    """Return the key of a job's hash."""
    return f"{tag(shard_of(job_id))}job:{job_id}"


def states(job_id: str) -> str:
    """Return the key of a job's state bytes."""
    return f"{job(job_id)}:states"


def chunks(job_id: str) -> str:
    """Return the key of a job's chunk stream."""
    return f"{job(job_id)}:chunks"


def sender(shard: int, sender_id: str) -> str:
    """Return the key of a sender's hash."""
    return f"{tag(shard)}sender:{sender_id}"


def sender_jobs(shard: int, sender_id: str) -> str:
    """Return the key of a sender's runnable jobs."""
    return f"{tag(shard)}sender:{sender_id}:jobs"


def low(shard: int) -> str:
    """Return the key of jobs close to their `reserved` mark."""
    return f"{tag(shard)}low"
