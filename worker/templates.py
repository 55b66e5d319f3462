"""Keeps the lists of templates: fetched when they are due, or when somebody has asked."""

from __future__ import annotations

import asyncio
from typing import Final

from shared.clock import Clock
from shared.errors import ArchiveError
from shared.logs import get
from shared.templates import Templates
from worker.graph_lists import REST_S, WHOLE_S, Fetched, ListReader
from worker.senders import Sender, Senders

_LOOK_S: Final = 1.0
_EVERY_S: Final = 300.0
_AGAIN_S: Final = 60.0  # after a try that failed
_DOUBTED_S: Final = 60.0  # a list that refusals cast doubt on is asked for once in this time
_TOKENS_MAX: Final = 3
_log = get("worker.templates")


class Lists:
    """Keeps the lists of all accounts that have a sender; one worker of the fleet fetches each.

    Args:
        templates: where they are kept.
        reader: of Graph.
        senders: whose accounts, and with which tokens.
        clock: between two looks.
    """

    def __init__(
        self, templates: Templates, reader: ListReader, senders: Senders, clock: Clock
    ) -> None:
        """Fetch nothing yet; `run` does."""
        self._templates = templates
        self._reader = reader
        self._senders = senders
        self._clock = clock
        self._doubted: set[str] = set()
        self._not_before_s: dict[str, float] = {}

    def doubt(self, waba_id: str) -> None:
        """Have a list read again within a second: an answer of Graph shows that it is old.

        May be called for each message; it asks nobody.
        """
        if waba_id:
            self._doubted.add(waba_id)

    async def run(self, stop: asyncio.Event) -> None:
        """Look every second until `stop`; a list that is being fetched then is left."""
        over = asyncio.ensure_future(stop.wait())
        is_lost = False
        while not stop.is_set():
            look = asyncio.ensure_future(self.refresh())
            try:
                await asyncio.wait({look, over}, return_when=asyncio.FIRST_COMPLETED)
                if look.done():
                    look.result()
                is_lost = False
            except ArchiveError as error:
                if not is_lost:
                    _log.warning("templates.stale", error=str(error))
                is_lost = True
            finally:
                look.cancel()
            await self._clock.sleep(_LOOK_S)
        over.cancel()

    async def refresh(self) -> None:
        """Fetch every list that is due and that nobody else has taken.

        Raises:
            ArchiveError: PostgreSQL is away; the next look goes on.
        """
        await self._ask_for_doubted()
        accounts = self._senders.accounts()
        if accounts:
            due = await self._templates.due(list(accounts))
            await asyncio.gather(*(self._renew(waba_id, accounts[waba_id]) for waba_id in due))

    async def _ask_for_doubted(self) -> None:
        now_s = self._clock.monotonic()
        for waba_id in sorted(self._doubted):
            if now_s >= self._not_before_s.get(waba_id, now_s):
                await self._templates.ask(waba_id)
                self._not_before_s[waba_id] = now_s + _DOUBTED_S
                self._doubted.discard(waba_id)

    async def _renew(self, waba_id: str, senders: list[Sender]) -> None:
        if not await self._templates.take(waba_id, WHOLE_S):
            return
        fetched = Fetched(None, "no sender of this account may send")
        # Another token may still be good.
        for sender in list({each.token: each for each in senders}.values())[:_TOKENS_MAX]:
            fetched = await self._reader.fetch(sender)
            if fetched.found is not None or fetched.rest_s > REST_S:
                break
        if fetched.found is not None:
            await self._templates.keep(waba_id, fetched.found, REST_S, _EVERY_S)
            return
        again_s = max(_AGAIN_S, fetched.rest_s)
        await self._templates.missed(waba_id, fetched.why, fetched.rest_s, again_s)
        _log.warning("templates.missed", waba=waba_id, why=fetched.why)
