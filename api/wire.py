"""Bodies in and out: every struct of the HTTP surface, and one decoder that names what is wrong.

Requests refuse unknown fields; answers always carry every field. Nothing here asks a store.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shared.errors import Fault, InvalidError, MalformedError
from shared.message import Message

T = TypeVar("T")

_EPOCH_YEARS: Final = (2000, 2100)


class Progress(msgspec.Struct, frozen=True):
    """A job's numbers at one moment: `total` = all the states; `done` = those with an outcome.

    Attributes:
        rate: moving average, messages per second.
        eta_s: seconds until the last recipient has an outcome; None when nobody can say.
        by_code: failed by Graph code, at most 20, the rest under `other`.
        by_reason: failed and skipped for other reasons than Graph's.
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
    done: int = 0
    delivered: int = 0
    read: int = 0
    undelivered: int = 0
    rate: float = 0.0
    eta_s: int | None = None
    by_code: dict[str, int] = {}
    by_reason: dict[str, int] = {}


WaitReason = Literal[
    "sender_rate",
    "job_rate",
    "sender_blocked",
    "sender_paused",
    "token_invalid",
    "graph_unreachable",
    "storage",
    "kill_switch",
    "template_paused",
    "paused",
]


class Wait(msgspec.Struct, frozen=True):
    """What stands in a job's way.

    Attributes:
        reason: the word a program looks at.
        detail: our sentence for people.
        until: RFC 3339; None when nobody can say.
        by: user id, or `system`; only of a pause.
    """

    reason: WaitReason
    detail: str
    until: str | None = None
    by: str | None = None


class Row(msgspec.Struct, frozen=True):
    """One thing wrong with one place of a request; never holds the offending value."""

    pointer: str
    row: int | None
    code: str
    detail: str


class Intake(msgspec.Struct, frozen=True):
    """What became of the rows of a submission."""

    submitted: int = 0
    accepted: int = 0
    duplicates: int = 0
    invalid: int = 0
    changed: int = 0
    suspect: int = 0
    problems: list[Row] = []


class Estimate(msgspec.Struct, frozen=True):
    """How long the job takes if nothing else is sent.

    Attributes:
        rate: messages per second; None = no limit.
        duration_s: seconds, rounded up.
    """

    rate: float | None
    duration_s: int


class Links(msgspec.Struct, frozen=True):
    """Where to go from a job; paths on this host."""

    self: str
    stream: str
    recipients: str
    page: str


def links_of(job_id: str) -> Links:
    """Return the paths of a job."""
    base = f"/api/bulk/jobs/{job_id}"
    return Links(base, f"/realtime/bulk/{job_id}", f"{base}/recipients", f"/jobs/{job_id}")


class Submitted(
    msgspec.Struct,
    frozen=True,
    rename={"job_id": "jobId", "user_id": "userId", "campaign_id": "campaignId"},
):
    """The 202: the job and every recipient are committed."""

    job_id: str
    state: str
    wait: Wait | None
    user_id: str
    campaign_id: str | None
    intake: Intake
    estimate: Estimate
    parent: str | None
    links: Links
    sandbox: bool = False


class TemplateName(msgspec.Struct, frozen=True):
    """Which template a job sends."""

    name: str
    language_code: str


class ErrorRow(msgspec.Struct, frozen=True):
    """Failures of a job that share a code, with Meta's meaning and our action."""

    code: str
    count: int
    meaning: str
    action: str


class TimelineRow(msgspec.Struct, frozen=True):
    """One change in a job's life.

    Attributes:
        event: accepted, started, paused, resumed, changed, retried, cancelling, or how it ended.
        by: user id, `cli` or `system`.
        reason: people's words, what was changed, the child of a retry, or what stopped the job.
    """

    at: str
    event: str
    by: str | None
    reason: str | None


class Job(
    msgspec.Struct,
    frozen=True,
    rename={"job_id": "jobId", "user_id": "userId", "campaign_id": "campaignId"},
):
    """A job as its owner sees it.

    `errors` and `timeline` are there only when `expand` asks for them.
    """

    job_id: str
    user_id: str
    campaign_id: str | None
    name: str | None
    state: str
    wait: Wait | None
    sender: str
    kind: str
    template: TemplateName | None
    rate: float | None
    priority: str
    on_unknown: str
    parent: str | None
    created_at: str
    scheduled_at: str | None
    started_at: str | None
    finished_at: str | None
    expires_at: str | None
    intake: Intake
    progress: Progress
    links: Links
    metadata: dict[str, str] = {}
    sandbox: bool = False
    errors: list[ErrorRow] | UnsetType = UNSET
    timeline: list[TimelineRow] | UnsetType = UNSET


class JobList(msgspec.Struct, frozen=True):
    """A page of jobs, newest first."""

    data: list[Job]
    has_more: bool
    next_cursor: str | None


class Me(msgspec.Struct, frozen=True, rename={"user_id": "userId"}):
    """Who is asking."""

    user_id: str
    email: str
    role: str
    scopes: list[str]
    expires_at: str | None


class Messages(msgspec.Struct, frozen=True):
    """Messages sent, by span."""

    last_minute: int
    last_hour: int
    today: int


class Backlog(msgspec.Struct, frozen=True):
    """Recipients without an outcome."""

    queued: int
    in_flight: int
    retrying: int


class Demand(msgspec.Struct, frozen=True):
    """How many workers the backlog wants, and how many there are."""

    messages_per_second: float
    wanted_workers: int
    workers: int
    slots: int
    busy_slots: int


class Streams(msgspec.Struct, frozen=True):
    """Live streams, summed over API processes."""

    connections: int
    users: int
    events_last_minute: int


class SenderFigures(msgspec.Struct, frozen=True):
    """A sender's rate asked and held."""

    name: str
    rate: float
    rate_now: float
    state: str
    jobs: int


class RedisFigures(msgspec.Struct, frozen=True):
    """Redis as it is now."""

    up: bool
    version: str
    used_bytes: int
    max_bytes: int
    aof: bool
    policy: str


class PostgresFigures(msgspec.Struct, frozen=True):
    """PostgreSQL as it is now."""

    up: bool
    version: str
    pool_busy: int
    pool_size: int


class Stats(msgspec.Struct, frozen=True):
    """The whole pool for the admin."""

    at: str
    jobs: dict[str, int]
    messages: Messages
    outcomes_today: dict[str, int]
    backlog: Backlog
    demand: Demand
    streams: Streams
    senders: list[SenderFigures]
    redis: RedisFigures
    postgres: PostgresFigures
    archive_lag_s: float
    webhook_lag_s: float
    disabled: bool
    sandbox: bool


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/session`."""

    email: Annotated[str, Meta(min_length=1, max_length=320)]
    password: Annotated[str, Meta(min_length=1, max_length=1024)]


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The optional body of pause and cancel."""

    reason: Annotated[str, Meta(max_length=500)] | None = None


class Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which columns of an upload are what; `vars` maps a placeholder's name to a column."""

    to: Annotated[str, Meta(max_length=256)] | None = None
    ref: Annotated[str, Meta(max_length=256)] | None = None
    vars: dict[str, Annotated[str, Meta(max_length=256)]] | None = None


class RecipientsFrom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which recipients of an earlier job are written to again; comma lists as in its table."""

    job: Annotated[str, Meta(max_length=64)]
    outcome: Annotated[str, Meta(max_length=200)] | None = None
    receipt: Annotated[str, Meta(max_length=200)] | None = None
    code: Annotated[str, Meta(max_length=200)] | int | None = None
    older_than_s: Annotated[int, Meta(ge=0, le=31_536_000)] = 0


class SendRequest(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename={"user_id": "userId", "campaign_id": "campaignId"},
):
    """The body of `POST /api/bulk/send`.

    `recipients` holds strings or objects; `api.intake` looks at each, so that one answer names
    every bad row (pitfalls M1).
    """

    message: Message
    recipients: list[Any] | UnsetType = UNSET
    upload_id: Annotated[str, Meta(max_length=64)] | None = None
    columns: Columns | None = None
    recipients_from: RecipientsFrom | None = None
    metadata: dict[str, str] = {}
    user_id: str | None = None
    campaign_id: Annotated[str, Meta(max_length=128)] | None = None
    name: Annotated[str, Meta(max_length=120)] | None = None
    sender: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    rate: Annotated[float, Meta(ge=0.1, le=1000)] | None = None
    priority: Literal["low", "normal", "high"] = "normal"
    scheduled_at: Annotated[str, Meta(max_length=64)] | None = None
    expires_at: Annotated[str, Meta(max_length=64)] | None = None
    timezone: Annotated[str, Meta(max_length=64)] | None = None
    on_invalid: Literal["reject", "skip"] = "reject"
    on_unknown: Literal["hold", "resend"] | None = None
    default_region: Annotated[str, Meta(min_length=2, max_length=2)] | None = None


_ENCODER: Final = msgspec.json.Encoder()
_SORTED: Final = msgspec.json.Encoder(order="sorted")
_ANY: Final = msgspec.json.Decoder()
_DECODERS: Final[dict[type, msgspec.json.Decoder[Any]]] = {}
_PLACE: Final = re.compile(r"(.*?)(?: - at `(?:key in )?\$(.*)`)?\Z", re.DOTALL)
_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_FIELD: Final = re.compile(r"(?:missing required|contains unknown) field `([^`]*)`")
_LONE: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_BOMS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x00")
# C0 controls and DEL's neighbours that JSON lets through as escapes; \t \n \r are looked at
# by the one field that may hold them.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_BREAKS: Final = re.compile(r"\A/message/[a-z]+/(?:caption|body/text)\Z")
_CONTROL_OR_BREAK: Final = re.compile(r"[\x00-\x1f]")


def encode(value: object) -> bytes:
    """Return `value` as JSON."""
    return _ENCODER.encode(value)


def canonical(value: object) -> bytes:
    """Return `value` as JSON with sorted keys: equal requests give equal bytes."""
    return _SORTED.encode(value)


def pointer_of(path: str) -> str:
    """Return msgspec's path as a JSON pointer (RFC 6901).

    >>> pointer_of(".message.components[3].type")
    '/message/components/3/type'
    """
    steps = (name or index for name, index in _STEP.findall(path))
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


def _read(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode, and let only `msgspec.ValidationError` through untranslated (pitfalls M2)."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError:
        raise
    except RecursionError as error:
        raise MalformedError("too_deep", "The JSON is nested too deeply.") from error
    except UnicodeDecodeError as error:
        raise MalformedError("bad_encoding", "The body is not UTF-8.") from error
    except msgspec.DecodeError as error:
        if "surrogate" in str(error) or _LONE.search(body):
            raise MalformedError("bad_encoding", "The body is not UTF-8.") from error
        raise MalformedError("bad_json", "The body is not one JSON document.") from error


def decode(body: bytes, kind: type[T], breaks_at: str = "") -> T:
    r"""Decode a request's body.

    Args:
        body: as it came.
        kind: the struct it must be.
        breaks_at: pointer of the one string that may hold `\n`, `\r` and `\t`.

    Raises:
        MalformedError: not one JSON document in UTF-8; the caller must send another.
        InvalidError: JSON of another shape; `faults` has the pointer.
    """
    if not body or body.isspace():
        raise MalformedError("empty_body", "A JSON object is expected; the body is empty.")
    if body.startswith(_BOMS):
        raise MalformedError("bad_encoding", "The body must be UTF-8 without a byte order mark.")
    if kind not in _DECODERS:
        _DECODERS[kind] = msgspec.json.Decoder(kind)
    try:
        value: T = _read(_DECODERS[kind], body)
    except msgspec.ValidationError as error:
        # What is not JSON at all is said first, whatever stands before the bad byte.
        whole = _read(_ANY, body)
        if not isinstance(whole, dict):
            raise InvalidError("not_object", "The body must be a JSON object.") from error
        refuse_controls(whole, breaks_at)
        raise _invalid(str(error)) from error
    # Rows are looked at one by one elsewhere.
    plain: object = value
    if isinstance(plain, SendRequest):
        plain = msgspec.structs.replace(plain, recipients=UNSET)
    refuse_controls(msgspec.to_builtins(plain), breaks_at)
    return value


def _invalid(text: str) -> InvalidError:
    """Return msgspec's sentence as a fault with a pointer; the sentence holds no values of ours."""
    found = _PLACE.match(text)
    sentence, path = (found[1], found[2] or "") if found else (text, "")
    pointer = pointer_of(path)
    named = _FIELD.search(sentence)
    if named is not None:
        pointer += "/" + named[1].replace("~", "~0").replace("/", "~1")
    if "unknown field" in sentence:
        fault = Fault(pointer, "unknown_field", "This field is not offered here.")
        return InvalidError("unknown_field", "The body has a field that is not offered.", [fault])
    if "missing required" in sentence:
        sentence = "This field is required."
    elif sentence.startswith(("Invalid value", "Invalid enum value")):
        sentence = "This value is not one of those offered."
    return InvalidError(
        "validation_failed",
        "The body is not what this endpoint takes; see errors.",
        [Fault(pointer, "validation_failed", sentence)],
    )


def refuse(pointer: str, detail: str, code: str = "validation_failed") -> NoReturn:
    """Refuse one field; of a query, which no pointer reaches, the sentence names it.

    Raises:
        InvalidError: always; its only fault is this one.
    """
    where = f"{pointer}: " if pointer else ""
    raise InvalidError(code, where + detail, [Fault(pointer, code, detail)])


def refuse_controls(value: Any, breaks_at: str = "", pointer: str = "") -> None:  # noqa: ANN401
    """Refuse control characters in any key or string outside `recipients`.

    Raises:
        InvalidError: `control_char`, at the first place that has one. Rows of `recipients` are
            left to `api.intake`, which names every one of them.
    """
    if isinstance(value, str):
        # Breaks in a template's parameter have a sentence of their own (`param_whitespace`);
        # captions and the bodies of the other kinds are texts like that of a text.
        may_break = pointer == breaks_at or pointer.startswith("/message/template/")
        may_break = may_break or _BREAKS.match(pointer) is not None
        pattern = _CONTROL if may_break else _CONTROL_OR_BREAK
        if pattern.search(value):
            raise InvalidError(
                "control_char",
                "A string holds a control character.",
                [Fault(pointer, "control_char", "Control characters are not allowed here.")],
            )
    elif isinstance(value, dict):
        for key, inner in value.items():
            if _CONTROL_OR_BREAK.search(key):
                raise InvalidError(
                    "control_char",
                    "A field's name holds a control character.",
                    [Fault(pointer, "control_char", "A name here holds a control character.")],
                )
            if pointer or key != "recipients":
                refuse_controls(inner, breaks_at, f"{pointer}/{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            refuse_controls(inner, breaks_at, f"{pointer}/{index}")


def time_text(at_ms: int) -> str | None:
    """Return RFC 3339 in UTC with milliseconds; None for 0.

    >>> time_text(1795511649123)
    '2026-11-24T09:14:09.123Z'
    """
    if not at_ms:
        return None
    at = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"
