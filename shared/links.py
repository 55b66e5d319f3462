"""Which links Meta may be given. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

LINK_MAX: Final = 2048
_HOST: Final = re.compile(r"\A(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{1,62}\Z")
_PRIVATE: Final = (".internal", ".local", ".localhost", ".home.arpa")


def is_safe_link(link: object) -> bool:
    """Tell whether Meta may be given this link: https to a host name that is not private.

    >>> is_safe_link("https://example.com/a.png"), is_safe_link("https://0x7f.1/a.png")
    (True, False)
    """
    if not isinstance(link, str) or len(link) > LINK_MAX or not link.isascii():
        return False
    if any(letter <= " " or letter in '\\"<>^`{|}\x7f' for letter in link):
        return False
    try:
        parts = urlsplit(link)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.scheme != "https" or "@" in parts.netloc or host.endswith(_PRIVATE):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # A last label that begins with a letter is no address in any notation.
        return _HOST.match(host) is not None
    return False
