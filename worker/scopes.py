"""An error that speaks of more than its recipient: whom it stops, told to PostgreSQL first."""

from __future__ import annotations

from typing import Final

from shared.archive import Archive
from shared.clock import Clock
from shared.errors import ArchiveError, QueueError
from shared.logs import get
from shared.models import Answer
from shared.queue import Queue
from worker.retry import Decision
from worker.senders import Sender, Senders
from worker.tick import Pulse

# Scopes whose members are told apart by the token or by the WABA (whatsapp 6.1).
_BY_TOKEN: Final = frozenset({"token", "app"})
_BY_WABA: Final = frozenset({"waba", "portfolio"})
_log = get("worker.scopes")


class Scopes:
    """Stops what an answer concerns: an endpoint, a sender, all of a token's, a job.

    Args:
        queue: for jobs.
        archive: for senders; every worker pushes what it finds there within a second.
        senders: who shares a token or a WABA.
        pulse: for an endpoint, this worker's own affair.
        clock: when a park ends.
    """

    def __init__(
        self, queue: Queue, archive: Archive, senders: Senders, pulse: Pulse, clock: Clock
    ) -> None:
        """Borrow the doors."""
        self._queue = queue
        self._archive = archive
        self._senders = senders
        self._pulse = pulse
        self._clock = clock
        self._unreachable_s = 0.0

    async def act(self, job: str, sender: Sender, decision: Decision, answer: Answer) -> None:
        """Carry out `decision.scope_action`; what cannot be written now comes up again."""
        try:
            await self._act(job, sender, decision, answer)
        except (ArchiveError, QueueError) as error:
            # The next recipient meets the same error, and it is written then.
            _log.warning("scope.not_written", error=str(error))

    async def _act(self, job: str, sender: Sender, decision: Decision, answer: Answer) -> None:
        action, scope = decision.scope_action, decision.scope
        why = str(answer.code) if answer.code is not None else f"http {answer.http_status}"
        if action == "park" and scope == "endpoint":
            self._park_endpoint(decision)
        elif action == "pause" and scope in ("job", "template"):
            await self._queue.control(job, "pause", by="system", reason=f"{scope}_paused:{why}")
            _log.error("job.paused", jobId=job, scope=scope, code=answer.code)
        elif action in ("pause", "park"):
            state = "paused" if action == "pause" else "blocked"
            until_ms = 0
            if action == "park":
                until_ms = self._clock.now_ms() + int(decision.hold_s * 1000)
            for each in self._concerned(sender, scope):
                await self._archive.set_sender_state(
                    each.id, state, f"{scope}:{why}", until_ms, "system"
                )
            await self._senders.refresh()
            _log.error("sender.blocked", sender=sender.name, scope=scope, code=answer.code)

    def _park_endpoint(self, decision: Decision) -> None:
        now_s = self._clock.monotonic()
        if self._pulse.unreachable_until_s > now_s:
            return
        # Doubles while it repeats, and begins anew after a quiet time.
        is_repeat = now_s - self._pulse.unreachable_until_s < 2 * decision.hold_max_s
        held = self._unreachable_s * 2 if is_repeat and self._unreachable_s else decision.hold_s
        self._unreachable_s = min(held, decision.hold_max_s)
        self._pulse.unreachable_until_s = now_s + self._unreachable_s
        _log.warning("graph.unreachable", for_s=self._unreachable_s)

    def _concerned(self, sender: Sender, scope: str) -> list[Sender]:
        if scope in _BY_TOKEN:
            return [s for s in self._senders.all() if s.token == sender.token]
        if scope in _BY_WABA and sender.waba_id:
            return [s for s in self._senders.all() if s.waba_id == sender.waba_id]
        return [sender]
