"""The nouns and their units: state, fact, claim, answer, outcome, job status. Pure."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, Literal, NamedTuple

import msgspec


class State(IntEnum):
    """What a recipient has come to; the low 3 bits of its state byte."""

    PENDING = 0
    INTENT = 1
    SENT = 2
    FAILED = 3
    RETRY = 4
    SKIPPED = 5
    UNKNOWN = 6
    CANCELLED = 7


_STATES: Final = tuple(State)  # six times as fast as the enumeration's own look-up
# pending < retry < intent < unknown = cancelled < skipped < failed < sent; index = state
RANK: Final = (0, 2, 6, 5, 1, 4, 3, 3)
OUTCOMES: Final = (
    State.SENT,
    State.FAILED,
    State.SKIPPED,
    State.UNKNOWN,
    State.CANCELLED,
)
FINAL_STATES: Final = frozenset({"completed", "cancelled"})
JOB_STATES: Final = (
    "scheduled",
    "queued",
    "running",
    "paused",
    "cancelling",
    "completed",
    "cancelled",
)


def state_of(byte: int) -> State:
    """Return the state in a state byte.

    >>> state_of(0b00010_001).name
    'INTENT'
    """
    return _STATES[byte & 7]


def attempts_of(byte: int) -> int:
    """Return the attempts in a state byte, 0 to 31.

    >>> attempts_of(0b00010_001)
    2
    """
    return byte >> 3


class Reason(IntEnum):
    """Why a recipient ended as it did, when Graph gave no code; a fact's low 15 bits.

    Rows of the Graph error table follow from 16 on (`graph_codes.reason_of`).
    """

    NONE = 0
    SUPPRESSED = 1
    EXPIRED = 2
    POISON = 3
    CANCELLED = 4
    CRASH = 5
    TIMEOUT = 6
    RESET = 7
    BAD_REPLY = 8
    REBUILT = 9
    OTHER = 15


# Set in a fact's reason when the failure counts in the job's breaker (whatsapp's 6.3).
TRIP: Final = 0x8000
Argument = str | bytes | int | float  # what a script takes

_FACT: Final = struct.Struct(">HBBHBH")
FACT_BYTES: Final = _FACT.size
_INTENT: Final = struct.Struct(">HBB")


class Fact(msgspec.Struct, frozen=True, gc=False):
    """What a worker reports of one recipient, in 9 bytes.

    Attributes:
        index: place in the chunk, from 0.
        state: the new state.
        attempt: attempts used so far, 0 to 31.
        reason: a `Reason`, or a row of the Graph table, perhaps with `TRIP`.
        due_s: seconds until the next try; only with RETRY and PENDING, at most 2**24 - 1.
    """

    index: int
    state: int
    attempt: int
    reason: int = 0
    due_s: int = 0

    def pack(self) -> bytes:
        """Return the 9 bytes: u16 index, u8 state, u8 attempt, u16 reason, u24 due_s.

        >>> Fact(1, State.SENT, 1).pack().hex()
        '000102010000000000'
        """
        return _FACT.pack(
            self.index, self.state, self.attempt, self.reason, self.due_s >> 16, self.due_s & 0xFFFF
        )


def unpack_facts(packed: bytes) -> list[Fact]:
    """Return the facts in `packed`, a whole number of 9-byte records."""
    return [
        Fact(index, state, attempt, reason, high << 16 | low)
        for index, state, attempt, reason, high, low in _FACT.iter_unpack(packed)
    ]


class Intent(msgspec.Struct, frozen=True, gc=False):
    """The mark that a request may leave, in 4 bytes.

    Attributes:
        index: place in the chunk, from 0.
        attempt: the attempt that is about to be made, from 1.
        in_place: True for a try that no release has paid for: the script charges the bucket.
    """

    index: int
    attempt: int
    in_place: bool = False

    def pack(self) -> bytes:
        """Return the 4 bytes: u16 index, u8 attempt, u8 in_place.

        >>> Intent(258, 1).pack().hex()
        '01020100'
        """
        return _INTENT.pack(self.index, self.attempt, self.in_place)


class Detail(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the archive keeps of one reported recipient; travels beside the facts, opaque to Lua.

    Attributes:
        index: place in the chunk, from 0.
        phone: E.164 without `+`, as a number.
        at_ms: when the answer came, milliseconds since the epoch, worker's clock.
        wamid: WhatsApp's message id, when Graph took the message.
        code: Graph's error code.
        text: Graph's `details`, at most 500 characters, numbers masked.
        trace: Graph's `fbtrace_id`.
        message_status: `held_for_quality_assessment` or `paused` for a paced template.
    """

    index: int
    phone: int
    at_ms: int
    wamid: str | None = None
    code: int | None = None
    text: str | None = None
    trace: str | None = None
    message_status: str | None = None


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A run of consecutive recipients of one job; the unit of storage and of redelivery.

    Recipient `i` of chunk `n` has position `n * chunk_size + i`, and that position names it for
    ever.

    Attributes:
        phones: E.164 numbers without `+`, as integers.
        values: for each recipient the values of the job's `vars`, in their order; None when the
            message has no placeholders.
    """

    phones: list[int]
    values: list[list[str]] | None = None


class Claim(msgspec.Struct, frozen=True):
    """What a worker took from `ready`.

    Attributes:
        shard: index of the shard it came from.
        entry: its stream id there; a requeue gives a new one, which fences the old owner.
        job: job id.
        chunk: number of the chunk, from 0.
        offsets: packed u16 indices in the chunk; empty means all of it.
        size: recipients.
        start_ms: when its first message may start, server clock.
        gap_us: between the starts of two messages; 0 = no limit.
        delivery: how often it has been handed out, from 1.
    """

    shard: int
    entry: str
    job: str
    chunk: int
    offsets: bytes
    size: int
    start_ms: int
    gap_us: int
    delivery: int

    def indices(self, chunk_length: int) -> list[int]:
        """Return the indices in the chunk that this claim covers, rising."""
        if not self.offsets:
            return list(range(chunk_length))
        return list(struct.unpack(f">{len(self.offsets) // 2}H", self.offsets))


def pack_offsets(indices: list[int]) -> bytes:
    """Return `indices` as packed u16, big-endian.

    >>> pack_offsets([1, 256]).hex()
    '00010100'
    """
    return struct.pack(f">{len(indices)}H", *indices)


class Go(msgspec.Struct, frozen=True):
    """`begin` said go: what is left of a claim, and when it may start.

    Attributes:
        now_ms: the server's clock when it answered; `start_ms - now_ms` is the delay to keep.
        start_ms: when the first message may start, server clock.
        gap_us: between the starts of two messages.
        job_state: the job's state then; anything but running or queued means: hand back.
        expires_ms: the job's deadline, server clock; 0 = none.
        chunk: the recipients.
        states: one byte per recipient of the chunk.
    """

    now_ms: int
    start_ms: int
    gap_us: int
    job_state: str
    expires_ms: int
    chunk: Chunk
    states: bytes


class Wait(msgspec.Struct, frozen=True):
    """`begin` said wait: the shard is held or switched off; ask again after `wait_ms`."""

    wait_ms: int


class Refused(msgspec.Struct, frozen=True):
    """`begin` said no.

    Attributes:
        why: `lost` (another owner), `gone` (no such job; the entry is closed) or `back` (late and
            the bucket is ahead; the claim is closed and waits in `again`).
    """

    why: Literal["lost", "gone", "back"]


Begun = Go | Wait | Refused


class Reported(msgspec.Struct, frozen=True):
    """What `report` answered.

    Attributes:
        is_owner: False: the claim has another owner; start nothing more, tell facts to the end.
        job_state: the job's state; `gone` when its keys are no longer there, `expired` when its
            deadline has passed: then, as in any state but running or queued, nothing may start.
        applied: how many bytes the facts changed.
        is_cut: the throttle told with it has cut the sender's rate.
    """

    is_owner: bool
    job_state: str
    applied: int
    is_cut: bool = False


class Ticked(msgspec.Struct, frozen=True):
    """What `tick` answered.

    Attributes:
        wiped: the shard has no `born`: it was emptied and must be rebuilt from PostgreSQL.
        now_ms: the server's clock.
        run: the server's run id that the shard was last used on.
        held_ms: how long the shard is still held; 0 = it is not.
        off: sending is switched off.
        next_timer_ms: when the next timer is due, server clock; 0 = none.
        stop: job ids in hand that must start nothing more now.
        reaped: names of workers reaped by this call.
        requeued: entries that anti-entropy put back by this call.
    """

    wiped: bool
    now_ms: int
    run: str
    held_ms: int
    off: bool
    next_timer_ms: int
    stop: list[str]
    reaped: list[str]
    requeued: int


class JobSpec(msgspec.Struct, frozen=True):
    """What `submit` and `restore` tell Redis of a job.

    Attributes:
        id: job id; carries the shard.
        sender: sender id.
        owner: user id, text.
        recipients: how many, 1 to BULK_HARD_CAP.
        chunk_size: recipients a chunk, frozen in the job's row.
        reserved: position up to which it may be released.
        step: by how much `reserved` is raised, recipients.
        message: the message as JSON (`shared.message`), placeholders unfilled.
        vars: names of the placeholders, in the order of `Chunk.values`.
        rate: the job's own ceiling, messages per second; 0 = none.
        weight: 1, 4 or 16 in the sender's fair queue.
        scheduled_ms: when it may start, epoch; 0 = at once.
        expires_ms: its deadline, epoch; 0 = none.
        on_unknown: `hold` or `resend`.
        created_ms: when it was accepted, epoch.
        version: version of its state in PostgreSQL, from 1.
        category: of its template at Meta when it was accepted; '' = not known, or it has none.
    """

    id: str
    sender: str
    owner: str
    recipients: int
    chunk_size: int
    reserved: int
    step: int
    message: bytes
    vars: list[str]
    rate: float = 0.0
    weight: int = 4
    scheduled_ms: int = 0
    expires_ms: int = 0
    on_unknown: str = "hold"
    created_ms: int = 0
    version: int = 1
    category: str = ""

    @property
    def chunks(self) -> int:
        """Return how many chunks the job has."""
        return -(-self.recipients // self.chunk_size)


class JobMessage(msgspec.Struct, frozen=True):
    """What a worker must know of a job to send it: the rest travels with its claims.

    Attributes:
        sender: sender id.
        message: encoded message.
        on_unknown: `hold` or `resend`.
        chunk_size: recipients a chunk.
        due_ms: from when it might be sent: accepted or scheduled, whichever is later; epoch.
        category: as in `JobSpec`.
    """

    sender: str
    message: bytes
    on_unknown: str
    chunk_size: int
    due_ms: int
    category: str = ""


class Tally(msgspec.Struct):
    """A job's counters; their sum is its number of recipients.

    Attributes:
        total: recipients accepted.
        queued: neither started, nor waiting for a retry, nor ended.
        in_flight: with an intent and no answer yet.
        retrying: refused for now; waiting for another attempt.
    """

    total: int = 0
    queued: int = 0
    in_flight: int = 0
    retrying: int = 0
    sent: int = 0
    failed: int = 0
    skipped: int = 0
    cancelled: int = 0
    unknown: int = 0

    @property
    def done(self) -> int:
        """Return how many have an outcome."""
        return self.sent + self.failed + self.skipped + self.cancelled + self.unknown


class SenderStatus(msgspec.Struct, frozen=True):
    """What Redis knows of a sender now.

    Attributes:
        id: sender id.
        rate: messages per second now (cut by throttles); 0 = no limit.
        rate_max: the configured rate.
        paused: an operator or an error stopped it.
        why: the reason of `paused` or of a block: `sender`, `token`, `waba`, `throttled`, …
        blocked_until_ms: epoch, server clock; 0 = not blocked.
        jobs: runnable jobs that share it.
        backlog: recipients without an outcome, over its unfinished jobs.
        outstanding: claims out.
        known: False when Redis has not been told this sender's rate yet.
    """

    id: str
    rate: float = 0.0
    rate_max: float = 0.0
    paused: bool = False
    why: str = ""
    blocked_until_ms: int = 0
    jobs: int = 0
    backlog: int = 0
    outstanding: int = 0
    known: bool = False


class JobStatus(msgspec.Struct, frozen=True):
    """A job's hash in Redis, read once: what snapshots and answers are built from.

    Attributes:
        id: job id.
        state: one of `JOB_STATES`.
        event: stream id of its newest change note, such as `1795511671402-0`.
        is_ended: `event` is the job's last one.
        tally: the counters.
        reasons: `by:<reason>` counters of failed and skipped, by reason number.
        delivered, read, undelivered: receipts.
        speed: moving average, messages per second, as of now.
        version: of its state; rises with every change of state or settings.
        started_ms, finished_ms: epoch; 0 = not yet.
        reason, by: of the last pause, cancel.
        sender: what Redis knows of its sender.
        rate: the job's own ceiling; 0 = none.
        off: sending is switched off on this shard.
        unreachable: a worker has said that Graph cannot be reached.
        stale: a worker has said that its list of suppressions is too old to send by.
        cursor: next position to be released; reserved: where release must stop.
    """

    id: str
    state: str
    owner: str
    event: str
    is_ended: bool
    tally: Tally
    reasons: dict[int, int]
    delivered: int
    read: int
    undelivered: int
    speed: float
    version: int
    created_ms: int
    started_ms: int
    finished_ms: int
    expires_ms: int
    scheduled_ms: int
    reason: str
    by: str
    sender: SenderStatus
    rate: float
    weight: int
    off: bool
    unreachable: bool
    stale: bool
    cursor: int
    reserved: int


AnswerKind = Literal["accepted", "rejected", "throttled", "not_sent", "unknown"]


class Status(msgspec.Struct, frozen=True):
    """What one webhook says of one message.

    Attributes:
        wamid: WhatsApp's id of the message.
        receipt: the rung it stands on, as `campaign_logs` counts them; 0: sent.
        at_ms: when it came to that, by Meta's clock, epoch.
        job: whose message it is, by the opaque value; '' = it came without one of ours.
        position, attempt: of the recipient in it.
        code, text: of a failure; Graph's code and details, numbers masked.
        number: phone number id of the sender; '' when it is known to be ours.
    """

    wamid: str
    receipt: int
    at_ms: int
    job: str = ""
    position: int = 0
    attempt: int = 0
    code: int | None = None
    text: str | None = None
    number: str = ""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What one request came to.

    Attributes:
        kind: accepted · rejected (Graph said no; see `code`) · throttled (130429 or a bare 429)
            · not_sent (no byte left) · unknown (it may have been taken).
        http_status: 0 when no answer came.
        wamid: when accepted.
        code: Graph's `error.code`, or None when there was no Graph body.
        details: Graph's `error_data.details`, cut to 500 characters, numbers masked.
        trace: `fbtrace_id`.
        message_status: of a paced template.
        is_transient: Graph's own flag.
        retry_after_s: from the header, capped at 300; 0 = none.
        regain_s: from `x-business-use-case-usage`, seconds; 0 = none.
        why: for not_sent and unknown: `timeout`, `reset`, `bad_reply`, `refused`, `dns`, `tls`,
            `pool`; '' otherwise.
    """

    kind: AnswerKind
    http_status: int = 0
    wamid: str | None = None
    code: int | None = None
    details: str | None = None
    trace: str | None = None
    message_status: str | None = None
    is_transient: bool = False
    retry_after_s: float = 0.0
    regain_s: float = 0.0
    why: str = ""


class SubmitResult(msgspec.Struct, frozen=True):
    """What `submit` and `restore` answered.

    Attributes:
        kind: `made` · `exists` (Redis knew the job already) · `missing` (chunks are not staged).
        state: the job's state now; '' when chunks are missing.
        event: id of its newest change note; '' when chunks are missing.
        first_missing: number of the first chunk that is not staged; -1 otherwise.
    """

    kind: Literal["made", "exists", "missing"]
    state: str = ""
    event: str = ""
    first_missing: int = -1


class ControlResult(msgspec.Struct, frozen=True):
    """What `control` answered.

    Attributes:
        kind: `ok` · `same` (nothing to change) · `conflict` (the state does not allow it)
            · `gone` (Redis does not know the job).
        state: the job's state now.
        version: of that state.
        event: id of its newest change note.
    """

    kind: Literal["ok", "same", "conflict", "gone"]
    state: str = ""
    version: int = 0
    event: str = ""


class EventNote(msgspec.Struct, frozen=True):
    """One entry of `events`: this job changed; `is_end` marks its last one."""

    id: str
    job: str
    is_end: bool


class OutcomeEntry(msgspec.Struct, frozen=True):
    """One entry of `outcomes`, on its way to PostgreSQL.

    Attributes:
        entry: stream id, to acknowledge it by.
        kind: `facts` · `range` · `state`.
        job: job id.
        chunk, chunk_size, facts, record: of `facts`: the bytes that changed something, and the
            worker's msgpack list of `Detail`; position = chunk * chunk_size + index.
        state, reason, ranges: of `range`: a `State`, a `Reason` and positions, both ends included.
        job_state, version, by, text, event, at_ms, started_ms, finished_ms: of `state`.
    """

    entry: str
    kind: Literal["facts", "range", "state"]
    job: str
    chunk: int = 0
    chunk_size: int = 0
    facts: bytes = b""
    record: bytes = b""
    state: int = 0
    reason: int = 0
    ranges: list[tuple[int, int]] = []
    job_state: str = ""
    version: int = 0
    by: str = ""
    text: str = ""
    event: str = ""
    at_ms: int = 0
    started_ms: int = 0
    finished_ms: int = 0


class ServerInfo(msgspec.Struct, frozen=True):
    """What a Redis or Valkey server says of itself.

    Attributes:
        version: of the server's own product, such as `9.1.2`.
        used_bytes, max_bytes: memory; `max_bytes` 0 = no limit.
        is_aof: `appendonly yes`.
        policy: `maxmemory-policy`.
        is_persistence_ok: the last AOF write and rewrite went well.
    """

    version: str
    run: str
    used_bytes: int
    max_bytes: int
    is_aof: bool
    policy: str
    is_persistence_ok: bool


class ShardStats(msgspec.Struct, frozen=True):
    """What one shard is doing, read in one pipeline.

    Attributes:
        ready, outcomes, outcomes_pending, events: lengths of streams, entries.
        ready_age_ms: age of the oldest entry of `ready`; 0 = none.
        outcomes_age_ms: age of the oldest entry of `outcomes`; 0 = none.
        workers: worker → age of its last tick, ms.
        slots: of all live workers.
        senders: every sender the shard knows.
        minutes: outcome name → count, for each of the minutes asked for.
        is_off: sending is switched off.
    """

    ready: int
    outcomes: int
    outcomes_pending: int
    events: int
    ready_age_ms: int
    outcomes_age_ms: int
    workers: dict[str, int]
    slots: int
    senders: list[SenderStatus]
    minutes: list[dict[str, int]]
    is_off: bool


class Waiting(NamedTuple):
    """What has become of a shard's released claims.

    Attributes:
        pending: claims that a worker has.
        age_ms: age of the oldest that nobody has; 0 = none.
        draining: workers that take no more.
    """

    pending: int
    age_ms: int
    draining: list[str]
