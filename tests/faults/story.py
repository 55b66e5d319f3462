"""Moves in any order: what the state machine does on the stage, and how it is written down.

A story is a line of moves, `start; submit 3 0 0 0; take 0`. One that failed is played again as it
is written, without the machine that found it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from api import jobs
from shared import keys
from shared.models import state_of
from tests.faults import post, provider
from tests.faults.scenarios import after
from tests.faults.stage import Stage, Submission, Worker
from tests.faults.watch import Browser
from tests.oracle import COUNTERS, paced

LEASE_MS: Final = 10_000
WORKERS_MAX: Final = 3
SUBMISSIONS_MAX: Final = 4
BROWSERS_MAX: Final = 3
# A story is as long as many scenarios, and a process with streams is busy while others wait.
EFFECTS_MAX: Final = 20_000
REPLIES: Final[dict[str, provider.Reply]] = {
    "temporary": provider.TEMPORARY,
    "service": provider.SERVICE,
    "slow_down": provider.SLOW_DOWN,
    "pair": provider.PAIR,
    "not_there": provider.NOT_THERE,
    "no_byte": provider.NO_BYTE,
    "no_answer": provider.NO_ANSWER,
    "bad_token": provider.BAD_TOKEN,
}
COUNTS: Final = (*COUNTERS, "in_flight", "retrying")
# What one worker does on its own, a step each.
ACTS: Final = ("tick", "look", "take", "write", "take_over", "marks", "refresh")
# Once Meta has said something; `glance` reads it and goes no further.
HOOK_ACTS: Final = ("hear", "glance", "hear_for_the_dead", "sweep")
# Of whom a webhook speaks: by place and id, by the id alone, of nobody's message, of both.
WHOSE: Final = ("placed", "by_id", "stranger", "both")
# What may happen elsewhere while an answer is on its way.
DEEDS: Final = ("pause", "resume", "cancel", "kill", "tick", "away", "other", "drop")


class Story:
    """One run of moves, and what must hold after each.

    Args:
        stage: that was just reset.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.moves: list[str] = []
        self.asked: list[Submission] = []
        self._sent: Counter[str] = Counter()
        self._is_full = False
        self._untold: list[list[dict[str, str]]] = []
        stage.world.effects_max = EFFECTS_MAX

    async def play(self, move: str) -> None:
        """Make a move, then look whether the numbers are still possible."""
        self.moves.append(move)
        name, *words = move.split()
        numbers = [int(word) if word.lstrip("-").isdigit() else word for word in words]
        act: Callable[..., Awaitable[None]] = MOVES[name]
        await act(self, *numbers)
        await self._check()

    # -- clients ----------------------------------------------------------------------------

    async def tune(self, size: int, slots: int, steps: int) -> None:
        """Begin with chunks of a size, so many slots a worker, a mark that rises by steps."""
        self.stage.tune(bulk_batch_size=size, worker_slots=slots)
        if steps:
            self.stage.limit_steps()

    async def submit(self, count: int, twice: int, bad: int, more: str) -> None:
        """Submit once; what is not answered is asked again at the end."""
        options: dict[str, Any] = {
            "hold": {},
            "resend": {"on_unknown": "resend"},
            "later": {"scheduled_at": after(600)},
            "short": {"expires_at": after(20)},
        }[more]
        asked = self.stage.new_submission(count, **options)
        rows = asked.body["recipients"]
        rows += rows[:twice]
        if bad:
            rows.insert(1, "0123")
            asked.body["on_invalid"] = "skip"
        self.asked.append(asked)
        await self.stage.attempt(asked)

    async def again(self, at: int) -> None:
        """Submit with a key that was used."""
        await self.stage.attempt(self.asked[at % len(self.asked)])

    async def control(self, action: str, at: int) -> None:
        """Ask once for a change of a job."""
        if not self.stage.accepted:
            return
        job = self.stage.accepted[at % len(self.stage.accepted)].job
        handler = {"pause": jobs.pause, "resume": jobs.resume, "cancel": jobs.cancel}[action]
        await self.stage.ask(handler, f"/api/bulk/jobs/{job}/{action}", None, {}, job_id=job)

    # -- processes --------------------------------------------------------------------------

    def _worker(self, at: int) -> Worker | None:
        live = self.stage.live()
        return live[at % len(live)] if live else None

    async def start(self) -> None:
        """Start a worker, unless there are enough."""
        if len(self.stage.live()) < WORKERS_MAX:
            await self.stage.start_worker()

    async def act(self, name: str, at: int) -> None:
        """Let a worker take one of its acts."""
        worker = self._worker(at)
        if worker is not None and (name in ACTS or self.stage.has_hooks):
            await self.stage.step(worker.life, getattr(worker, name)())

    async def turn(self, at: int) -> None:
        """Let a worker take all of its acts."""
        worker = self._worker(at)
        for name in (*ACTS, *(HOOK_ACTS if self.stage.has_hooks else ())):
            if worker is not None and worker in self.stage.live():
                await self.stage.step(worker.life, getattr(worker, name)())

    async def together(self, name: str) -> None:
        """Let all workers take the same act at the same time."""
        live = self.stage.live()
        await asyncio.gather(
            *(self.stage.step(worker.life, getattr(worker, name)()) for worker in live)
        )

    async def serve(self, at: int, requests: int) -> None:
        """Let a worker send until SIGTERM, which comes with so many answers on their way."""
        worker, stop = self._worker(at), asyncio.Event()
        if worker is None:
            return

        async def sigterm() -> None:
            stop.set()

        self._during(requests, sigterm)
        await self.stage.step(worker.life, worker.serve(stop))

    async def leave(self, at: int) -> None:
        """Stop a worker that has nothing in hand."""
        worker = self._worker(at)
        if worker is not None:
            await self.stage.step(worker.life, worker.leave())

    async def kill(self, at: int) -> None:
        """End a worker between two acts."""
        worker = self._worker(at)
        if worker is not None:
            await self.stage.kill(worker)

    async def fault(self, effects: int, kind: str) -> None:
        """Let the next effect but so many go wrong, whosesoever it is."""
        self.stage.world.plan[len(self.stage.world.trace) + effects] = kind  # type: ignore[assignment]

    async def wake(self, at: int) -> None:
        """Let one that stands still go on, in time or too late."""
        zombies = self.stage.zombies
        if zombies:
            await self.stage.wake(zombies[at % len(zombies)])

    async def during(self, requests: int, deed: str, at: int) -> None:
        """Let something happen elsewhere while an answer to come is on its way."""
        self._during(requests, partial(self._deed, deed, at))

    def _during(self, requests: int, deed: Callable[[], Awaitable[None]]) -> None:
        far = self.stage.provider
        far.hooks[len(far.ledger) + requests] = deed

    async def _deed(self, deed: str, at: int) -> None:
        stage = self.stage
        if deed in ("pause", "resume", "cancel"):
            await self.control(deed, at)
        elif deed == "kill":
            await self.kill(at)
        elif deed == "away":
            await stage.later(LEASE_MS + 1_000, is_calm=True)
        elif deed == "drop":
            await self.drop("workers")
            # A report waits for the group, which the next tick makes.
            await self._tick_aside()
        elif deed == "tick":
            await self._tick_aside()
        else:  # whoever is in no step takes what there is
            idle = [w for w in stage.live() if w.life.step is None or w.life.step.done()]
            for worker in idle[:1]:
                await stage.step(worker.life, worker.tick())
                await stage.step(worker.life, worker.take())

    async def _tick_aside(self) -> None:
        for worker in self.stage.live():
            await self.stage.step_aside(worker, worker.tick())

    # -- who watches ------------------------------------------------------------------------

    def _browser(self, at: int) -> Browser | None:
        browsers = self.stage.audience.browsers
        return browsers[at % len(browsers)] if browsers else None

    async def subscribe(self, at: int) -> None:
        """Watch a job."""
        if self.stage.accepted and len(self.stage.audience.browsers) < BROWSERS_MAX:
            accepted = self.stage.accepted[at % len(self.stage.accepted)]
            await self.stage.audience.subscribe(accepted.job)

    async def cut(self, at: int, after: int) -> None:
        """Cut a subscriber off once so many more bytes have come."""
        browser = self._browser(at)
        if browser is not None:
            browser.cut(after)

    async def reconnect(self, at: int, site: int) -> None:
        """Let a subscriber who was cut off come back, to either of two processes."""
        browser = self._browser(at)
        if browser is not None:
            await self.stage.audience.reconnect(browser, site)

    async def listen(self, seconds: int) -> None:
        """Let whatever goes on by itself go on for a while."""
        await asyncio.sleep(seconds)

    # -- stores, far side and time ----------------------------------------------------------

    async def advance(self, ms: int, is_calm: int) -> None:
        """Let time pass; calm: nobody has ticked meanwhile."""
        await self.stage.later(ms, is_calm=bool(is_calm) or not self.stage.live())

    async def answers(self, ahead: int, position: int, reply: str, times: int) -> None:
        """Script what a recipient of the latest job, or of the next, is answered."""
        phone = self.stage.phone(self.stage.submits + ahead, position)
        self.stage.provider.script[phone] = [REPLIES[reply]] * times

    async def pace(self, rate: int) -> None:
        """Give the sender a rate, messages a second."""
        await self.stage.pace(float(rate))

    async def webhook(self, at: int, whose: str, word: str, times: int) -> None:
        """Let Meta say a word, so many times; what is not taken is said again at the end."""
        stage = self.stage
        if not stage.has_hooks:
            if self._is_full:
                return  # its group could not be made
            post.open_to_meta(stage)
        lines, statuses = post.accepts(stage), []
        if whose in ("stranger", "both"):
            statuses.append(post.of_a_stranger(stage, at, word))
        if whose != "stranger" and lines:
            line = lines[at % len(lines)]
            statuses.append(post.of(stage, line, word, is_placed=whose != "by_id"))
        for _ in range(times if statuses else 0):
            if not await post.tell(stage, statuses):
                self._untold.append(statuses)

    async def operator(self) -> None:
        """Put every stopped sender right."""
        await self.stage.set_right()

    async def memory(self, is_full: int) -> None:
        """Fill Redis, or give it room; a group that is gone could not be made in a full one."""
        hooks = (keys.INBOX,) if self.stage.has_hooks else ()
        for key in (keys.ready(0), keys.outcomes(0), *hooks):
            is_there = await self.stage.redis.exists(key)
            if is_full and not (is_there and await self.stage.redis.xinfo_groups(key)):
                return
        self._is_full = bool(is_full)
        await self.stage.fill(is_full=self._is_full)

    async def drop(self, group: str) -> None:
        """Destroy a group: what its workers hold is delivered to others, as if they had died."""
        stage = self.stage
        key = keys.ready(0) if group == keys.GROUP_WORKERS else keys.outcomes(0)
        if not self._is_full and await stage.redis.exists(key):
            await stage.redis.xgroup_destroy(key, group)
            await stage.doubt()

    async def trim(self) -> None:
        """Lose every change note."""
        await self.stage.redis.xtrim(keys.events(0), maxlen=0)

    async def archive(self, refusals: int) -> None:
        """Let PostgreSQL refuse the next so many statements; 0: it is back."""
        self.stage.world.shut["pg"] = refusals

    # -- what must hold ---------------------------------------------------------------------

    async def _check(self) -> None:
        """I4, I9 and I13 at any time; I14 is watched at every effect of whoever stood still."""
        stage = self.stage
        stage.look_for_zombies()
        if stage.has_hooks:
            await post.look(stage)
        broken = paced(stage.provider.ledger, stage.rate, stage.burst())
        stage.notes += [(violation.invariant, violation.text) for violation in broken[:1]]
        await self._check_numbers()

    async def _check_numbers(self) -> None:
        """I4: hash and states agree, nothing is negative, nobody is unsent."""
        stage = self.stage
        for job, states in (await stage.states()).items():
            fields = await stage.redis.hgetall(keys.job(job))
            if not fields:
                continue
            hash_ = {name.decode(): value.decode() for name, value in fields.items()}
            tally = Counter(state_of(byte).name.lower() for byte in states)
            counts = {name: int(hash_.get(name, 0)) for name in COUNTS}
            wrong = [name for name, n in counts.items() if n < 0]
            wrong += [name for name in COUNTERS if counts[name] != tally[name]]
            if wrong or sum(counts[name] for name in COUNTERS) > len(states):
                stage.notes.append(("I4", f"{job}: {counts}, states {tally}"))
            if counts["sent"] < self._sent[job]:
                stage.notes.append(("I4", f"{job}: {counts}, {self._sent[job]} were sent"))
            self._sent[job] = counts["sent"]

    async def heal(self) -> None:
        """End every trouble, and let the system come to rest."""
        stage = self.stage
        stage.world.plan.clear()
        stage.world.shut.clear()
        stage.provider.hooks.clear()
        await stage.fill(is_full=False)
        stage.has_operator = True
        for life in list(stage.zombies):
            if life.is_request:  # a pause that stands still is asked before all is resumed
                await stage.wake(life)
        await stage.set_right()
        for asked in self.asked:
            await stage.insist(asked)
        for accepted in stage.accepted:
            await stage.control(accepted, "resume")
        for statuses in self._untold:
            while not await post.tell(stage, statuses):
                await stage.later(1_000)
        await stage.later(LEASE_MS + 1_000)
        await stage.drain()
        await stage.audience.see_the_end()
        if stage.has_hooks:
            await post.judge_strangers(stage)
            for accepted in stage.accepted:
                await post.judge(stage, accepted)


MOVES: Final[dict[str, Callable[..., Awaitable[None]]]] = {
    move.__name__: move
    for move in (
        Story.tune, Story.submit, Story.again, Story.control, Story.start, Story.act, Story.turn,
        Story.together, Story.serve, Story.leave, Story.kill, Story.fault, Story.wake,
        Story.during, Story.advance, Story.answers, Story.operator, Story.memory, Story.drop,
        Story.trim, Story.archive, Story.pace, Story.webhook, Story.subscribe, Story.cut,
        Story.reconnect, Story.listen,
    )
}  # fmt: skip
