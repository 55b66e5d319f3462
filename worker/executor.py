"""The heart: one claim to its outcomes, window by window. Knows no HTTP and no Redis commands."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol

import msgspec

from shared.clock import Clock
from shared.definitions import is_marketing
from shared.errors import QueueError
from shared.graph_codes import ROWS
from shared.ids import Ids
from shared.logs import Refusals, get
from shared.message import BodyMaker, TemplateMessage, body_for, message_of
from shared.metrics import WorkerMetrics
from shared.models import (
    TRIP,
    Answer,
    Claim,
    Detail,
    Fact,
    Go,
    Intent,
    Reason,
    Reported,
    State,
    attempts_of,
    state_of,
)
from shared.opaque import OpaqueMaker, opaque_for
from shared.queue import Queue
from shared.settings import Settings
from worker.retry import WAITS, Decision, Waits, decide
from worker.senders import Sender, Senders
from worker.suppression import NOBODY, Listed
from worker.tick import Pulse

NOTED_AHEAD_S: Final = 0.6  # a recipient is noted at most so long before it starts
TIMER_LATE_S: Final = 0.005  # by so much a start may be late and the next one still be on time
# Starts of all claims fall together on ticks of this length, and so do most answers: the loop turns
# for several at once. Shorter than TIMER_LATE_S, so nothing adds up.
STARTS_EVERY_S: Final = 0.004
FACTS_AGE_S: Final = 0.25  # facts are told at the latest so long after the answer
TRIP_AGE_S: Final = 0.05  # what the breaker counts is told sooner: each one more fails in vain
POISON_FROM: Final = 3  # from this delivery on a claim runs with windows of one
_REPORT_PAUSE_S: Final = 0.5
_MESSAGES_MAX: Final = 256
# The template is not as the list has it: parameters, absent, paused, disabled.
OF_TEMPLATES: Final = frozenset({132000, 132001, 132015, 132016})
KNOWN_CODES: Final = frozenset(row.code for row in ROWS)
_log = get("worker.executor")
_encode: Final = msgspec.msgpack.Encoder().encode


class Todo(msgspec.Struct, frozen=True, order=True, gc=False):
    """A recipient that is still to be sent to: when, which, with which attempt."""

    due_s: float
    index: int
    attempt: int
    in_place: bool


class Plan(NamedTuple):
    """What a claim comes to before anything is sent."""

    todo: list[Todo]
    facts: list[Fact]


def plan(claim: Claim, go: Go, start_s: float, *, resend: bool, deliveries_max: int) -> Plan:
    """Decide for each recipient of a claim: send, unknown, poison, or nothing. Pure.

    Args:
        claim: what was claimed.
        go: what is left of it.
        start_s: when the first may start, monotonic clock.
        resend: `on_unknown` of the job.
        deliveries_max: `CLAIM_DELIVERIES_MAX`; from it on what has no intent fails as poison.
    """
    gap_s = go.gap_us / 1_000_000
    is_poison = claim.delivery >= deliveries_max
    todo: list[Todo] = []
    facts: list[Fact] = []
    for index in claim.indices(len(go.chunk.phones)):
        state, attempts = state_of(go.states[index]), attempts_of(go.states[index])
        if state == State.INTENT and not resend:
            # Somebody noted it and died: it may have left, so it is never sent again.
            facts.append(Fact(index, State.UNKNOWN, attempts, Reason.CRASH))
        elif state in (State.PENDING, State.RETRY, State.INTENT):
            if is_poison:
                facts.append(Fact(index, State.FAILED, attempts, Reason.POISON))
            else:
                todo.append(Todo(start_s + len(todo) * gap_s, index, attempts + 1, in_place=False))
    return Plan(todo, facts)


def tick_after(start_s: float) -> float:
    """Return the first tick of all claims that is not before `start_s`. Pure.

    >>> tick_after(1000.001) - 1000 < 2 * STARTS_EVERY_S, tick_after(1000.1) >= 1000.1
    (True, True)
    """
    return max(start_s, math.ceil(start_s / STARTS_EVERY_S) * STARTS_EVERY_S)


class Job(NamedTuple):
    """What a claim must know of its job."""

    sender: str
    resend: bool
    chunk_size: int
    due_ms: int
    make: BodyMaker
    is_marketing: bool
    opaque: OpaqueMaker


class Jobs:
    """The messages of the jobs this worker has met lately: one read a job, not one a claim."""

    def __init__(self, queue: Queue, opaque_key: bytes) -> None:
        """Begin empty."""
        self._queue = queue
        self._opaque_key = opaque_key
        self._known: OrderedDict[str, Job] = OrderedDict()

    async def job(self, job_id: str) -> Job | None:
        """Return a job's message and sender; None when Redis no longer knows it."""
        known = self._known.get(job_id)
        if known is not None:
            return known
        found = await self._queue.message(job_id)
        if found is None:
            return None
        message = message_of(found.message)
        job = Job(
            found.sender,
            found.on_unknown == "resend",
            found.chunk_size,
            found.due_ms,
            body_for(message),
            # Of a template whose category nobody has said it is taken for granted.
            isinstance(message, TemplateMessage) and is_marketing(found.category),
            opaque_for(self._opaque_key, job_id),
        )
        self._known[job_id] = job
        while len(self._known) > _MESSAGES_MAX:
            self._known.popitem(last=False)
        return job


def _action_label(decision: Decision) -> str:
    """Fold eleven actions into the four words of the metric (whatsapp 6.1)."""
    if decision.kind == "retry":
        return "retry"
    if decision.kind == "back":
        return "pause" if decision.scope_action == "pause" else "slow"
    return "fail"


Scopes = Callable[[str, Sender, Decision, Answer], Awaitable[None]]


def _believe(_waba_id: str) -> None:
    """Doubt nothing: nobody keeps a list of templates."""


class Graph(Protocol):
    """The door to Graph; `worker.graph` and `worker.graph_thin` are two of it."""

    async def send(self, version: str, phone_number_id: str, token: str, body: bytes) -> Answer:
        """Send once; never raise for what the far side does."""


class Tools(NamedTuple):
    """What every run of a claim borrows."""

    queue: Queue
    graph: Graph
    senders: Senders
    jobs: Jobs
    pulse: Pulse
    settings: Settings
    clock: Clock
    ids: Ids
    metrics: WorkerMetrics
    refusals: Refusals
    on_scope: Scopes
    waits: Waits = WAITS
    listed: Listed = NOBODY
    doubt: Callable[[str], None] = _believe


async def _set_within(event: asyncio.Event, wait_s: float) -> None:
    """Wait until somebody sets `event`, at most `wait_s`."""
    event.clear()
    handle = asyncio.get_running_loop().call_later(wait_s, event.set)
    await event.wait()
    handle.cancel()


def _give(lane: asyncio.Future[Todo | None], todo: Todo | None) -> None:
    if not lane.done():  # a claim that breaks has cancelled its lanes
        lane.set_result(todo)


class Executor:
    """One claim on its way to its outcomes.

    Args:
        tools: what every run borrows.
        claim: what was claimed.
        go: what `begin` said of it.
    """

    def __init__(self, tools: Tools, claim: Claim, go: Go) -> None:
        """Plan nothing yet; `run` does."""
        self._t = tools
        self._claim = claim
        self._go = go
        # The deadline is one on the server's clock; ours may be wrong by a day.
        left_s = (go.expires_ms - go.now_ms) / 1000 if go.expires_ms else math.inf
        self._ends_s = tools.clock.monotonic() + left_s
        self._server = tools.pulse.servers[claim.shard]
        self._sender: Sender | None = None
        self._todo: list[Todo] = []
        self._noted: list[Todo] = []  # a heap
        self._facts: list[Fact] = []
        self._details: list[Detail] = []
        self._dues: dict[int, Fact] = {}
        self._air = 0
        self._calls = 0
        self._tell_at_s = 0.0
        self._last_start_s = 0.0
        self._is_stopping = False
        self._is_owner = True
        self._throttled_ms: int | None = None
        self._latency_s = 0.0
        self._answers = 0
        self._accepted = 0
        self._wake = asyncio.Event()
        self._idle: deque[asyncio.Future[Todo | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False
        limit = tools.settings.bulk_concurrency
        self._window = 1 if claim.delivery >= POISON_FROM else 2 * limit
        self._ahead = 1 if claim.delivery >= POISON_FROM else limit

    @property
    def in_the_air(self) -> int:
        """Return how many requests wait for their answer."""
        return self._calls

    @property
    def result(self) -> str:
        """Return how the claim ended, a word of the metric `claims_total`."""
        if not self._is_owner:
            return "lost"
        if self._claim.delivery >= self._t.settings.claim_deliveries_max:
            return "poison"
        return "handed_back" if self._is_stopping else "done"

    async def run(self) -> None:
        """Bring every recipient of the claim to an outcome, or back to its job."""
        t, claim, go = self._t, self._claim, self._go
        job = await self._job()
        if job is None:
            return
        start_s = t.clock.monotonic() + (go.start_ms - go.now_ms) / 1000
        planned = plan(
            claim,
            go,
            start_s,
            resend=job.resend,
            deliveries_max=t.settings.claim_deliveries_max,
        )
        self._todo = planned.todo
        for fact in planned.facts:
            self._note(fact, Detail(fact.index, go.chunk.phones[fact.index], t.clock.now_ms()))
        sender = self._sender = t.senders.get(job.sender)
        if sender is None:
            # Not read yet: back for a second, or it would go round at the speed of Redis.
            self._facts += [Fact(x.index, State.PENDING, 0, due_s=1) for x in self._todo]
        if sender is None or go.job_state not in ("running", "queued"):
            self._is_stopping = True
        # A lane that breaks ends the whole claim: it is delivered again, and counts as a delivery.
        async with asyncio.TaskGroup() as lanes:
            if self._todo and not self._is_stopping and sender is not None:
                late_s = (go.now_ms - job.due_ms) / 1000
                t.metrics.message_queue_seconds.observe(max(0.0, late_s))
                for _ in range(min(t.settings.bulk_concurrency, len(self._todo), self._ahead)):
                    lanes.create_task(self._lane(job, sender))
            await self._windows()
            self._is_over = True
            self._hand_out()
        await self._close()

    async def _job(self) -> Job | None:
        while True:
            try:
                return await self._t.jobs.job(self._claim.job)
            except QueueError:
                await self._t.clock.sleep(_REPORT_PAUSE_S)

    async def _windows(self) -> None:
        """Tell facts and note intents until nothing is left to start and every answer is in."""
        clock = self._t.clock
        while True:
            if not self._may_go_on():
                self._is_stopping = True
            if self._is_stopping:
                self._todo.clear()
                self._hand_out()  # what is noted goes back now, not at its time
                if self._air == 0 and not self._noted:
                    return
            take = self._take()
            now = clock.monotonic()
            if take or (self._facts and now >= self._tell_at_s):
                await self._report(take)
                continue
            if not self._todo and not self._noted and self._air == 0:
                return
            wait_s = min(FACTS_AGE_S, self._tell_at_s - now) if self._facts else FACTS_AGE_S
            if self._todo and self._may_note():
                wait_s = min(wait_s, max(0.0, self._todo[0].due_s - NOTED_AHEAD_S - now))
            await _set_within(self._wake, wait_s)

    def _is_wanted(self) -> bool:
        """Tell whether there is more to note, or nothing left to wait for."""
        if self._todo and not self._is_stopping:
            return self._may_note()
        return self._is_stopping or (self._air == 0 and not self._noted)

    def _may_note(self) -> bool:
        if self._is_stopping or len(self._noted) >= self._ahead:
            return False
        # What may kill the worker goes alone: nothing else is noted until its answer is in.
        return self._window > 1 or not (self._noted or self._air)

    def _may_go_on(self) -> bool:
        pulse, shard = self._t.pulse, self._claim.shard
        # Another server since: what is only noted there goes back, as if it had never been.
        is_same = pulse.servers[shard] == self._server
        return self._is_owner and is_same and pulse.may_start(shard, self._claim.job)

    def _take(self) -> list[Todo]:
        """Return what is to be noted next; nothing while a window's worth has not started."""
        if not self._may_note():
            return []
        until_s = self._t.clock.monotonic() + NOTED_AHEAD_S
        out: list[Todo] = []
        while self._todo and len(out) < self._window and self._todo[0].due_s <= until_s:
            out.append(heapq.heappop(self._todo))
        return out

    async def _report(self, take: list[Todo]) -> None:
        facts, details = self._facts, self._details
        self._facts, self._details = [], []
        self._tell_accepted()
        packed = b"".join([fact.pack() for fact in facts])
        record = _encode(details)
        intents = b"".join([Intent(x.index, x.attempt, x.in_place).pack() for x in take])
        throttled, self._throttled_ms = self._throttled_ms, None
        reported = await self._tell(packed, record, intents, throttled)
        if reported.is_cut and self._sender is not None:
            metrics = self._t.metrics
            metrics.sender_rate_cuts_total.labels(metrics.sender_label(self._sender.name)).inc()
        if not reported.is_owner:
            self._is_owner = False
        if not reported.is_owner or reported.job_state not in ("running", "queued"):
            self._is_stopping = True
            # The breaker may have paused the job in the very call that noted them.
            for x in take:
                self._note(Fact(x.index, State.PENDING, x.attempt), None)
        elif take:
            # Only what is noted may leave: an intent nobody stored is a message nobody knows of.
            for x in take:
                heapq.heappush(self._noted, x)
            self._hand_out()

    async def _tell(
        self, facts: bytes, record: bytes, intents: bytes, throttled: int | None
    ) -> Reported:
        t = self._t
        if facts:
            t.pulse.remember(self._claim, facts, record)
        while True:
            try:
                return await t.queue.report(
                    t.pulse.worker,
                    self._claim,
                    facts=facts,
                    record=record,
                    intents=intents,
                    throttled_ms=throttled,
                )
            except QueueError:
                await t.clock.sleep(_REPORT_PAUSE_S)

    async def _lane(self, job: Job, sender: Sender) -> None:
        """Send what is noted, one after another, each at its time."""
        while (todo := await self._next()) is not None:
            is_late = self._t.clock.monotonic() >= self._ends_s
            if self._is_stopping or is_late or not self._may_go_on():
                self._is_stopping = True
                self._note(Fact(todo.index, State.PENDING, todo.attempt), None)
            elif self._t.listed.stops(self._phone(todo), is_marketing=job.is_marketing):
                self._skip(todo)
            else:
                await self._send(job, sender, todo)
            self._air -= 1
            if self._is_wanted():
                self._wake.set()

    async def _next(self) -> Todo | None:
        """Return the noted one that is due first, at its time; None when the claim is over."""
        todo = self._due()
        if todo is not None:
            return todo
        lane: asyncio.Future[Todo | None] = asyncio.get_running_loop().create_future()
        self._idle.append(lane)
        self._hand_out()
        return await lane

    def _hand_out(self) -> None:
        """Give idle lanes what is due, all in one turn of the loop, and look again at the next.

        Nothing is bound to a lane before its time: a try noted meanwhile may come first.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle and (todo := self._due()) is not None:
            _give(self._idle.popleft(), todo)
        if self._idle and self._noted:
            wait_s = tick_after(self._start_s()) - self._t.clock.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(0.0, wait_s), self._hand_out)
        elif self._is_over:
            while self._idle:
                _give(self._idle.popleft(), None)

    def _start_s(self) -> float:
        # A claim never catches up: after a delay its next recipients keep the gap.
        return max(self._noted[0].due_s, self._last_start_s + self._go.gap_us / 1_000_000)

    def _due(self) -> Todo | None:
        if not self._noted:
            return None
        start_s, now_s = self._start_s(), self._t.clock.monotonic()
        if now_s < start_s and not self._is_stopping:
            return None
        # But what a timer is late by must not add up.
        self._last_start_s = max(start_s, now_s - TIMER_LATE_S)
        self._air += 1
        return heapq.heappop(self._noted)

    def _phone(self, todo: Todo) -> int:
        return self._go.chunk.phones[todo.index]

    def _skip(self, todo: Todo) -> None:
        """Pass over somebody who is on the suppression list by now; no attempt is used."""
        detail = Detail(todo.index, self._phone(todo), self._t.clock.now_ms())
        self._note(Fact(todo.index, State.SKIPPED, todo.attempt - 1, Reason.SUPPRESSED), detail)

    async def _send(self, job: Job, sender: Sender, todo: Todo) -> None:
        t, chunk, phone = self._t, self._go.chunk, self._phone(todo)
        values = chunk.values[todo.index] if chunk.values else None
        position = self._claim.chunk * job.chunk_size + todo.index
        body = job.make(phone, values, job.opaque(position, todo.attempt))
        # Told to another server until its outcome is: noted alone, it may be sent by somebody else.
        t.pulse.in_the_air.setdefault(self._claim.entry, {})[todo.index] = todo.attempt
        start_s = t.clock.monotonic()
        self._calls += 1
        answer = await t.graph.send(sender.version, sender.phone_number_id, sender.token, body)
        self._calls -= 1
        took_s = t.clock.monotonic() - start_s
        self._latency_s += took_s
        self._answers += 1
        decision = decide(
            answer,
            todo.attempt,
            t.settings.bulk_max_retries,
            t.settings.bulk_retry_base_ms,
            0.0 if answer.kind == "accepted" else t.ids.jitter(),
            resend=job.resend,
            waits=t.waits,
        )
        self._count(answer, decision, took_s)
        await self._settle(sender, todo, answer, decision, phone)

    def _count(self, answer: Answer, decision: Decision, took_s: float) -> None:
        metrics = self._t.metrics
        metrics.graph_seconds[answer.kind].observe(took_s)
        if answer.kind == "accepted":
            self._accepted += 1
            return
        if answer.kind == "throttled":
            metrics.attempt_throttled.inc()
        elif answer.kind == "not_sent":
            metrics.attempt_unsent.inc()
        elif answer.kind == "unknown":
            metrics.attempt_lost.inc()
        else:
            metrics.attempt_refused.inc()
        if decision.kind == "retry":
            (metrics.retry_in_place if decision.in_place else metrics.retry_moved).inc()
        if answer.kind in ("rejected", "throttled"):
            code = str(answer.code) if answer.code in KNOWN_CODES else "other"
            action = _action_label(decision)
            metrics.message_errors_total.labels(code, action).inc()
            self._t.refusals.add(self._claim.job, answer.code, answer.http_status, action)
            if answer.code in OF_TEMPLATES and self._sender is not None:
                self._t.doubt(self._sender.waba_id)

    def _tell_accepted(self) -> None:
        # Counted by windows: a counter's lock for each message is 2 % of what it costs.
        self._t.metrics.attempt_accepted.inc(self._accepted)
        self._accepted = 0

    async def _settle(
        self, sender: Sender, todo: Todo, answer: Answer, decision: Decision, phone: int
    ) -> None:
        detail = Detail(
            todo.index,
            phone,
            self._t.clock.now_ms(),
            answer.wamid,
            answer.code,
            answer.details,
            answer.trace,
            answer.message_status,
        )
        index, attempt = todo.index, todo.attempt
        if decision.kind == "sent":
            self._note(Fact(index, State.SENT, attempt), detail)
        elif decision.kind == "failed":
            self._note(Fact(index, State.FAILED, attempt, decision.reason), detail)
        elif decision.kind == "unknown":
            self._note(Fact(index, State.UNKNOWN, attempt, decision.reason), detail)
        elif decision.kind == "retry":
            self._again(todo, decision)
        else:
            self._is_stopping = True
            self._note(Fact(index, State.PENDING, attempt), None)
            if decision.scope_action == "slow":
                self._throttled_ms = int(decision.hold_s * 1000)
            await self._t.on_scope(self._claim.job, sender, decision, answer)

    def _again(self, todo: Todo, decision: Decision) -> None:
        due_s = 0 if decision.in_place else min(2**24 - 1, max(1, round(decision.delay_s)))
        fact = Fact(todo.index, State.RETRY, todo.attempt, decision.reason, due_s)
        self._note(fact, None)
        if decision.in_place and self._may_go_on() and not self._is_stopping:
            at_s = self._t.clock.monotonic() + decision.delay_s
            heapq.heappush(self._todo, Todo(at_s, todo.index, todo.attempt + 1, in_place=True))
        else:
            self._dues[todo.index] = fact

    def _note(self, fact: Fact, detail: Detail | None) -> None:
        is_trip = bool(fact.reason & TRIP)
        tell_at_s = self._t.clock.monotonic() + (TRIP_AGE_S if is_trip else FACTS_AGE_S)
        if not self._facts or tell_at_s < self._tell_at_s:
            self._tell_at_s = tell_at_s
            if is_trip:
                self._wake.set()
        self._facts.append(fact)
        if detail is not None:
            self._details.append(detail)

    async def _close(self) -> None:
        """Tell the last facts and give the rest back."""
        t = self._t
        self._tell_accepted()
        facts = [
            *self._facts,
            *(f for i, f in self._dues.items() if f not in self._facts and i >= 0),
        ]
        packed, record = b"".join([f.pack() for f in facts]), _encode(self._details)
        if packed:
            t.pulse.remember(self._claim, packed, record)
        latency_ms = int(1000 * self._latency_s / self._answers) if self._answers else 0
        while True:
            try:
                await t.queue.report(
                    t.pulse.worker,
                    self._claim,
                    facts=packed,
                    record=record,
                    throttled_ms=self._throttled_ms,
                    latency_ms=latency_ms,
                    done=True,
                )
            except QueueError:
                await t.clock.sleep(_REPORT_PAUSE_S)
            else:
                return
