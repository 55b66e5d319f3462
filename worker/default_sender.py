"""The sender `default` of WHATSAPP_*: made at the start, its token read again when told to."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from shared.archive import Archive, SenderRow
from shared.clock import Clock
from shared.errors import DrumbeatError
from shared.ids import Ids
from shared.logs import get
from shared.sealing import Sealing
from shared.settings import Settings, load

_RENEW_EVERY_S: Final = 0.5
_log = get("worker")


async def ensure_default(archive: Archive, settings: Settings, sealing: Sealing, ids: Ids) -> None:
    """Make or update the sender `default` from WHATSAPP_*, when both are set."""
    number, token = settings.whatsapp_phone_number_id, settings.whatsapp_access_token
    if not number or token is None:
        return
    waba = settings.whatsapp_business_account_id
    have = await archive.sender_by_name_or_id("default")
    if have is not None:
        try:
            same = sealing.open(have.token_sealed) == token.reveal()
        except Exception:  # noqa: BLE001 - whatever is wrong with the old token, it is replaced
            same = False
        if same and have.phone_number_id == number and have.waba_id == waba:
            return
    row = have or SenderRow(ids.object_id("snd"), "default", number, b"")
    await archive.add_sender(
        msgspec.structs.replace(
            row,
            phone_number_id=number,
            # Another number may not go by the name of the old one.
            number=row.number if row.phone_number_id == number else "",
            token_sealed=sealing.seal(token.reveal()),
            waba_id=waba,
            is_default=True,
        )
    )


class Renewal:
    """Reads the sender `default`'s token again when told to, so that a new one needs no restart.

    Args:
        again: told by.
        archive: where senders are kept.
        sealing: seals the token.
        ids: of a new sender.
        clock: between two looks.
    """

    def __init__(
        self, again: asyncio.Event, archive: Archive, sealing: Sealing, ids: Ids, clock: Clock
    ) -> None:
        """Look at nothing yet."""
        self._again = again
        self._archive = archive
        self._sealing = sealing
        self._ids = ids
        self._clock = clock

    async def run(self, stop: asyncio.Event) -> None:
        """Look until `stop`; what cannot be read changes nothing."""
        while not stop.is_set():
            if self._again.is_set():
                self._again.clear()
                try:
                    await ensure_default(self._archive, load(), self._sealing, self._ids)
                    _log.info("settings.read_again")
                except DrumbeatError as error:
                    _log.error("settings.not_read_again", error=str(error))
            await self._clock.sleep(_RENEW_EVERY_S)
