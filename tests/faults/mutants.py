"""The program with one thing wrong: what the enumeration must see, or it means nothing.

Each changes one line or one script for as long as it lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from api import hub, stream
from api.hub import Hub, Subscription
from shared import archive
from shared.models import Reported
from shared.queue import Queue
from tests.faults.enumerate import Enumeration
from tests.faults.world import FaultyRedis
from worker import executor, log_writer, tick
from worker.retry import Decision

Change = Callable[[Enumeration, pytest.MonkeyPatch], None]


class Mutant(NamedTuple):
    """A fault of ours.

    Attributes:
        number: in reliability 4.7.
        what: it does.
        change: brings it about.
        plans: where it must be seen, in one of them at least; `send:record:die_before` is a fault
            at the first effect of that name in the program as it should be.
        invariants: what it breaks, one of them at least.
    """

    number: int
    what: str
    change: Change
    plans: tuple[str, ...]
    invariants: frozenset[str]


def _script(name: str, old: str, new: str) -> Change:
    """Change a script's text wherever it is joined in."""

    def change(enumeration: Enumeration, patch: pytest.MonkeyPatch) -> None:
        hits = 0
        for script in enumeration.stage.scripts():
            if old in script.text and name in ("", script.name):
                hits += 1
                text = script.text.replace(old, new)
                patch.setattr(script, "text", text)
                patch.setattr(script, "sha", enumeration.learn(script.name, text))
        assert hits, f"no script has the line {old!r} any more"

    return change


def _sent_again(_enumeration: Enumeration, patch: pytest.MonkeyPatch) -> None:
    plan = executor.plan

    def resending(*args: Any, **more: Any) -> Any:
        return plan(*args, **{**more, "resend": True})

    patch.setattr(executor, "plan", resending)


def _repeated_blindly(_enumeration: Enumeration, patch: pytest.MonkeyPatch) -> None:
    decide = executor.decide

    def again(answer: Any, *args: Any, **more: Any) -> Decision:
        if answer.kind == "unknown":
            return Decision("retry", 0.0, in_place=True)
        return decide(answer, *args, **more)

    patch.setattr(executor, "decide", again)


def _acknowledged_first(_enumeration: Enumeration, patch: pytest.MonkeyPatch) -> None:
    commit = log_writer.LogWriter._commit

    async def early(self: Any, shard: int, batch: list[Any]) -> bool:
        await self._queue.ack_outcomes(shard, [entry.entry for entry in batch])
        return await commit(self, shard, batch)

    patch.setattr(log_writer.LogWriter, "_commit", early)


def _group_from_now(_enumeration: Enumeration, patch: pytest.MonkeyPatch) -> None:
    create = FaultyRedis.xgroup_create

    def late(self: Any, key: str, group: str, **more: Any) -> Any:
        return create(self, key, group, **{**more, "id": "$"})

    patch.setattr(FaultyRedis, "xgroup_create", late)


def _paused_once_a_claim(enumeration: Enumeration, patch: pytest.MonkeyPatch) -> None:
    """Nothing that is said after `begin` is heard: not by the tick, not by a report's answer."""
    report = Queue.report

    async def deaf(self: Queue, *args: Any, **more: Any) -> Reported:
        reported = await report(self, *args, **more)
        return msgspec.structs.replace(reported, job_state="running")

    patch.setattr(Queue, "report", deaf)
    patch.setattr(tick.Pulse, "may_start", lambda *_args: True)
    running = "(state == 'running' or state == 'queued') and (expires == 0 or expires > now)"
    _script("report", running, "true")(enumeration, patch)


def _moved_down(_enumeration: Enumeration, patch: pytest.MonkeyPatch) -> None:
    """What was said last counts."""
    name, old = "raise_receipts", "greatest(l.receipt, i.receipt) AS receipt"
    assert old in archive.SQL[name]
    patch.setitem(archive.SQL, name, archive.SQL[name].replace(old, "i.receipt AS receipt"))


def _looked_up_only(enumeration: Enumeration, _patch: pytest.MonkeyPatch) -> None:
    """The look for an earlier answer is all there is; nothing unique decides."""
    enumeration.execute("DROP INDEX bulk_jobs_idempotency")


def _paced_by_its_own_clock(_enumeration: Enumeration, patch: pytest.MonkeyPatch) -> None:
    run = executor.Executor.run

    async def mine(self: executor.Executor) -> None:
        self._go = msgspec.structs.replace(self._go, now_ms=self._t.clock.now_ms())
        await run(self)

    patch.setattr(executor.Executor, "run", mine)


MUTANTS: Final = (
    Mutant(1, "an unknown recipient is sent again under hold", _sent_again,
           ("reap:",), frozenset({"I2"})),
    Mutant(2, "a blind repeat after the answer was lost", _repeated_blindly,
           ("no_answer:",), frozenset({"I2"})),
    Mutant(3, "a stale entry may still note intents and close",
           _script("", "return p[1] ~= nil and p[1][2] == worker", "return true"),
           ("send:report:stall", "send:send:stall", "send:close:stall"),
           frozenset({"I2", "I14"})),
    Mutant(4, "the unknown path forgets a counter",
           _script("", "[6] = 'unknown', ", ""), ("no_answer:",), frozenset({"I4"})),
    Mutant(5, "acknowledged before the outcomes are written", _acknowledged_first,
           ("send:archived:die_before",), frozenset({"I1", "I5", "I4"})),
    Mutant(6, "the group begins at what comes next", _group_from_now,
           ("submit:",), frozenset({"I1", "liveness"})),
    Mutant(7, "a length trim on a work stream",
           _script("", "P .. 'outcomes', '*'", "P .. 'outcomes', 'MAXLEN', 2, '*'"),
           ("send:",), frozenset({"I1", "I5"})),
    Mutant(8, "the bucket uses the worker's clock", _paced_by_its_own_clock,
           ("rate:",), frozenset({"I9"})),
    Mutant(9, "the pause is read once a claim", _paused_once_a_claim,
           ("pause:",), frozenset({"I10"})),
    Mutant(10, "a receipt can move down", _moved_down, ("webhook:",), frozenset({"I13"})),
    Mutant(12, "idempotency looks, then sets", _looked_up_only,
           ("submit:add_job:frozen_after", "submit:add_job:stall"), frozenset({"I1"})),
    Mutant(13, "the first tick after an outage reaps whoever has an old sign",
           _script("tick", "calm = now + lease end", "end"), ("outage:",),
           frozenset({"I6"})),
)  # fmt: skip


@contextmanager
def snapshot_first() -> Iterator[None]:
    """Mutant 11: a stream reads the snapshot, then subscribes; of a stream, not of a story."""
    with pytest.MonkeyPatch.context() as patch:
        subscribe, look = Hub.subscribe, stream._Stream.look

        def later(self: Hub, job_ids: Iterable[str], *args: Any) -> Subscription:
            made = subscribe(self, job_ids, *args)
            for job_id in made.jobs:
                self._leave(made, job_id)
            return made

        async def first(self: stream._Stream) -> bool:
            is_read = await look(self)
            for job_id in self._subscription.jobs:
                watch = self._made.hub._watched.setdefault(job_id, hub._Watch())
                watch.subscriptions.add(self._subscription)
            return is_read

        patch.setattr(Hub, "subscribe", later)
        patch.setattr(stream._Stream, "look", first)
        yield


@contextmanager
def in_force(mutant: Mutant, enumeration: Enumeration) -> Iterator[None]:
    """Let the program be wrong for a while."""
    with pytest.MonkeyPatch.context() as patch:
        mutant.change(enumeration, patch)
        yield
