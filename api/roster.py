"""A job's recipients as its row keeps them: number, values, ref and origin by position. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """One recipient of a job; `phone` 0 = was erased, `origin` -1 = of no other job."""

    phone: int
    values: list[str] | None
    ref: str | None
    origin: int


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Kept).decode


class People:
    """Recipients of a job to be: the index is the position.

    Attributes:
        vars: names of the values, in the order of each row of `values`.
        phones: numbers without `+`.
        values: a list a recipient; empty when there is nothing to fill.
        refs: the caller's own names; None where there is none.
        origins: positions in the parent job; empty when there is none.
    """

    def __init__(self, names: list[str]) -> None:
        """Begin with nobody."""
        self.vars = names
        self.phones: list[int] = []
        self.values: list[list[str]] = []
        self.refs: list[str | None] = []
        self.origins: list[int] = []

    def chunks(self, size: int) -> list[bytes]:
        """Return the recipients as encoded `Chunk`s of `size`, for Redis."""
        return [
            _encode((self.phones[at : at + size], self.values[at : at + size] or None))
            for at in range(0, len(self.phones), size)
        ]

    def kept(self, size: int, chunks: list[bytes]) -> list[bytes]:
        """Return what the job's row keeps: `chunks`, or `Kept`s where there is more to keep.

        A decoder of `Chunk` ignores what follows its two fields.
        """
        refs = self.refs if any(self.refs) else []
        if not refs and not self.origins:
            return chunks
        return [
            _encode(
                Kept(
                    self.phones[at : at + size],
                    self.values[at : at + size] or None,
                    refs[at : at + size] or None,
                    self.origins[at : at + size] or None,
                )
            )
            for at in range(0, len(self.phones), size)
        ]


def without(chunks: list[bytes], size: int, positions: Sequence[int]) -> list[bytes]:
    """Return a job's chunks with these recipients blanked: number 0, no values, no ref. Pure.

    Their places stay, and where they stem from: everybody else's hang on them.

    Args:
        chunks: encoded, as `archive.unpack_blob` returns them.
        size: recipients a chunk.
        positions: who is to go.
    """
    kept = list(chunks)
    for position in positions:
        number, index = divmod(position, size)
        chunk = _decode(kept[number])
        chunk.phones[index] = 0
        if chunk.values is not None:
            chunk.values[index] = [""] * len(chunk.values[index])
        if chunk.refs is not None:
            chunk.refs[index] = None
        kept[number] = _encode(chunk)
    return kept


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
            if (is_number and phone and digits in str(phone))
            or (ref is not None and word in ref.casefold())
        ]

    def _pairs(self) -> Iterator[tuple[int, str | None]]:
        for raw in self._chunks:
            kept = _decode(raw)
            yield from zip(kept.phones, kept.refs or [None] * len(kept.phones), strict=True)
