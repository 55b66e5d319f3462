"""Who watches: browsers of live streams, and API processes that go on between two steps.

A browser reads what comes, may be cut off at any byte, and comes back with the last id it has, to
whichever process there is. What came is judged by the oracle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.test_utils import make_mocked_request

from api import auth, stream
from api.client import Event, Parser
from api.problems import respond
from api.resources import RESOURCES
from api.router import HEADERS, REQUEST_ID
from api.sessions import Visitors
from shared.errors import QueueError
from shared.ids import Ids
from tests.oracle import Connection, Watched

if TYPE_CHECKING:
    from tests.faults.stage import Stage
    from tests.faults.world import Life

# Longer than a heartbeat: by then every watched job was compared with what was last told.
PATIENCE_S: Final = 16.0
TRIES: Final = 12


class Site:
    """One API process that serves streams: it goes on whenever time does, not by steps."""

    def __init__(self, stage: Stage) -> None:
        self.life = stage.born("web")
        self.app = web.Application()
        self.app[RESOURCES] = self.made = stage.api()
        self._stage = stage
        self.begin(self.made.hub.run())

    def begin(self, act: Coroutine[Any, Any, None]) -> None:
        """Let something go on in this process."""

        async def go_on() -> None:
            try:
                await act
            except Exception as error:  # noqa: BLE001 - nothing here is meant to end so
                self._stage.notes.append(("log", f"{self.life.name}: {error!r}"))

        self.life.context.run(asyncio.get_running_loop().create_task, go_on())

    @property
    def is_up(self) -> bool:
        """Tell whether it takes connections; one that stands still takes none."""
        return not self.life.over.done()


class Wire(AbstractStreamWriter):
    """What a process writes to one browser, and the connection it goes over.

    Attributes:
        given: the `Last-Event-ID` it began with.
        status: of the answer; 0 while there is none.
        events: what the browser has read.
        left: after so many more bytes it is cut; None: not by us.
    """

    def __init__(self, life: Life, given: str) -> None:
        self.given = given
        self.status = 0
        self.events: list[Event] = []
        self.left: int | None = None
        self._life = life
        self._parser = Parser()
        self._is_closing = False

    # -- the browser's end --------------------------------------------------------------------

    def cut(self) -> None:
        """Close it."""
        self._is_closing = True

    @property
    def is_open(self) -> bool:
        """Tell whether anything can still come."""
        return not (self._is_closing or self._life.is_dead)

    # -- the process's end: a transport and a writer of aiohttp's -------------------------------

    @property
    def transport(self) -> Any:
        return self

    def is_closing(self) -> bool:
        return not self.is_open

    def abort(self) -> None:
        self._is_closing = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        while self._life.thawed is not None:  # a process that stands still writes nothing
            await self._life.thawed.wait()
        if not self.is_open:
            raise ConnectionResetError("Cannot write to closing transport")
        whole = bytes(chunk)
        piece = whole[: self.left]
        self.events += self._parser.feed(piece)
        if self.left is not None:
            self.left -= len(piece)
            self._is_closing = self.left <= 0

    async def write_eof(self, chunk: bytes = b"") -> None:
        if chunk:
            await self.write(chunk)

    async def drain(self) -> None:
        return

    def enable_compression(self, *_args: Any) -> None:
        return

    def enable_chunking(self) -> None:
        return

    async def write_headers(self, status_line: str, _headers: Any) -> None:
        self.status = int(status_line.split()[1])


class Protocol:
    """What a request asks of its connection."""

    ssl_context = sockname = None
    peername = ("127.0.0.1", 1)
    max_field_size, max_line_length, max_headers = 8190, 8190, 128


class Browser:
    """One subscriber of one job, over as many connections as it takes."""

    def __init__(self, stage: Stage, job: str) -> None:
        self._stage = stage
        self.job = job
        self.wires: list[Wire] = []

    @property
    def last(self) -> str:
        """Return the id of the last event that came whole."""
        ids = [event.id for wire in self.wires for event in wire.events if event.id]
        return ids[-1] if ids else ""

    @property
    def has_end(self) -> bool:
        return any('"type":"end"' in event.data for wire in self.wires for event in wire.events)

    @property
    def is_open(self) -> bool:
        return bool(self.wires) and self.wires[-1].is_open

    def cut(self, after: int) -> None:
        """Let the connection break after so many more bytes."""
        if self.is_open:
            self.wires[-1].left = after
            if not after:
                self.wires[-1].cut()

    def connect(self, site: Site, cookie: str) -> None:
        """Come with the last id there is."""
        wire = Wire(site.life, self.last)
        self.wires.append(wire)
        path = f"/realtime/bulk/{self.job}"
        headers = {"Cookie": cookie, "Accept": "text/event-stream"}
        if self.last:
            headers["Last-Event-ID"] = self.last
        request = make_mocked_request(
            "GET", path, headers, app=site.app, writer=wire, transport=wire, protocol=Protocol(),
            match_info={"jobId": self.job},
        )  # fmt: skip
        request[auth.PRINCIPAL] = self._stage.asker
        request[HEADERS] = {}
        request[REQUEST_ID] = "req"

        async def answer() -> None:
            try:
                wire.status = (await stream.follow_one(request)).status
            except Exception as error:  # noqa: BLE001 - as the edge of the API does
                wire.status = respond(error).status
                if wire.status == 500:
                    self._stage.notes.append(("5xx", f"{path}: {error!r}"))
            finally:
                wire.cut()

        site.begin(answer())

    def told(self) -> Watched:
        """Return what came."""
        seen = [Connection(wire.given, wire.status, wire.events) for wire in self.wires]
        return Watched(self.job, seen)


class Audience:
    """All who watch in one run, and the processes that serve them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.browsers: list[Browser] = []
        self.sites: list[Site] = []
        self._cookie = ""

    async def subscribe(self, job: str) -> None:
        """Begin to watch a job; somebody who cannot log in now does not."""
        if not self._cookie:
            stage = self._stage
            visitors = Visitors(stage.new_queue(), stage.tuned, Ids(2))
            try:
                token, _ = await visitors.open(stage.asker.user_id)
            except QueueError:
                return
            self._cookie = f"{auth.cookie_name(stage.tuned.public_url)}={token}"
        browser = Browser(self._stage, job)
        self.browsers.append(browser)
        await self.reconnect(browser, 0)

    async def reconnect(self, browser: Browser, at: int) -> None:
        """Connect again, to the at-th process; one that is down has been replaced."""
        if browser.is_open or browser.has_end:
            return
        up = [site for site in self.sites if site.is_up]
        if at >= len(up):
            self.sites.append(Site(self._stage))
            up.append(self.sites[-1])
        browser.connect(up[min(at, len(up) - 1)], self._cookie)
        await asyncio.sleep(0)

    async def listen(self, for_s: float) -> None:
        """Let time pass as it does when nobody makes it jump."""
        await asyncio.sleep(for_s)

    def frozen(self) -> list[Life]:
        """Return the processes that stand still."""
        return [site.life for site in self.sites if site.life.thawed is not None]

    async def see_the_end(self) -> None:
        """Let everybody come back until the end has come, and once more."""
        for browser in self.browsers:
            for _ in range(TRIES):
                if browser.has_end:
                    break
                await self.reconnect(browser, 0)
                await self.listen(PATIENCE_S)
            browser.cut(0)
            await self.listen(1.0)
            up = [site for site in self.sites if site.is_up]
            browser.connect(up[0] if up else Site(self._stage), self._cookie)
            await self.listen(1.0)
