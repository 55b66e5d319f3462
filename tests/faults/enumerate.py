"""Every fault at every effect of every scenario: run clean to learn them, then once for each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, Self

from shared.settings import Settings
from tests.conftest import SECRET
from tests.faults.scenarios import SCENARIOS, TIMED
from tests.faults.stage import Stage
from tests.faults.story import Story
from tests.faults.world import KINDS, Effect, Gone, Kind, Loop, Stuck, World, task_factory
from tests.oracle import Violation

PLANS: Final = Path(__file__).parent.parent / "regress" / "plans.txt"
Plan = dict[int, Kind]
MACHINE: Final = "machine"


class Run(NamedTuple):
    """What one run came to.

    Attributes:
        scenario: its name; `machine` for a story that was made up.
        plan: what went wrong at which effect.
        trace: its effects.
        fired: what did go wrong.
        violations: what does not hold.
        moves: of a story.
    """

    scenario: str
    plan: Plan
    trace: list[Effect]
    fired: list[str]
    violations: list[Violation]
    moves: str = ""

    @property
    def text(self) -> str:
        """Return it as it is kept."""
        return f"{self.scenario}:{self.moves or text_of(self.plan)}"

    def __str__(self) -> str:
        """Return all that is needed to see it again."""
        lines = [self.text if self.plan or self.moves else f"{self.scenario}: clean"]
        for k in self.plan:
            around = ", ".join(map(str, self.trace[max(0, k - 4) : k + 1]))
            lines.append(f"  at {k}: {around}")
        lines += [f"  {violation}" for violation in self.violations]
        lines.append(f"  pytest tests/faults -k enumerate --plan '{self.text}'")
        lines.append(f"  to keep it, add that line to {PLANS.name} in tests/regress")
        return "\n".join(lines)


def text_of(plan: Plan) -> str:
    """Return a plan as it is typed: `17:die_after,31:err_before`."""
    return ",".join(f"{k}:{kind}" for k, kind in sorted(plan.items()))


def plan_of(text: str) -> tuple[str, Plan]:
    """Return scenario and plan of `send:17:die_after,31:err_before`."""
    scenario, _, rest = text.strip().partition(":")
    known = {"await", *(kind for kinds in KINDS.values() for kind in kinds)}
    plan: Plan = {}
    for part in rest.split(",") if rest else []:
        k, _, kind = part.partition(":")
        assert kind in known, f"no such fault: {kind}"
        plan[int(k)] = kind  # type: ignore[assignment]
    return scenario, plan


def kept_plans() -> list[str]:
    """Return every plan that ever failed, as it is written."""
    lines = PLANS.read_text().splitlines() if PLANS.exists() else []
    return [line.split(" #")[0].strip() for line in lines if line.strip() and line[0] != "#"]


class Enumeration:
    """Runs scenarios with plans on one pair of servers.

    Args:
        settings: of a schema that is migrated and nobody else's; its Redis is emptied for each run.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = Loop()
        self._loop.set_task_factory(task_factory)
        self._stack = AsyncExitStack()
        self.world = World(self._loop)
        self.stage = Stage(settings, self.world)
        self.runs = 0

    def __enter__(self) -> Self:
        self._do(self.stage.open(self._stack))
        return self

    def __exit__(self, *_error: object) -> None:
        self._do(self._stack.aclose())
        self._loop.close()

    def _do(self, act: Any) -> Any:
        self._loop.under_way += 1  # outside a run there is no clock to move: wait for the servers
        try:
            return self._loop.run_until_complete(act)
        finally:
            self._loop.under_way -= 1

    def learn(self, name: str, text: str) -> str:
        """Let the server know another text of a script; return its hash."""
        sha = self._do(self.stage.client.script_load(text))
        self.stage.client.scripts[sha] = name
        return str(sha)

    def execute(self, sql: str) -> None:
        """Change the schema of this stage."""
        self._do(self.stage.pool.execute(sql))

    def run(self, scenario: str, plan: Plan | None = None) -> Run:
        """Run a scenario with a plan."""
        plan = plan or {}
        self.runs += 1
        self._do(self.stage.reset(plan))
        trouble = self._play({**SCENARIOS, **TIMED}[scenario](self.stage))
        self.bury()
        violations = self._do(self.stage.verdict())
        return Run(scenario, plan, self.world.trace, self.world.fired, [*trouble, *violations])

    def replay(self, text: str) -> Run:
        """Run a plan or a story as it is written."""
        if not text.startswith(f"{MACHINE}:"):
            return self.run(*self.plan(text))
        story, violations = self.begin_story(), []
        for move in text.partition(":")[2].split(";"):
            violations = violations or self.play(story, move.strip())
        if violations:
            self.bury()
        else:
            violations = self.end_story(story)
        return self.run_of(story, violations)

    def begin_story(self) -> Story:
        """Begin a run whose moves come one by one."""
        self.runs += 1
        self._do(self.stage.reset({}))
        return Story(self.stage)

    def play(self, story: Story, move: str) -> list[Violation]:
        """Make a move; return what does not hold after it."""
        trouble = self._play(story.play(move))
        return [*trouble, *(Violation(*note) for note in self.stage.notes)]

    def end_story(self, story: Story) -> list[Violation]:
        """Heal and drain; return what does not hold at the end."""
        trouble = self._play(story.heal())
        self.bury()
        return [*trouble, *self._do(self.stage.verdict())]

    def run_of(self, story: Story, violations: list[Violation]) -> Run:
        """Return what a story has come to."""
        moves = "; ".join(story.moves)
        return Run(MACHINE, {}, self.world.trace, self.world.fired, violations, moves)

    def plan(self, text: str) -> tuple[str, Plan]:
        """Return a plan that may also name effects: `send:report#2:stall` is at the second report.

        A kept plan names what it means: numbers move with every effect that comes or goes.
        """
        scenario, _, rest = text.partition(":")
        trace: list[str] = []
        parts = []
        for part in rest.split(",") if rest else []:
            k, _, kind = part.partition(":")
            name, _, turn = k.partition("#")
            if not k.isdigit():
                trace = trace or [effect.name for effect in self.run(scenario).trace]
                at = [i for i, effect in enumerate(trace, 1) if effect == name]
                k = str(at[int(turn or 1) - 1])
            parts.append(f"{k}:{kind}")
        return plan_of(f"{scenario}:{','.join(parts)}")

    def _play(self, act: Awaitable[None]) -> list[Violation]:
        return self._loop.run_until_complete(self._guarded(act))

    async def _guarded(self, act: Awaitable[None]) -> list[Violation]:
        self._loop.main = asyncio.current_task()
        trouble = []
        try:
            await act
        except Stuck as error:
            trouble.append(Violation("liveness", str(error)))
        except asyncio.CancelledError:
            last = ", ".join(map(str, self.world.trace[-4:]))
            trouble.append(Violation("liveness", f"nothing can happen after {last}"))
        finally:
            self._loop.main = None
        return trouble

    def bury(self) -> None:
        """End whatever process is left."""
        self._loop.run_until_complete(self._bury())

    async def _bury(self) -> None:
        for life in self.stage.lives:
            life.is_dead = True
            life.end(Gone)
        for life in self.stage.lives:
            await self.world.bury(life)


def singles(trace: list[Effect], only: Collection[str] = ()) -> Iterator[Plan]:
    """Yield every single fault of a clean run, or those of some kinds."""
    for k, effect in enumerate(trace, 1):
        for kind in KINDS[effect.door]:
            if not only or kind in only:
                yield {k: kind}


def awaits(enumeration: Enumeration, scenario: str) -> Iterator[Run]:
    """Let everything die at each suspension in turn, until none is left."""
    n = 0
    while True:
        n += 1
        run = enumeration.run(scenario, {n: "await"})
        if not run.fired:
            return
        yield run


def doubles(enumeration: Enumeration, scenario: str, count: int, chance: Random) -> Iterator[Run]:
    """Run `count` sampled pairs; the second fault may fall into the recovery from the first."""
    clean = enumeration.run(scenario).trace
    for _ in range(count):
        k1 = chance.randrange(1, len(clean) + 1)
        first: Plan = {k1: chance.choice(KINDS[clean[k1 - 1].door])}
        trace = enumeration.run(scenario, first).trace
        if len(trace) <= k1:
            continue
        k2 = chance.randrange(k1 + 1, len(trace) + 1)
        yield enumeration.run(scenario, {**first, k2: chance.choice(KINDS[trace[k2 - 1].door])})


def variables(redis_url: str, database_url: str, schema: str) -> dict[str, str]:
    """Return what the system on the stage is told: small chunks, one request at a time."""
    return {
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
        "DATABASE_SCHEMA": schema,
        "BULK_SECRET_KEY": SECRET,
        "BULK_BATCH_SIZE": "5",
        "BULK_CONCURRENCY": "1",
        "BULK_PAUSE_MS": "0",
        "BULK_SUBMITS_PER_HOUR_IP": "1000",
        "GRAPH_BASE_URL": "http://127.0.0.1:1",
        "WORKER_SLOTS": "8",
    }
