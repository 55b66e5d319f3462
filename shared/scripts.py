"""Join prelude and script, run by hash on a borrowed client, send the text when forgotten."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

_FOLDER: Final = files("shared") / "lua"
# What must fail on a full server: all else has to work there (pitfalls L3).
_NEW_WORK: Final = frozenset({"stage", "submit", "restore"})
_VISITORS: Final = "visitor_"

NAMES: Final = (
    "stage",
    "submit",
    "restore",
    "begin",
    "report",
    "tick",
    "leave",
    "control",
    "sender",
    "reserve",
    "archived",
    "totals",
    "hold",
    "switch",
)

Argument = str | bytes | int | float


class Script:
    """One Lua file, ready to run on any client.

    Args:
        name: the file's name without `.lua`; names beginning with `visitor_` have no prelude.
        shebang: False where the server's Lua does not know the first line (fakeredis).
    """

    def __init__(self, name: str, *, shebang: bool = True) -> None:
        """Read the file once and keep its text and hash."""
        self.name = name
        body = (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
        prelude = ""
        if not name.startswith(_VISITORS):
            prelude = (_FOLDER / "prelude.lua").read_text(encoding="utf-8")
        flags = "" if name in _NEW_WORK else " flags=allow-oom"
        # `#!lua` counts only as line 1 of the joined text (pitfalls L12).
        first = f"#!lua{flags}\n" if shebang else ""
        self.text = f"{first}{prelude}\n{body}"
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: Redis, keys: list[str], args: list[Argument]) -> object:
        """Run by hash; send the whole text once when the server has forgotten it (pitfalls L1)."""
        try:
            return await client.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await client.eval(self.text, len(keys), *keys, *args)
