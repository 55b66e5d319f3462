"""What aiohttp leaves open in a request: hosts, security headers, addresses, body size and time."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from typing import Final

from aiohttp import HttpVersion10, HttpVersion11, web

from shared.errors import DeniedError, MalformedError, RequestError
from shared.settings import Settings

_REQUEST_ID: Final = re.compile(r"\A[A-Za-z0-9._-]{1,64}\Z")
_PORT: Final = re.compile(r":[0-9]{1,5}\Z")
_UTF8: Final = re.compile(r"\Aapplication/json(?:\s*;\s*charset=\"?utf-8\"?)?\s*\Z", re.IGNORECASE)
_COLON: Final = re.compile(r"%3a", re.IGNORECASE)
SMALL_BODY: Final = 65_536
HEADERS_MAX: Final = 100
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_HSTS: Final = "max-age=31536000"
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def headers_of(settings: Settings) -> dict[str, str]:
    """Return the headers every answer carries."""
    headers = dict(SECURITY_HEADERS)
    if settings.public_url.startswith("https://"):
        headers["Strict-Transport-Security"] = _HSTS
    return headers


def request_id_of(request: web.BaseRequest) -> str:
    """Return the caller's request id when it has the form; '' otherwise."""
    given = request.headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.match(given) else ""


def check_http(request: web.BaseRequest) -> None:
    """Refuse what the parser lets through and HTTP does not have (RFC 9112).

    Raises:
        MalformedError: a version that is not 1.0 or 1.1, no Host or two, or more than 100
            headers; the connection closes.
    """
    if (
        request.version not in {HttpVersion10, HttpVersion11}
        or len(request.headers.getall("Host", [])) != 1
        or len(request.headers) > HEADERS_MAX
    ):
        raise MalformedError("bad_request", "The request is not valid HTTP.")


def check_host(request: web.BaseRequest, settings: Settings) -> None:
    """Refuse a Host that is not ours.

    Raises:
        RequestError: 421; names the two settings, because a fresh deployment meets it first.
    """
    host = _PORT.sub("", request.headers.get("Host", "")).strip("[]").lower()
    if host not in settings.hosts:
        raise RequestError(
            "wrong_host",
            "This host name is not served here: set PUBLIC_URL to this site's origin, or list "
            "the name in ALLOWED_HOSTS.",
        )


def address_of(request: web.BaseRequest, settings: Settings) -> str:
    """Return the client's address: the peer's, or the rightmost hop that is no trusted proxy's.

    IPv4-mapped addresses are unwrapped and IPv6 counts as its /64; a malformed hop ends the walk.
    """
    peer = address_in(request.remote or "")
    if peer is None:
        return "unknown"
    networks = [ipaddress.ip_network(text, strict=False) for text in settings.trusted_proxies]

    def is_trusted(address: Address) -> bool:
        return any(address in network for network in networks)

    found = peer
    if networks and is_trusted(peer):
        hops = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        for hop in reversed(hops):
            address = address_in(hop.strip())
            if address is None:
                break
            found = address
            if not is_trusted(address):
                break
    return name_of(found)


def name_of(address: Address) -> str:
    """Return the client that an address counts for: itself, of IPv6 its /64."""
    if address.version == 6:  # noqa: PLR2004 - the protocol's number
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def address_in(text: str) -> Address | None:
    """Return the address that `text` is, IPv4-mapped ones unwrapped; None when it is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if isinstance(mapped, ipaddress.IPv4Address) else address


def check_path(request: web.BaseRequest) -> None:
    """Refuse spellings of a path that our routes never have.

    Raises:
        web.HTTPNotFound: an escape, a parameter or a double slash.
    """
    # A label may hold a colon, which many clients escape although RFC 3986 lets it stand.
    raw = _COLON.sub(":", request.rel_url.raw_path)
    if "%" in raw or ";" in raw or "//" in raw:
        raise web.HTTPNotFound


def check_csrf(request: web.BaseRequest, settings: Settings) -> None:
    """Refuse an unsafe request that another origin's page made a browser send (OWASP, CSRF).

    Raises:
        DeniedError: 403 `csrf`.
    """
    if request.method in {"GET", "HEAD", "OPTIONS"}:
        return
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    referer = request.headers.get("Referer")
    if site is not None:
        is_ours = site in {"same-origin", "none"}
    elif origin is not None:
        is_ours = origin.lower() == settings.public_url.lower()
    elif referer is not None:
        is_ours = f"{referer.lower()}/".startswith(f"{settings.public_url.lower()}/")
    else:
        is_ours = True  # not a browser
    if not is_ours:
        raise DeniedError("csrf", "This request comes from another site's page.")


def check_content(request: web.BaseRequest, *, has_body: bool) -> None:
    """Refuse encodings, and a body that does not say it is JSON.

    Raises:
        MalformedError: 415 or 417.
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise MalformedError("encoding_unsupported", "Send the body without Content-Encoding.")
    expect = request.headers.get("Expect", "100-continue").strip().lower()
    if expect != "100-continue":
        raise MalformedError("expectation_failed", "Only 100-continue may be expected.")
    if has_body and not _UTF8.match(request.headers.get("Content-Type", "")):
        raise MalformedError("unsupported_media_type", "The body must be application/json.")


def check_length(request: web.BaseRequest, limit: int) -> None:
    """Refuse a body that says it is larger than `limit` bytes, before anything else is looked at.

    Raises:
        MalformedError: 413.
    """
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> MalformedError:
    return MalformedError("body_too_large", f"The body is larger than {limit} bytes.")


async def body_of(request: web.Request, limit: int, timeout_s: float) -> bytes:
    """Return the body, at most `limit` bytes, within `timeout_s`.

    Raises:
        MalformedError: 413 when it is larger, 400 when it does not come or is cut off.
    """
    check_length(request, limit)
    if "Expect" in request.headers and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > limit:
                    raise _too_large(limit)
    except (TimeoutError, ConnectionError, web.RequestPayloadError) as error:
        raise MalformedError("bad_request", "The body did not come whole.") from error
    return bytes(body)
