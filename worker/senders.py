"""Senders as PostgreSQL has them, tokens opened, and Redis told of what it lacks."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from shared.archive import Archive, SenderRow
from shared.clock import Clock
from shared.errors import ArchiveError, QueueError, SealError
from shared.logs import get
from shared.queue import Queue
from shared.sealing import Sealing
from shared.settings import Settings

_EVERY_S: Final = 1.0
_log = get("worker.senders")


class Sender(msgspec.Struct, frozen=True):
    """What one request needs of its sender.

    Attributes:
        id: sender id.
        name: as people know it, and as metrics label it.
        phone_number_id: Graph's id of the number.
        token: the access token, opened.
        version: of the Graph API, such as `v23.0`.
        waba_id: WhatsApp business account; '' when nobody has said.
        rate: messages per second; 0 = no limit.
    """

    id: str
    name: str
    phone_number_id: str
    token: str
    version: str
    waba_id: str
    rate: float

    def __repr__(self) -> str:
        """Show which sender it is; the token stays out of logs."""
        return f"Sender({self.id!r}, {self.name!r})"


class Senders:
    """This worker's copy of all senders, at most about a second old.

    Args:
        archive: where they are kept.
        queue: who must know rates and pauses.
        settings: the rate and version of senders without their own.
        sealing: opens tokens.
        clock: between two looks.
    """

    def __init__(
        self, archive: Archive, queue: Queue, settings: Settings, sealing: Sealing, clock: Clock
    ) -> None:
        """Begin without senders: nothing is sent before the first look."""
        self._archive = archive
        self._queue = queue
        self._settings = settings
        self._sealing = sealing
        self._clock = clock
        self._rows: dict[str, SenderRow] = {}
        self._open: dict[str, Sender] = {}
        # Told again after a start and after a loss: by then Redis may stand on other settings.
        self._is_compared = False

    def get(self, sender_id: str) -> Sender | None:
        """Return a sender that may send; None when unknown, paused or its token is sealed."""
        return self._open.get(sender_id)

    def row(self, sender_id: str) -> SenderRow | None:
        """Return a sender as PostgreSQL had it at the last look, paused or not."""
        return self._rows.get(sender_id)

    def numbers(self) -> set[str]:
        """Return Graph's ids of all our numbers, paused or not."""
        return {row.phone_number_id for row in self._rows.values()}

    def named(self, sender_id: str) -> Sender | None:
        """Return a sender without its token, paused or not; None when nobody knows it."""
        row = self._rows.get(sender_id)
        if row is None:
            return None
        rate = self._rate(row)
        return Sender(row.id, row.name, row.phone_number_id, "", "", row.waba_id or "", rate)

    def rows_with_token(self, token: str) -> list[SenderRow]:
        """Return every sender that may send with this token."""
        return [self._rows[sender.id] for sender in self._open.values() if sender.token == token]

    def rows_of_waba(self, waba_id: str) -> list[SenderRow]:
        """Return every sender of a WhatsApp business account."""
        return [row for row in self._rows.values() if row.waba_id == waba_id]

    def accounts(self) -> dict[str, list[Sender]]:
        """Return the senders that may send, by WhatsApp business account, where that is known."""
        out: dict[str, list[Sender]] = {}
        for sender in self._open.values():
            # It stands in a path.
            if sender.waba_id.isascii() and sender.waba_id.isdigit():
                out.setdefault(sender.waba_id, []).append(sender)
        return out

    def name_of(self, sender_id: str) -> str:
        """Return a sender's name, paused or not; its id when nobody knows it."""
        row = self._rows.get(sender_id)
        return row.name if row else sender_id

    async def run(self, stop: asyncio.Event) -> None:
        """Look every second until `stop`; without PostgreSQL the last copy stays in force."""
        is_lost = False
        while not stop.is_set():
            try:
                await self.refresh()
                is_lost = False
            except (ArchiveError, QueueError) as error:
                if not is_lost:
                    _log.warning("senders.stale", error=str(error))
                is_lost, self._is_compared = True, False
            await self._clock.sleep(_EVERY_S)

    async def refresh(self) -> None:
        """Read all senders and the switch, open changed tokens, tell each shard what it lacks.

        Raises:
            ArchiveError: nothing was read; the copy is as it was.
            QueueError: the copy is new, a shard was not told; the next look tells it.
        """
        rows = await self._archive.senders()
        before, self._rows = self._rows, {row.id: row for row in rows}
        opened = {row.id: self._opened(row, before.get(row.id)) for row in rows if _may_send(row)}
        self._open = {sender_id: sender for sender_id, sender in opened.items() if sender}
        is_off = await self._archive.is_off()
        for shard in range(self._queue.shards):
            # Each time: a shard that was wiped or failed over stands on what it knew before.
            await self._queue.switch(shard, "", int(is_off))
            await self._tell(shard, [row for row in rows if row.shard == shard])
        self._is_compared = True

    async def stop_untold(self, row: SenderRow, state: str, why: str, until_ms: int) -> None:
        """Stop a sender in Redis alone, since PostgreSQL is away; the next look there adopts it."""
        await self._queue.sender(
            row.shard,
            row.id,
            version=row.version + 1,
            rate=self._rate(row),
            burst=row.burst or 0.0,
            paused=state == "paused",
            why=why,
            blocked_until_ms=until_ms,
        )

    async def _adopt(self, row: SenderRow, version: int) -> None:
        """Write what Redis was told while PostgreSQL was away; one process of the fleet does."""
        told = await self._queue.sender_status(row.shard, row.id)
        is_held = told.blocked_until_ms > self._clock.now_ms()
        state = "paused" if told.paused else "blocked" if is_held else row.state
        why, until_ms = row.why, row.until_ms
        if state != row.state:
            why, until_ms = told.why, told.blocked_until_ms if state == "blocked" else 0
        if await self._archive.move_sender(
            row, state, why, until_ms, row.parks, "system", version=version
        ):
            _log.warning("sender.adopted", sender=row.name, state=state, why=why)

    async def _tell(self, shard: int, rows: list[SenderRow]) -> None:
        versions = await self._queue.sender_versions(shard, [row.id for row in rows])
        for row, version in zip(rows, versions, strict=True):
            if version > row.version:
                await self._adopt(row, version)
                continue
            # Equal versions may hide another rate: BULK_PAUSE_MS changed and we were restarted.
            if version >= row.version and (self._is_compared or await self._agrees(shard, row)):
                continue
            is_sealed = _may_send(row) and row.id not in self._open
            is_blocked = row.state == "blocked" and row.until_ms > 0
            await self._queue.sender(
                shard,
                row.id,
                version=max(row.version, version),
                rate=self._rate(row),
                burst=row.burst or 0.0,
                paused=is_sealed or not _may_send(row),
                why="token" if is_sealed else row.why or "",
                blocked_until_ms=row.until_ms if is_blocked else 0,
            )

    async def _agrees(self, shard: int, row: SenderRow) -> bool:
        """Tell whether Redis has this row's rate; lift a pause that only a missing key made."""
        told = await self._queue.sender_status(shard, row.id)
        if row.state == "active" and row.id in self._open and told.paused and told.why == "token":
            await self._archive.set_sender_state(row.id, "active", "", 0, "system")
        return told.rate_max == self._rate(row)

    def _rate(self, row: SenderRow) -> float:
        return self._settings.default_rate if row.rate is None else row.rate

    def _opened(self, row: SenderRow, before: SenderRow | None) -> Sender | None:
        if before == row:
            return self._open.get(row.id)
        try:
            token = self._sealing.open(row.token_sealed)
        except SealError as error:
            _log.error("sender.sealed", sender=row.name, error=str(error))
            return None
        if not all(map(_is_word, (token, row.phone_number_id))):
            # It would end a header or a path: the number is stopped as if Graph had refused it.
            _log.error("sender.malformed", sender=row.name)
            return None
        return Sender(
            id=row.id,
            name=row.name,
            phone_number_id=row.phone_number_id,
            token=token,
            version=row.graph_api_version or self._settings.graph_api_version,
            waba_id=row.waba_id or "",
            rate=self._rate(row),
        )


def _is_word(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _may_send(row: SenderRow) -> bool:
    """Tell whether nobody has stopped a sender; a block with an end is Redis's to keep."""
    return row.state == "active" or (row.state == "blocked" and row.until_ms > 0)
