"""Whom nobody may write to, held in memory, asked just before each first byte.

The list is eight bytes a person, a keyed hash in a sorted array: 8 MB a million. It follows the
change numbers of PostgreSQL, a second behind at most; lifted entries are changes like any other.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

from shared.archive import Archive, Suppression
from shared.clock import Clock
from shared.errors import ArchiveError
from shared.logs import get

OLD_S: Final = 30.0  # a copy older than this begins no claim
_EVERY_S: Final = 1.0
_PAGE: Final = 10_000
_FEW: Final = 64  # so many changes are put in their places one by one
_HASH_BYTES: Final = 8
_log = get("worker.suppression")


class Listed:
    """The suppression list as this worker knows it. Pure: time is an argument.

    Args:
        key: at most 64 bytes; hashes of one key say nothing to who has another.
        read_s: when it was last known to be right, monotonic; the loader moves it.

    Attributes:
        change: number of the newest change it contains.
    """

    def __init__(self, key: bytes, read_s: float = float("-inf")) -> None:
        """Begin with nobody."""
        self.read_s = read_s
        self.change = 0
        self._key = key
        self._all: array[int] = array("Q")
        self._marketing: array[int] = array("Q")

    def __len__(self) -> int:
        """Return how many entries there are."""
        return len(self._all) + len(self._marketing)

    def is_fresh(self, now_s: float) -> bool:
        """Tell whether claims may begin on this copy."""
        return now_s - self.read_s <= OLD_S

    def stops(self, phone: int, *, is_marketing: bool) -> bool:
        """Tell whether a message to this number may not leave.

        Args:
            phone: digits of the number.
            is_marketing: a template whose category is MARKETING, or not known.
        """
        if not self._all and not (is_marketing and self._marketing):
            return False
        found = self._hash(phone)
        return _has(self._all, found) or (is_marketing and _has(self._marketing, found))

    def apply(self, changes: Sequence[Suppression]) -> None:
        """Take changes over, in the order of their numbers."""
        if not changes:
            return
        self._all = self._merged(self._all, [c for c in changes if c.scope == "all"])
        self._marketing = self._merged(self._marketing, [c for c in changes if c.scope != "all"])
        self.change = changes[-1].change

    def _merged(self, have: array[int], changes: Iterable[Suppression]) -> array[int]:
        last = {self._hash(change.phone): change.is_lifted for change in changes}
        if len(last) > _FEW:
            kept = (found for found in have if found not in last)
            return array(
                "Q", sorted([*kept, *(f for f, is_lifted in last.items() if not is_lifted)])
            )
        for found, is_lifted in last.items():
            place = bisect_left(have, found)
            is_there = place < len(have) and have[place] == found
            if is_lifted and is_there:
                del have[place]
            elif not is_lifted and not is_there:
                have.insert(place, found)
        return have

    def _hash(self, phone: int) -> int:
        made = blake2b(phone.to_bytes(8, "big"), digest_size=_HASH_BYTES, key=self._key)
        return int.from_bytes(made.digest(), "big")


def _has(places: array[int], found: int) -> bool:
    place = bisect_left(places, found)
    return place < len(places) and places[place] == found


# For a bench that knows no list; it never grows old.
NOBODY: Final = Listed(b"", float("inf"))


class Suppressions:
    """Keeps a `Listed` up to date.

    Args:
        archive: where the list lives.
        listed: the copy; nobody else changes it.
        clock: between two looks.
    """

    def __init__(self, archive: Archive, listed: Listed, clock: Clock) -> None:
        """Read nothing yet: the copy is old until the first look."""
        self._archive = archive
        self._listed = listed
        self._clock = clock

    async def run(self, stop: asyncio.Event) -> None:
        """Look every second until `stop`; without PostgreSQL the copy grows old."""
        is_lost = False
        while not stop.is_set():
            try:
                await self.refresh()
                is_lost = False
            except ArchiveError as error:
                if not is_lost:
                    _log.warning("suppressions.stale", error=str(error))
                is_lost = True
            await self._clock.sleep(_EVERY_S)

    async def refresh(self) -> None:
        """Read what changed since the last look, page by page.

        Raises:
            ArchiveError: not all of it was read; the next look goes on.
        """
        while True:
            # As of before the question: what is committed while it is asked may be missing.
            asked_s = self._clock.monotonic()
            changes = await self._archive.suppressions(self._listed.change, _PAGE)
            if len(changes) > _FEW:
                # A page of many is sorted beside the loop, which must go on.
                await asyncio.to_thread(self._listed.apply, changes)
            else:
                self._listed.apply(changes)
            if len(changes) < _PAGE:
                self._listed.read_s = asked_s
                return
