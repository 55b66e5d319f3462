"""Hash and check passwords with argon2id, in two threads and never on the loop."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from shared.errors import TooManyError

# OWASP's profile: 31-37 ms here, the library's own defaults 116-181 (pitfalls T15).
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_THREADS: Final = 2
_WAITING_MAX: Final = 50
# A hash of nothing anybody knows: checking an unknown user costs what a known one costs.
_DUMMY: Final = (
    "$argon2id$v=19$m=19456,t=2,p=1$ZHJ1bWJlYXRkdW1teTE2Yg$"
    "q2l0b3VzL25vdC9hL3JlYWwvaGFzaC9hdC9hbGwvMDA"
)
_T = TypeVar("_T")


class _Pool:
    """Two threads and a short queue before them."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="argon2")
        self._waiting = 0

    async def run(self, work: Callable[[], _T]) -> _T:
        if self._waiting >= _WAITING_MAX:
            raise TooManyError("login_throttled", "Too many logins at once. Try again soon.", 1)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


_pool: Final = _Pool()


def normal(text: str) -> str:
    """Return `text` in NFC: keyboards differ in how they write one letter.

    >>> normal("e\u0301") == "\u00e9"
    True
    """
    return unicodedata.normalize("NFC", text)


async def hash_password(text: str) -> str:
    """Return the argon2id hash of a password, parameters and salt included."""
    return await _pool.run(lambda: _HASHER.hash(normal(text)))


async def verify_password(hashed: str | None, text: str) -> bool:
    """Tell whether `text` is the password that was hashed.

    Args:
        hashed: of the user; None or empty when there is no such user: the same time is spent.
        text: what was typed.

    Raises:
        TooManyError: too many are waiting already.
    """
    return await _pool.run(lambda: _check(hashed or _DUMMY, normal(text))) and bool(hashed)


def needs_rehash(hashed: str) -> bool:
    """Tell whether a hash was made with other parameters than today's."""
    return _HASHER.check_needs_rehash(hashed)


def _check(hashed: str, text: str) -> bool:
    try:
        return _HASHER.verify(hashed, text)
    except (VerificationError, InvalidHashError):
        return False
