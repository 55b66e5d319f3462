"""The value that goes with a message and comes back in its webhooks. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Final, NamedTuple

_PREFIX: Final = "d1"
_MAC_BYTES: Final = 8
OpaqueMaker = Callable[[int, int], str]
_PLACE: Final = re.compile(r"\Ad1\.([^.]+)\.([0-9]{1,6})\.([0-9]{1,2})\.[0-9a-f]{16}\Z")


class Place(NamedTuple):
    """Which attempt a message was."""

    job: str
    position: int
    attempt: int


def opaque_for(key: bytes, job: str) -> OpaqueMaker:
    """Return what makes the value of a position and attempt: `d1.<job>.<position>.<attempt>.<mac>`.

    No number, no name, no text is in it. The MAC is keyed BLAKE2b (RFC 7693) of 8 bytes:
    HMAC-SHA256 costs six times as much, a tenth of all that a message costs a worker. What key
    and job bring to it is computed once.

    >>> opaque_for(b"k" * 32, "job_1")(7, 1)
    'd1.job_1.7.1.c448ebc4ee4f2a91'
    """
    head = f"{_PREFIX}.{job}."
    begun = blake2b(head.encode(), key=key, digest_size=_MAC_BYTES)

    def make(position: int, attempt: int) -> str:
        place = f"{position}.{attempt}"
        mac = begun.copy()
        mac.update(place.encode())
        return f"{head}{place}.{mac.hexdigest()}"

    return make


def place_of(key: bytes, text: str, older: Sequence[bytes] = ()) -> Place | None:
    """Return what an opaque value names; None when we have not made it.

    Args:
        key: of those that are made now.
        text: the value.
        older: keys of those that were made before BULK_SECRET_KEY got another first one.

    >>> made = opaque_for(b"k" * 32, "job_01m86db0v300hd99fdtgj8yepfzx")(7, 1)
    >>> place_of(b"k" * 32, made)
    Place(job='job_01m86db0v300hd99fdtgj8yepfzx', position=7, attempt=1)
    >>> place_of(b"other", made)
    >>> place_of(b"other", made, (b"k" * 32,)).position
    7
    """
    found = _PLACE.match(text)
    if found is None:
        return None
    place = Place(found[1], int(found[2]), int(found[3]))
    is_ours = False
    for each in (key, *older):
        made = opaque_for(each, place.job)(place.position, place.attempt)
        is_ours |= compare_digest(made, text)
    return place if is_ours else None
