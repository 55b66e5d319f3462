"""The Graph door for lists of templates: all pages of one account's. Knows no PostgreSQL."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Final, NamedTuple

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from shared.definitions import Definition, page_of
from shared.graph_codes import row_of
from shared.settings import Settings
from worker.answer import BODY_MAX, plain_of, read
from worker.senders import Sender

REST_S: Final = 5.0  # between two tries, whoever asks: Graph counts them by the hour
WHOLE_S: Final = 120.0  # for all pages of a list
_PAGE: Final = 32  # templates; a page that is longer than BODY_MAX is asked for again in halves
_PAGES_MAX: Final = 400
_FIELDS: Final = "name,language,status,category,parameter_format,quality_score,components"
_GOOD: Final = 200


class Fetched(NamedTuple):
    """What asking for a list came to.

    Attributes:
        found: the templates; None when it failed.
        why: in our own words; '' when it did not.
        rest_s: how long nobody may ask again.
    """

    found: list[Definition] | None
    why: str = ""
    rest_s: float = REST_S


class _Page(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes
    is_whole: bool


class ListReader:
    """The Graph door for lists of templates; opens its connection for one list and closes it.

    Args:
        settings: whom to ask, and for how long.
        tls: for `https`; None trusts the system's authorities.
    """

    def __init__(self, settings: Settings, tls: ssl.SSLContext | None = None) -> None:
        """Keep the figures."""
        self._base_url = settings.graph_base_url.rstrip("/")
        self._connect_timeout_s = settings.graph_connect_timeout_s
        self._timeout_s = settings.graph_timeout_s
        self._tls = tls

    async def fetch(self, sender: Sender) -> Fetched:
        """Return all templates of a sender's account. Never raises for what the far side does."""
        try:
            async with asyncio.timeout(WHOLE_S), self._session(sender.token) as session:
                return await self._fetch(session, sender)
        except (aiohttp.ClientError, HttpProcessingError, OSError, TimeoutError) as error:
            what = "time-out" if isinstance(error, TimeoutError) else "no connection"
            return Fetched(None, f"Graph does not answer ({what})")

    async def _fetch(self, session: aiohttp.ClientSession, sender: Sender) -> Fetched:
        url = URL(f"{self._base_url}/{sender.version}/{sender.waba_id}/message_templates")
        found: dict[tuple[str, str], Definition] = {}
        after, size = "", _PAGE
        for _ in range(_PAGES_MAX):
            query = {"fields": _FIELDS, "limit": str(size)} | ({"after": after} if after else {})
            page = await self._page(session, url.with_query(query))
            if page.status == _GOOD and not page.is_whole and size > 1:
                size //= 2
                continue
            if page.status != _GOOD or not page.is_whole:
                return refused(page.status, page.headers, page.body)
            try:
                templates, after = page_of(page.body)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                return Fetched(None, "Graph's list cannot be read")
            # Pages shift when somebody adds a template between two of them.
            found |= {(each.name, each.language): each for each in templates}
            if not after:
                return Fetched(list(found.values()))
        return Fetched(None, f"Graph's list has more than {_PAGES_MAX} pages")

    async def _page(self, session: aiohttp.ClientSession, url: URL) -> _Page:
        async with (
            asyncio.timeout(self._timeout_s),
            session.get(url, allow_redirects=False) as reply,
        ):
            text = await reply.content.read(BODY_MAX + 1)
            while not reply.content.at_eof() and len(text) <= BODY_MAX:
                text += await reply.content.read(BODY_MAX + 1 - len(text))
            body = plain_of(text, reply.headers.get("Content-Encoding", "").lower())
            # What does not unpack within the limit comes back empty.
            is_whole = len(text) <= BODY_MAX and bool(body or not text)
            return _Page(reply.status, reply.headers, body, is_whole)

    def _session(self, token: str) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, ssl=self._tls or True),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=self._connect_timeout_s,
                sock_connect=self._connect_timeout_s,
                sock_read=None,
            ),
            headers={"Authorization": f"Bearer {token}"},
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
            auto_decompress=False,
            trust_env=False,
        )


def refused(status: int, headers: Mapping[str, str], body: bytes) -> Fetched:
    """Return what a refusal of a list means. Pure; Graph's own words stay out of it.

    Args:
        status: of the answer.
        headers: of the answer.
        body: of the answer, plain; cut where it was too long.
    """
    answer = read(status, headers, body)
    if answer.code is None:
        return Fetched(None, f"Graph's list cannot be read (HTTP {status})")
    row = row_of(answer.code, status)
    rest_s = max(REST_S, answer.regain_s, float(row.hold_s) if row.action == "park" else 0.0)
    return Fetched(None, f"Graph refuses the list (code {answer.code})", rest_s)
