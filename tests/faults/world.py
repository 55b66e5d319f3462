"""A world in which one thing happens at a time and any of it may go wrong; its doors.

Time passes only when nothing else can happen, so a wait costs nothing and two runs of one scenario
have the same effects in the same order. Every effect of the program passes `World.call`, which
counts it and lets it fail as the plan says: the process dies before or after it, it is refused, its
request or its answer is lost, its task is cancelled, or the process is frozen. Knows no scenario.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeVar

import redis.asyncio
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.archive import Archive
from shared.clock import Clock
from shared.errors import ArchiveError
from shared.models import Answer
from worker.answer import not_sent, unknown

Kind = Literal[
    "die_before",
    "die_after",
    "err_before",
    "lost",
    "err_after",
    "cancel",
    "cancel_after",
    "stall",
    "stall_after",
    "frozen",
    "frozen_after",
    "await",
]
# `await` counts suspensions of the whole program instead of effects: at that one everything dies.
# What can happen to an effect of each door; `lost`: not done, and nobody knows. A frozen process
# (`stall`) wakes when another has taken over; `frozen` sleeps until all is done.
KINDS: Final[dict[str, tuple[Kind, ...]]] = {
    "redis": (
        "die_before",
        "die_after",
        "err_before",
        "lost",
        "err_after",
        "cancel",
        "cancel_after",
        "stall",
        "stall_after",
        "frozen",
        "frozen_after",
    ),
    "pg": (
        "die_before",
        "die_after",
        "err_before",
        "err_after",
        "cancel",
        "cancel_after",
        "stall",
        "frozen_after",
    ),
    "graph": (
        "die_before",
        "die_after",
        "err_before",
        "err_after",
        "cancel",
        "cancel_after",
        "stall",
        "stall_after",
        "frozen",
        "frozen_after",
    ),
    "sleep": ("die_before", "cancel", "stall"),
}
AFTER: Final = frozenset({"die_after", "err_after", "cancel_after", "stall_after", "frozen_after"})
EFFECTS_MAX: Final = 4_000  # of one run; a run of ten recipients has about sixty
LONG: Final = 1_000  # effects until somebody may be waiting for whoever stands still
JUMPS_MAX: Final = 4_000  # of the clock without an effect between them
SPINS_MAX: Final = 50_000  # turns of the loop without a wait
TICK_S: Final = 1e-6
_IO_S: Final = 20.0
_T = TypeVar("_T")


class Die(BaseException):
    """The process is dead; nothing of ours may catch it."""


class Gone(Exception):  # noqa: N818 - an event, not a mistake
    """The process that was to take a step has died, or was cancelled whole."""


class Frozen(Exception):  # noqa: N818 - an event, not a mistake
    """The process that was to take a step stands still; `World.thaw` lets it go on."""


class Stuck(Exception):  # noqa: N818 - a finding
    """Nothing will ever happen again, or too much has."""


class Selector(selectors.DefaultSelector):
    """Waits for servers while they are asked; else starts the next effect, else moves the clock."""

    loop: Loop

    def select(self, timeout: float | None = None) -> Any:
        loop = self.loop
        if timeout is not None and timeout <= 0:
            loop.spins += 1
            if loop.spins > SPINS_MAX and loop.main is not None:
                loop.give_up()  # somebody goes round without waiting for anything
                loop.spins = 0
            return super().select(0)
        loop.spins = 0
        if loop.under_way:
            ready = super().select(_IO_S)
            if not ready:
                raise Stuck("a server does not answer")
            return ready
        while loop.turns:
            turn = loop.turns.popleft()
            if not turn.done():
                turn.set_result(None)
                loop.jumps = 0
                return []
        loop.jumps += 1
        if timeout is None or loop.jumps > JUMPS_MAX:
            loop.give_up()
            return super().select(0)
        loop.now_s += timeout
        return []


class Loop(asyncio.SelectorEventLoop):
    """An event loop on a clock of its own.

    Attributes:
        now_s: its clock.
        turns: effects that wait for their turn.
        under_way: effects whose server has not answered yet; at most one.
    """

    def __init__(self) -> None:
        selector = Selector()
        selector.loop = self
        self.now_s = 1000.0
        self.turns: deque[asyncio.Future[None]] = deque()
        self.under_way = 0
        self.jumps = self.spins = 0
        self.is_stuck = False
        self.main: asyncio.Task[Any] | None = None
        self.on_suspend: Callable[[], None] | None = None
        super().__init__(selector)
        # A timer is due that is nearer than this. The billionth of a second that it is by itself is
        # lost in the sum once the clock shows 194 days, and then no timer is ever due.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self.now_s

    def give_up(self) -> None:
        """Cancel what drives the run: it waits for something that will not happen."""
        if self.main is None or self.is_stuck:
            raise Stuck("nothing can happen any more")
        self.is_stuck = True
        self.jumps = 0
        self.main.cancel()

    def run_in_executor(self, _executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Do at once what a thread would do: which of two is first is then no question."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it belongs to who waits
            future.set_exception(error)
        return future


class Life:
    """One life of a process, from its start to its death.

    Attributes:
        name: as a consumer in Redis.
        is_request: an API request: its cancellation ends the handler, not the process.
        tasks: all that run in it.
        over: set when the step under way will not return: it died, or stands still.
        idle: whom to tell that a read found nothing, by the task that reads; None: any other's.
    """

    def __init__(self, name: str, *, is_request: bool = False) -> None:
        self.name = name
        self.is_request = is_request
        self.is_dead = False
        self.was_frozen = False
        self.wakes_late = False
        self.tasks: set[asyncio.Task[Any]] = set()
        self.step: asyncio.Task[Any] | None = None
        self.over: asyncio.Future[type[Exception]] = asyncio.get_running_loop().create_future()
        self.thawed: asyncio.Event | None = None
        self.idle: dict[asyncio.Task[Any] | None, Callable[[], None]] = {}
        self.context: Context = copy_context()
        self.context.run(LIFE.set, self)

    def on_idle(self) -> None:
        """Tell whoever reads in this task that there is nothing: two acts may go on abreast."""
        tell = self.idle.get(asyncio.current_task()) or self.idle.get(None, _nothing)
        tell()

    def forget(self, task: asyncio.Task[Any]) -> None:
        """Let go of a task that has ended; of the dead nobody asks what it came to."""
        self.tasks.discard(task)
        self.idle.pop(task, None)
        if self.is_dead and not task.cancelled():
            task.exception()

    def end(self, how: type[Exception]) -> None:
        if not self.over.done():
            self.over.set_result(how)

    def die(self) -> NoReturn:
        self.is_dead = True
        self.end(Gone)
        raise Die

    def cancel(self) -> None:
        """Cancel a handler, or all that runs in a worker: its orderly way out of a crash."""
        if self.is_request:
            if self.step is not None:
                self.step.cancel()
            return
        self.end(Gone)
        for task in self.tasks:
            task.cancel()


def _nothing() -> None:
    return


LIFE: Final[ContextVar[Life | None]] = ContextVar("life", default=None)


class Steps(Coroutine[Any, Any, Any]):
    """A coroutine that says when it is suspended."""

    def __init__(self, coro: Coroutine[Any, Any, Any], suspended: Callable[[], None]) -> None:
        self._coro = coro
        self._suspended = suspended

    def send(self, value: Any) -> Any:
        waits_for = self._coro.send(value)
        self._suspended()
        return waits_for

    def throw(self, *error: Any) -> Any:
        return self._coro.throw(*error)

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Any:
        return self._coro.__await__()


def task_factory(loop: Any, coro: Any, **more: Any) -> asyncio.Task[Any]:
    """Make a task that its process's life knows of."""
    context = more.get("context")
    life = context.get(LIFE) if context is not None else LIFE.get()
    if life is not None and loop.on_suspend is not None:
        coro = Steps(coro, loop.on_suspend)
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **more)
    if life is not None:
        life.tasks.add(task)
        task.add_done_callback(life.forget)
    return task


class Effect(NamedTuple):
    """One entry of a trace."""

    life: str
    door: str
    name: str

    def __str__(self) -> str:
        return f"{self.life}:{self.name}"


# Looks at an effect before it happens; returns what looks at it afterwards.
Watch = Callable[[Life, str, Any], Coroutine[Any, Any, Callable[[Any], Coroutine[Any, Any, None]]]]


class World:
    """What stands before every method of the doors.

    Args:
        loop: on which all runs.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.plan: dict[int, Kind] = {}
        # How many of the next effects of a door are refused.
        self.shut: dict[str, int] = {}
        self.effects_max = EFFECTS_MAX
        self.trace: list[Effect] = []
        self.fired: list[str] = []
        self.asides: set[asyncio.Task[Any]] = set()
        self.is_open = False
        self.on_long: Callable[[], None] = _nothing
        self.awaits = self.awaits_max = 0
        self.lives: list[Life] = []
        # Of processes that were frozen: I14.
        self.watch: Watch | None = None

    def begin(self, plan: dict[int, Kind]) -> None:
        """Begin a run: what happens from now on is counted."""
        self.trace, self.fired, self.lives, self.awaits = [], [], [], 0
        self.shut, self.effects_max = {}, EFFECTS_MAX
        self.plan = {k: kind for k, kind in plan.items() if kind != "await"}
        self.awaits_max = max((k for k, kind in plan.items() if kind == "await"), default=0)
        # Counted only where it matters: it costs a call a step.
        self.loop.on_suspend = self._suspended if self.awaits_max else None
        self.is_open = True
        self.loop.jumps, self.loop.is_stuck = 0, False

    def _suspended(self) -> None:
        if self.loop.under_way or not self.is_open:
            return  # a server is asked: how often its answer wakes us is not ours
        self.awaits += 1
        if self.awaits == self.awaits_max:
            self.fired.append(f"{self.awaits}:await")
            for life in self.lives:
                life.is_dead = True
                life.end(Gone)

    async def call(
        self,
        door: str,
        name: str,
        effect: Callable[[], Coroutine[Any, Any, _T]],
        refused: Callable[[], _T],
        lost: Callable[[], _T],
        seen: Any = None,
    ) -> _T:
        """Let one effect happen, or go wrong as planned."""
        life = LIFE.get()
        if life is None or not self.is_open:
            return await self.act(effect)
        await self._turn(life)
        self.trace.append(Effect(life.name, door, name))
        k = len(self.trace)
        if k % LONG == 0:
            self.on_long()
        if k > self.effects_max:
            self.loop.give_up()
        kind = self._planned(k, door)
        if kind is None and self.watch is None:
            return await self.act(effect)
        if kind is not None:
            self.fired.append(f"{k}:{kind}")
        if kind == "die_before":
            life.die()
        if kind == "err_before":
            return refused()
        if kind == "lost":
            return lost()
        if kind == "cancel":
            life.cancel()
            # A task below the handler's (a shared round trip) is not what is cancelled.
            await asyncio.sleep(0)
        if kind in ("stall", "frozen"):
            await self._stand_still(life, kind)
            await self._turn(life)
        after = None
        if self.watch is not None and life.was_frozen:
            after = await self.aside(self.watch(life, name, seen))
        answer = await self.act(effect)
        if after is not None:
            await self.aside(after(answer))
        if kind == "die_after":
            life.die()
        if kind == "err_after":
            return lost()
        if kind == "cancel_after":
            life.cancel()
            await asyncio.sleep(0)
        if kind in ("stall_after", "frozen_after"):
            await self._stand_still(life, kind)
        return answer

    def _planned(self, k: int, door: str) -> Kind | None:
        kind = self.plan.get(k)
        if kind in KINDS[door]:
            return kind
        if self.shut.get(door):
            self.shut[door] -= 1
            return "err_before"
        return None

    async def _turn(self, life: Life) -> None:
        while True:
            if life.is_dead:
                raise Die
            if life.thawed is not None:
                await life.thawed.wait()
                continue
            turn = self.loop.create_future()
            self.loop.turns.append(turn)
            await turn
            if not life.is_dead and life.thawed is None:
                return

    async def act(self, effect: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Ask a server; meanwhile the clock stands still."""
        self.loop.under_way += 1
        try:
            return await effect()
        finally:
            self.loop.under_way -= 1

    async def aside(self, act: Coroutine[Any, Any, _T]) -> _T:
        """Do something that is no effect of the process it happens in, and outlives it."""
        task = self.loop.create_task(act, context=Context())
        self.asides.add(task)
        task.add_done_callback(self.asides.discard)
        return await asyncio.shield(task)

    async def _stand_still(self, life: Life, kind: Kind) -> None:
        life.was_frozen = True
        life.wakes_late = kind.startswith("frozen")
        life.thawed = asyncio.Event()
        life.end(Frozen)
        await life.thawed.wait()
        if life.is_dead:
            raise Die

    # -- steps of a process -----------------------------------------------------------------

    async def run(self, life: Life, step: Coroutine[Any, Any, _T]) -> _T:
        """Let a process take a step.

        Raises:
            Gone: it died in it, or was cancelled whole.
            Frozen: it stands still in it; `finish` waits for it after `thaw`.
        """
        life.step = self.loop.create_task(step, context=life.context)
        return await self.finish(life)

    async def finish(self, life: Life) -> Any:
        """Wait for the step under way."""
        assert life.step is not None
        await asyncio.wait({life.step, life.over}, return_when=asyncio.FIRST_COMPLETED)
        if life.over.done() and life.over.result() is Frozen:
            raise Frozen
        if life.over.done():
            await self.bury(life)
            raise Gone
        if life.step.cancelled():
            raise Gone
        return life.step.result()

    async def bury(self, life: Life) -> None:
        """End what is left of a process; the dead have no effects, not even in `finally`."""
        if life.over.done() and not life.is_dead:
            await asyncio.wait({*life.tasks} or {_done_future()})  # cancelled: it may tidy up
        life.is_dead = True
        if life.thawed is not None:
            life.thawed.set()
        while self.loop.under_way:  # noqa: ASYNC110 - what has left arrives first
            await asyncio.sleep(0)
        while tasks := [task for task in life.tasks if not task.done()]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if life.step is not None and life.step.done() and not life.step.cancelled():
            life.step.exception()
        # Two of them must not wait for each other.
        if self.asides and asyncio.current_task() not in self.asides:
            await asyncio.wait(self.asides)

    def thaw(self, life: Life) -> None:
        """Let a frozen process go on."""
        assert life.thawed is not None
        life.over = self.loop.create_future()
        life.thawed.set()
        life.thawed = None


def _done_future() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


# -- doors ---------------------------------------------------------------------------------------


def _connect_refused() -> NoReturn:
    raise RedisConnectionError("Error 111 connecting to 127.0.0.1. Connect call failed")


def _no_answer() -> NoReturn:
    raise RedisTimeoutError("Timeout reading from 127.0.0.1")


class FaultyRedis(redis.asyncio.Redis):
    """The client below the queue's door: its repetitions are part of what is tested."""

    world: World
    scripts: dict[str, str]

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        name, block_ms = self.name_of(args), 0
        if b"BLOCK" in args:
            at = args.index(b"BLOCK")
            block_ms = int(args[at + 1])
            args = args[:at] + args[at + 2 :]
        parent = super().execute_command
        reply = await self.world.call(
            "redis",
            name,
            lambda: parent(*args, **options),
            _connect_refused,
            _no_answer,
            args,
        )
        if block_ms and not reply:
            life = LIFE.get()
            if life is not None:
                life.on_idle()
            await asyncio.sleep(block_ms / 1000)
        return reply

    def name_of(self, args: tuple[Any, ...]) -> str:
        word = str(args[0])
        return self.scripts.get(str(args[1]), word) if word.startswith("EVAL") else word.lower()

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:  # noqa: FBT001, FBT002 - redis-py's
        made = FaultyPipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        made.door = self
        return made


class FaultyPipeline(Pipeline):
    """Several commands, one effect."""

    door: FaultyRedis

    async def execute(self, raise_on_error: bool = True) -> Any:  # noqa: FBT001, FBT002 - redis-py's
        calls = [command[0] for command in self.command_stack]
        names = dict.fromkeys(self.door.name_of(args) for args in calls)
        parent = super().execute
        return await self.door.world.call(
            "redis",
            "+".join(names),
            lambda: parent(raise_on_error),
            _connect_refused,
            _no_answer,
            calls,
        )


def archive_lost() -> NoReturn:
    raise ArchiveError("PostgreSQL: TimeoutError")


class FaultyArchive(Archive):
    """The PostgreSQL door. One method is one effect: what it does is one transaction."""

    def __init__(self, pool: Any, world: World) -> None:
        super().__init__(pool)
        self._world = world

    @asynccontextmanager
    async def advisory(self, number: int) -> AsyncGenerator[bool]:
        held = super().advisory(number)
        world, inside = self._world, []

        async def enter() -> bool:
            inside.append(True)
            return await held.__aenter__()

        async def leave() -> None:
            inside.clear()
            await held.__aexit__(None, None, None)

        try:
            yield await world.call("pg", "advisory", enter, archive_lost, archive_lost)
            await world.call("pg", "unlock", leave, archive_lost, archive_lost)
        finally:
            # Whoever is dead or has lost the answer has lost the connection, the server the lock.
            if inside:
                await world.act(leave)


def _stand_before(name: str) -> Any:
    method = getattr(Archive, name)

    async def act(self: FaultyArchive, *args: Any, **kwargs: Any) -> Any:
        return await self._world.call(
            "pg",
            name,
            lambda: method(self, *args, **kwargs),
            archive_lost,
            archive_lost,
        )

    return act


def _methods(kind: type) -> Iterable[str]:
    return (
        name
        for name, value in vars(kind).items()
        if not name.startswith("_") and asyncio.iscoroutinefunction(value)
    )


for _name in _methods(Archive):
    setattr(FaultyArchive, _name, _stand_before(_name))


class FaultyGraph:
    """The Graph door: it raises nothing, it answers `not_sent` and `unknown`.

    Args:
        take: the far side: what it answers to a body, at once.
        after: what else happens while the answer is on its way.
        reached: called when an answer has come.
    """

    def __init__(
        self,
        world: World,
        take: Callable[[str, bytes], Answer],
        after: Callable[[], Coroutine[Any, Any, None]],
        reached: Callable[[], None],
    ) -> None:
        self._world = world
        self._reached = reached
        self._take = take
        self._after = after

    async def send(
        self,
        _version: str,
        _phone_number_id: str,
        _token: str,
        body: bytes,
        _on_wire: Callable[[], None] | None = None,
    ) -> Answer:
        life = LIFE.get()
        where = life.name if life is not None else ""

        async def exchange() -> Answer:
            return self._take(where, body)

        answer = await self._world.call(
            "graph",
            "send",
            exchange,
            lambda: not_sent("refused"),
            lambda: unknown("timeout"),
        )
        await self._world.aside(self._after())
        if answer.kind in ("accepted", "rejected", "throttled"):
            self._reached()
        return answer


class WorldClock(Clock):
    """The loop's clock for durations; the machine's for the epoch, which the servers share.

    Attributes:
        off_ms: how far a process's epoch is from theirs.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.off_ms = 0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.off_ms

    def monotonic(self) -> float:
        return self._world.loop.time()

    async def sleep(self, delay_s: float) -> None:
        async def wait() -> None:
            return

        await self._world.call("sleep", "sleep", wait, _nothing, _nothing)
        # Less than a float can add would never pass: who waits for the rest would wait for ever.
        await asyncio.sleep(max(delay_s, TICK_S) if delay_s > 0 else 0.0)
