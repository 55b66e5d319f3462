"""What follows from an answer: again, back, or final. Pure; the executor acts on it."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from shared.graph_codes import CodeRow, reason_of, row_of
from shared.models import TRIP, Answer, Reason

IN_PLACE_MAX_S: Final = 2.0
# By webhook, of a held message: the portfolio was stopped. In a reply it is a parameter's fault.
PACED_OUT: Final = 135000
DELAY_MAX_S: Final = 86_400.0

# A webhook comes without one: which token was refused, it does not say.
_BY_TOKEN: Final = frozenset({"token", "app"})
_REASONS: Final = {"timeout": Reason.TIMEOUT, "reset": Reason.RESET, "bad_reply": Reason.BAD_REPLY}


class Waits(msgspec.Struct, frozen=True):
    """How long the error policy waits, seconds; an argument, so that no test sits an hour out.

    Attributes:
        backoff: before the next attempt of a `backoff` row, by attempt; the last repeats.
        pair: the same for `pair`. Meta advises 4**x seconds after a burst; one message in 6 s is
            the steady limit.
        slow: a sender's silence after a throttle that did not say how long.
        endpoint, endpoint_max: a worker's first and longest pause when Graph cannot be reached.
        scale: what a row's own `hold_s`, and the time that Graph names, are multiplied by.
        floor: so long throttled down to the lowest rate without an acceptance is a pause.
    """

    backoff: tuple[float, ...] = (30.0, 120.0, 600.0)
    pair: tuple[float, ...] = (6.0, 16.0, 64.0, 256.0, 1024.0)
    slow: float = 1.0
    endpoint: float = 1.0
    endpoint_max: float = 30.0
    scale: float = 1.0
    floor: float = 600.0


WAITS: Final = Waits()


class Decision(msgspec.Struct, frozen=True):
    """What to do with a recipient, and whom else its answer concerns.

    Attributes:
        kind: sent, failed, unknown · retry: again, attempt used · back: again, attempt not used.
        delay_s: with retry: how long to wait first.
        in_place: with retry: short enough to wait within the claim.
        reason: number for the fact, with `TRIP` when the job's breaker counts it.
        scope_action: slow, park or pause of `scope`; None: nobody else is concerned.
        scope: whom `scope_action` concerns, a word of `graph_codes.Scope`.
        hold_s: how long; 0 with pause: until an operator acts.
        hold_max_s: up to where a repeated park doubles; equal to `hold_s`: Graph named the time.
        suppress_scope: write a suppression entry with this scope.
    """

    kind: Literal["sent", "failed", "unknown", "retry", "back"]
    delay_s: float = 0.0
    in_place: bool = False
    reason: int = 0
    scope_action: Literal["slow", "park", "pause"] | None = None
    scope: str = ""
    hold_s: float = 0.0
    hold_max_s: float = 0.0
    suppress_scope: Literal["all", "marketing"] | None = None


_SENT: Final = Decision("sent")


def backoff_s(attempt: int, base_ms: int, spread: float) -> float:
    """Return how long `retry` waits before the next attempt, in seconds.

    Args:
        attempt: the attempt that has just failed, counted from 1.
        base_ms: `BULK_RETRY_BASE_MS`; doubles with every attempt.
        spread: a draw from [0, 1); full jitter as in Brooker, "Exponential Backoff And
            Jitter" (AWS Architecture Blog, 2015).

    >>> backoff_s(3, 500, 0.5)
    1.0
    """
    return min(base_ms / 1000 * 2.0 ** (attempt - 1), DELAY_MAX_S) * spread


def decide(
    answer: Answer,
    attempt: int,
    max_retries: int,
    base_ms: int,
    spread: float,
    *,
    resend: bool = False,
    waits: Waits = WAITS,
) -> Decision:
    """Return what follows from `answer`.

    Args:
        answer: what the attempt came to.
        attempt: its number, counted from 1.
        max_retries: `BULK_MAX_RETRIES`: attempts beyond the first.
        base_ms: `BULK_RETRY_BASE_MS`.
        spread: a draw from [0, 1).
        resend: the job's `on_unknown`: what may have been taken is sent again all the same.
        waits: of the table.
    """
    if answer.kind == "accepted":
        return _SENT
    if answer.kind == "not_sent":
        return Decision(
            "back",
            scope_action="park",
            scope="endpoint",
            hold_s=waits.endpoint,
            hold_max_s=waits.endpoint_max,
        )
    if answer.kind == "unknown":
        reason = int(_REASONS.get(answer.why, Reason.OTHER))
        if resend and attempt <= max_retries:
            return _retry(backoff_s(attempt, base_ms, spread), reason)
        return Decision("unknown", reason=reason)
    row = row_of(answer.code, answer.http_status, transient=answer.is_transient)
    reason = reason_of(answer.code)
    if row.action in ("slow", "park", "pause"):
        return _back(row, answer, reason, waits)
    if attempt <= (max_retries if row.max is None else row.max) or row.action == "defer":
        if row.action == "retry":
            return _retry(backoff_s(attempt, base_ms, spread), reason)
        delay_s = _delay_s(row, attempt, waits)
        if delay_s is not None:
            return Decision("retry", delay_s, reason=reason)
    if row.action == "trip" or (row.action == "retry" and row.then == "trip"):
        reason |= TRIP
    return Decision("failed", reason=reason, suppress_scope=row.suppress_scope)


def decide_late(code: int, *, is_held: bool, waits: Waits = WAITS) -> Decision | None:
    """Return whom a failure that a webhook tells concerns beyond its recipient; None: nobody.

    The recipient stays `sent`: it is never put back into the same job.

    Args:
        code: of the failure.
        is_held: Graph had taken the message and held it back, as it does with a paced template.
        waits: of the table.

    >>> decide_late(132015, is_held=True).scope, decide_late(131026, is_held=False)
    ('template', None)
    """
    if code == PACED_OUT and is_held:
        return Decision("back", reason=reason_of(code), scope_action="pause", scope="portfolio")
    row = row_of(code, 400)
    if row.scope in _BY_TOKEN or row.action not in ("slow", "park", "pause"):
        return None
    return _back(row, Answer("rejected", code=code), reason_of(code), waits)


def _retry(delay_s: float, reason: int) -> Decision:
    return Decision("retry", delay_s, in_place=delay_s <= IN_PLACE_MAX_S, reason=reason)


def _delay_s(row: CodeRow, attempt: int, waits: Waits) -> float | None:
    """Return the wait that a row's table gives an attempt; None when it gives it no other."""
    if row.action == "defer":
        return row.hold_s * waits.scale if attempt == 1 else None
    table = {"backoff": waits.backoff, "pair": waits.pair}.get(row.action)
    return table[min(attempt, len(table)) - 1] if table else None


def _back(row: CodeRow, answer: Answer, reason: int, waits: Waits) -> Decision:
    if row.action == "slow":
        hold_s = answer.retry_after_s or waits.slow
        return Decision("back", reason=reason, scope_action="slow", scope="sender", hold_s=hold_s)
    if row.action == "pause":
        return Decision("back", reason=reason, scope_action="pause", scope=row.scope)
    # A send that meets a management limit would go round without a pause if only reads waited.
    scope = "waba" if row.scope == "management" else row.scope
    hold_s = waits.scale * (answer.regain_s or row.hold_s)
    hold_max_s = hold_s if answer.regain_s else waits.scale * row.hold_max_s
    return Decision(
        "back",
        reason=reason,
        scope_action="park",
        scope=scope,
        hold_s=hold_s,
        hold_max_s=hold_max_s,
    )
