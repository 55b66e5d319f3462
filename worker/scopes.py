"""An error that speaks of more than its recipient: whom it stops, told to PostgreSQL first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from shared.archive import Archive, SenderRow
from shared.clock import Clock
from shared.errors import ArchiveError, QueueError
from shared.logs import get
from shared.models import Answer
from shared.queue import Queue
from worker.retry import WAITS, Decision, Waits
from worker.senders import Sender, Senders
from worker.tick import Pulse

# Scopes whose members are told apart by the token or by the WABA (whatsapp 6.1).
_BY_TOKEN: Final = frozenset({"token", "app"})
_BY_WABA: Final = frozenset({"waba", "portfolio"})
PARKS_MAX: Final = 10  # parks in a row without one acceptance; the last of them is a pause
_FLOOR_RATE: Final = 1.5  # `rate_min` is 1/s, and it climbs again between two cuts
_NAMED_AGAIN_MS: Final = 1000
_AWAY_S: Final = 1.0
_log = get("worker.scopes")


class Standing(NamedTuple):
    """How a sender stands after an error."""

    state: str
    why: str
    until_ms: int
    parks: int


def standing(row: SenderRow, decision: Decision, why: str, now_ms: int) -> Standing | None:
    """Return how an error leaves a sender that it concerns; None: as it stood. Pure.

    Many requests in the air meet one error; only the first of them may count.

    Args:
        row: how the sender stands.
        decision: a park or a pause.
        why: scope and code, such as `waba:80007`.
        now_ms: epoch, on the clock of the server that lets it go on.
    """
    if row.state == "paused":
        return None
    if decision.scope_action == "pause":
        return Standing("paused", why, 0, row.parks)
    hold_s = min(decision.hold_s * 2.0**row.parks, decision.hold_max_s)
    until_ms = now_ms + int(hold_s * 1000)
    if row.state == "blocked" and row.until_ms > now_ms:
        # Held already: only a longer time that Graph names itself is news.
        is_named = decision.hold_s == decision.hold_max_s
        if not is_named or until_ms < row.until_ms + _NAMED_AGAIN_MS:
            return None
        return Standing("blocked", why, until_ms, row.parks)
    if row.parks + 1 >= PARKS_MAX:
        return Standing("paused", why, 0, 0)
    return Standing("blocked", why, until_ms, row.parks + 1)


class Scopes:
    """Stops what an answer concerns: an endpoint, a sender, all of a token's, a job, a template's.

    Args:
        queue: for jobs.
        archive: for senders; every worker pushes what it finds there within a second.
        senders: who shares a token or a WABA.
        pulse: for an endpoint, this worker's own affair; for when a park ends, the server's clock.
        clock: how long PostgreSQL is left alone, and a sender may be at its lowest rate.
        waits: how long a sender may be at its lowest rate.
    """

    def __init__(
        self,
        queue: Queue,
        archive: Archive,
        senders: Senders,
        pulse: Pulse,
        clock: Clock,
        waits: Waits = WAITS,
    ) -> None:
        """Borrow the doors."""
        self._floor_s = waits.floor
        self._queue = queue
        self._archive = archive
        self._senders = senders
        self._pulse = pulse
        self._clock = clock
        # One after another: whoever comes second finds what the first has written.
        self._turn = asyncio.Lock()
        self._away_until_s = 0.0
        self._floor: dict[str, float] = {}

    async def act(self, job: str, sender: Sender, decision: Decision, answer: Answer) -> None:
        """Carry out `decision.scope_action`; what cannot be written now comes up again."""
        try:
            await self._act(job, sender, decision, answer)
        except (ArchiveError, QueueError) as error:
            # The next recipient meets the same error, and it is written then.
            self._away_until_s = self._clock.monotonic() + _AWAY_S
            _log.warning("scope.not_written", error=str(error))

    async def insist(self, job: str, sender: Sender, decision: Decision, answer: Answer) -> None:
        """Carry out what a webhook tells once, of a job that may have ended.

        Raises:
            ArchiveError, QueueError: not all was written; ask again.
        """
        await self._act(job, sender, decision, answer, is_once=True)

    async def pause_template(self, waba_id: str, name: str, language: str, code: str) -> None:
        """Pause every job that uses a template, as a send that meets `code` would.

        Raises:
            ArchiveError, QueueError: not all are paused; ask again.
        """
        jobs = await self._archive.jobs_of_template(waba_id, name, language)
        await self._pause_each(jobs, f"template_paused:{code}")

    async def open_template(
        self, waba_id: str, name: str, language: str, codes: Sequence[str]
    ) -> None:
        """Let go on what a template's state, told by one of `codes`, has paused, and nothing else.

        Raises:
            ArchiveError, QueueError: not all go on; ask again.
        """
        reasons = " ".join(f"template_paused:{code}" for code in codes)
        for job in await self._archive.jobs_of_template(waba_id, name, language):
            done = await self._queue.control(
                job, "resume", by="system", reason="template_approved", value=reasons
            )
            if done.kind == "ok":
                _log.info("job.resumed", jobId=job, reason="template_approved")

    async def pause_account(self, waba_id: str, why: str) -> None:
        """Pause every sender of a WhatsApp business account.

        Raises:
            ArchiveError, QueueError: not all are paused; ask again.
        """
        pause = Decision("back", scope_action="pause", scope="waba")
        # Told once: who was let go on a moment ago is not to be missed.
        await self._senders.refresh()
        rows = self._senders.rows_of_waba(waba_id)
        sender = self._senders.named(rows[0].id) if rows else None
        if sender is not None:
            await self._stop(sender, pause, f"waba:{why}", is_once=True)

    async def _act(
        self,
        job: str,
        sender: Sender,
        decision: Decision,
        answer: Answer,
        *,
        is_once: bool = False,
    ) -> None:
        action, scope = decision.scope_action, decision.scope
        code = str(answer.code) if answer.code is not None else f"http {answer.http_status}"
        if scope == "endpoint":
            self._pulse.park_endpoint(decision.hold_s, decision.hold_max_s)
        elif action == "pause" and scope in ("job", "template"):
            await self._pause_jobs(job, scope, code, is_once=is_once)
        elif action == "slow":
            await self._watch_floor(sender)
        elif action in ("pause", "park"):
            await self._stop(sender, decision, f"{scope}:{code}", is_once=is_once)

    async def _pause_jobs(self, job: str, scope: str, code: str, *, is_once: bool) -> None:
        reason = f"{scope}_paused:{code}"
        done = await self._queue.control(job, "pause", by="system", reason=reason)
        if done.kind == "ok":
            _log.error("job.paused", jobId=job, reason=reason)
        elif not is_once:
            return  # whoever paused it has seen to the others
        if scope == "template":
            await self._pause_each(await self._archive.same_template(job), reason)

    async def _pause_each(self, jobs: list[str], reason: str) -> None:
        for job in jobs:
            done = await self._queue.control(job, "pause", by="system", reason=reason)
            if done.kind == "ok":
                _log.error("job.paused", jobId=job, reason=reason)

    async def _stop(
        self, sender: Sender, decision: Decision, why: str, *, is_once: bool = False
    ) -> None:
        async with self._turn:
            # Hundreds may wait here while PostgreSQL is away; each would sit its time-out out.
            if self._clock.monotonic() < self._away_until_s and not is_once:
                return
            # Twice: a row that changed meanwhile is read again, and decided on again.
            for _ in range(2):
                rows = self._rows(sender, decision.scope)
                if all([await self._move(row, decision, why) for row in rows]):
                    break
                await self._senders.refresh()
            await self._senders.refresh()

    async def _move(self, row: SenderRow, decision: Decision, why: str) -> bool:
        """Write how a sender stands now; False: its row has changed, ask again."""
        found = standing(row, decision, why, self._pulse.server_ms(row.shard))
        if found is None:
            return True
        try:
            is_moved = await self._archive.move_sender(row, *found, by="system")
        except ArchiveError:
            await self._senders.stop_untold(row, found.state, why, found.until_ms)
            raise
        if not is_moved:
            return False
        tell = _log.error if found.state == "paused" else _log.warning
        tell("sender.blocked", sender=row.name, state=found.state, why=why, until_ms=found.until_ms)
        return True

    def _rows(self, sender: Sender, scope: str) -> list[SenderRow]:
        """Return the rows that an answer to `sender`, as it was when it was asked, concerns."""
        if scope in _BY_TOKEN:
            # By the token that was refused: one that was stored meanwhile is not to blame.
            return self._senders.rows_with_token(sender.token)
        if scope in _BY_WABA and sender.waba_id:
            return self._senders.rows_of_waba(sender.waba_id)
        row = self._senders.row(sender.id)
        return [row] if row else []

    async def _watch_floor(self, sender: Sender) -> None:
        """Pause a sender that was throttled to its lowest rate for long and got nothing through."""
        row = self._senders.row(sender.id)
        if row is None:
            return
        now_s = self._clock.monotonic()
        status = await self._queue.sender_status(row.shard, row.id)
        if status.rate > _FLOOR_RATE:
            self._floor.pop(row.id, None)
            return
        since_s = self._floor.setdefault(row.id, now_s)
        if now_s - since_s < self._floor_s:
            return
        since_ms = self._clock.now_ms() - int(self._floor_s * 1000)
        if not await self._archive.has_sent(row.id, since_ms):
            pause = Decision("back", scope_action="pause", scope="sender")
            await self._stop(sender, pause, "sender:throttled_out")
        self._floor.pop(row.id, None)
