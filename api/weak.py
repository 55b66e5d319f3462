"""Which passwords are refused: too short, too long, or among those that everybody tries. Pure."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from api.passwords import normal
from shared.errors import Fault, InvalidError

CHARACTERS_MIN: Final = 12
CHARACTERS_MAX: Final = 128
_DIFFERENT_MIN: Final = 3
COMMON: Final = frozenset((files("api") / "common_passwords.txt").read_text("utf-8").split("\n"))


def weakness(text: str) -> str:
    """Return what is wrong with a password, as a sentence; '' when nothing is.

    >>> weakness("passwordpassword"), weakness("correct horse battery")
    ('This password is one of those that are tried first.', '')
    """
    text = normal(text)
    if not CHARACTERS_MIN <= len(text) <= CHARACTERS_MAX:
        return f"A password has {CHARACTERS_MIN} to {CHARACTERS_MAX} characters."
    bare = text.lower().replace(" ", "")
    if bare in COMMON or len(set(bare)) < _DIFFERENT_MIN:
        return "This password is one of those that are tried first."
    return ""


def refuse_weak(text: str, pointer: str) -> None:
    """Refuse a password that is no use.

    Raises:
        InvalidError: 422 `weak_password`, at `pointer`.
    """
    detail = weakness(text)
    if detail:
        raise InvalidError("weak_password", detail, [Fault(pointer, "weak_password", detail)])
