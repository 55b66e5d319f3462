"""A page of any list: limit, cursor, and whether there is more. The same everywhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

from aiohttp import web

from api import wire
from api.auth import principal
from api.cursors import cursor_of, number_of
from api.resources import resources
from api.wire import refuse

LIMIT_MAX: Final = 100


class Numbered(Protocol):
    """A row that knows its place in a list."""

    @property
    def number(self) -> int:
        """Return the place; newer rows have higher ones."""


Row = TypeVar("Row", bound=Numbered)
Fetch = Callable[[int, int], Awaitable[Sequence[Row]]]


def limit_of(text: str) -> int:
    """Return how many rows a page may have.

    Raises:
        InvalidError: not 1 to 100.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= LIMIT_MAX):  # noqa: PLR2004
        refuse("", f"limit is 1 to {LIMIT_MAX}")
    return int(text)


async def page_of(
    request: web.Request, query: dict[str, str], what: object, fetch: Fetch[Row]
) -> tuple[Sequence[Row], bool, str | None]:
    """Return the rows of a page, whether there are more, and the cursor of what follows.

    Args:
        request: whose asker the cursor is bound to.
        query: with `limit` and `cursor`.
        what: the filter; a cursor holds for it alone.
        fetch: given (before, limit), returns rows, newest first.

    Raises:
        InvalidError: another list's cursor, or a limit that is none.
    """
    made, asker = resources(request), principal(request)
    limit = limit_of(query.get("limit", "20"))
    scope = wire.canonical([request.path, asker.user_id, what])
    before = number_of(query["cursor"], scope, made.secret) if "cursor" in query else 0
    rows = await fetch(before, limit + 1)
    has_more, rows = len(rows) > limit, rows[:limit]
    return rows, has_more, cursor_of(rows[-1].number, scope, made.secret) if has_more else None
