"""Where a list goes on: a number that nobody can make up. Pure."""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

from api.wire import refuse

_MAC_BYTES: Final = 12


def cursor_of(number: int, scope: bytes, secret: bytes) -> str:
    """Return the cursor of a place in a list; it holds for this user and this filter alone."""
    packed = number.to_bytes(8, "big")
    mac = hmac.new(secret, b"cursor\0" + packed + scope, hashlib.sha256).digest()
    return urlsafe_b64encode(packed + mac[:_MAC_BYTES]).rstrip(b"=").decode()


def number_of(text: str, scope: bytes, secret: bytes) -> int:
    """Return the number behind a cursor of this user and this filter.

    Raises:
        InvalidError: any other cursor.
    """
    number = 0
    try:
        packed = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        number = int.from_bytes(packed[:8], "big")
    except (ValueError, UnicodeEncodeError):
        packed = b""
    if not 0 < number < 1 << 63 or not hmac.compare_digest(
        cursor_of(number, scope, secret).encode(), text.encode("utf-8", "replace")
    ):
        refuse("", "not a cursor of this list", "bad_cursor")
    return number
