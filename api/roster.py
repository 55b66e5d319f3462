"""A job's recipients as its row keeps them: number, values, ref and origin by position. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A chunk as the job's row keeps it: `shared.models.Chunk` with more behind.

    Attributes:
        phones: E.164 without `+`, as integers.
        values: a list a recipient, in the order of the job's `vars`; None = nothing to fill.
        refs: the caller's own names; None = nobody has one.
        origins: positions in the job that these stem from; None = it stems from none.
    """

    phones: list[int]
    values: list[list[str]] | None = None
    refs: list[str | None] | None = None
    origins: list[int] | None = None


class Person(NamedTuple):
    """One recipient of a job; `origin` -1 = of no other job."""

    phone: int
    values: list[str] | None
    ref: str | None
    origin: int


_decode: Final = msgspec.msgpack.Decoder(Kept).decode


class Roster:
    """A job's recipients by position; a chunk is decoded when it is first asked for.

    Args:
        chunks: encoded, as `archive.unpack_blob` returns them.
        chunk_size: recipients a chunk.
    """

    def __init__(self, chunks: list[bytes], chunk_size: int) -> None:
        """Decode nothing yet."""
        self._chunks = chunks
        self._size = chunk_size
        self._number = -1
        self._kept = Kept([])

    def at(self, position: int) -> Person:
        """Return the recipient at a position."""
        number, index = divmod(position, self._size)
        if number != self._number:
            self._number, self._kept = number, _decode(self._chunks[number])
        kept = self._kept
        return Person(
            kept.phones[index],
            kept.values[index] if kept.values is not None else None,
            kept.refs[index] if kept.refs is not None else None,
            kept.origins[index] if kept.origins is not None else -1,
        )

    def matching(self, q: str) -> list[int]:
        """Return the positions whose number holds the digits of `q` or whose ref holds `q`."""
        digits = "".join(letter for letter in q if letter.isascii() and letter.isdigit())
        is_number = bool(digits) and not any(letter.isalpha() for letter in q)
        word = q.casefold()
        return [
            position
            for position, (phone, ref) in enumerate(self._pairs())
            if (is_number and digits in str(phone)) or (ref is not None and word in ref.casefold())
        ]

    def _pairs(self) -> Iterator[tuple[int, str | None]]:
        for raw in self._chunks:
            kept = _decode(raw)
            yield from zip(kept.phones, kept.refs or [None] * len(kept.phones), strict=True)
