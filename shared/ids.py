"""Identifiers, draws and jitter: the only place that asks the system for chance."""

from __future__ import annotations

import os
import random
import re
import secrets
import time
import uuid
from typing import Final

# Crockford's order without its exclusions: sorted by byte value, so ids sort by time.
ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_JOB: Final = re.compile(r"\Ajob_[0-9a-z]{28}\Z")
_USER: Final = re.compile(r"\A[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_OTHER: Final = re.compile(r"\A(?:snd|upl|key|sup|req)_[0-9a-z]{26}\Z")


def base32(value: int, width: int) -> str:
    """Return `value` in base 32, lower case, exactly `width` characters.

    >>> base32(33, 3)
    '011'
    """
    out = []
    for _ in range(width):
        value, low = divmod(value, 32)
        out.append(ALPHABET[low])
    return "".join(reversed(out))


def is_job_id(text: str) -> bool:
    """Tell whether `text` has the form of a job id.

    >>> is_job_id("job_01m86db0v300hd99fdtgj8yepfzx")
    True
    """
    return _JOB.match(text) is not None


def is_user_id(text: str) -> bool:
    """Tell whether `text` has the form of a user id: a UUID in lower case."""
    return _USER.match(text) is not None


def is_object_id(text: str) -> bool:
    """Tell whether `text` has the form of a sender, upload, key, suppression or request id."""
    return _OTHER.match(text) is not None


class Ids:
    """The system's chance; tests hand in a seeded one.

    Args:
        seed: makes every draw repeatable; None asks the operating system.
    """

    def __init__(self, seed: int | None = None) -> None:
        """Seed the draws."""
        self._random = random.Random(seed) if seed is not None else random.SystemRandom()  # noqa: S311 - jitter; secrets come from `secrets`

    def job_id(self, shard: int, now_ms: int | None = None) -> str:
        """Return a new job id: 10 characters of time, 2 of shard, 16 random (80 bits)."""
        at = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        return f"job_{base32(at, 10)}{base32(shard, 2)}{base32(self._random.getrandbits(80), 16)}"

    def object_id(self, prefix: str) -> str:
        """Return a new id such as `snd_…`: 10 characters of time, 16 random."""
        at = time.time_ns() // 1_000_000
        return f"{prefix}_{base32(at, 10)}{base32(self._random.getrandbits(80), 16)}"

    def user_id(self) -> uuid.UUID:
        """Return a new UUIDv7 (RFC 9562): 48 bits of time, then 74 random ones."""
        at = time.time_ns() // 1_000_000
        value = (at & (2**48 - 1)) << 80 | 0x7 << 76 | self._random.getrandbits(12) << 64
        return uuid.UUID(int=value | 0b10 << 62 | self._random.getrandbits(62))

    def worker_name(self) -> str:
        """Return a consumer name for one start of a process."""
        return f"w{os.getpid()}-{base32(self._random.getrandbits(50), 10)}"

    def token(self, size: int = 32) -> str:
        """Return `size` random bytes as URL-safe text; for passwords, sessions and keys."""
        return secrets.token_urlsafe(size)

    def jitter(self) -> float:
        """Return a draw from [0, 1)."""
        return self._random.random()
