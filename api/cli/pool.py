"""`drumbeat disable` and `enable`: the whole pool stops and goes on, over HTTP."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any, Final

import cyclopts
import msgspec

from api.client import Client
from shared import settings
from shared.errors import RequestError

Json = Annotated[bool, cyclopts.Parameter(name="--json")]
HELD: Final = 1


def disable(*, reason: str | None = None, as_json: Json = False) -> int:
    """Stop all sending until `enable`; nothing is lost, and reading goes on.

    Args:
        reason: shown to whoever asks why.
        as_json: print the API's document.
    """
    return _print(_ask("disable", reason), as_json=as_json)


def enable(*, reason: str | None = None, as_json: Json = False) -> int:
    """Let sending go on; 1 when a process's DISABLE_BULK_MESSAGING still holds it.

    Args:
        reason: for the audit log.
        as_json: print the API's document.
    """
    found = _ask("enable", reason)
    return _print(found, as_json=as_json) or (HELD if found["disabled"] else 0)


def _ask(verb: str, reason: str | None) -> dict[str, Any]:
    given = settings.load()
    if given.drumbeat_api_key is None:
        raise RequestError("unauthenticated", "DRUMBEAT_API_KEY is needed: an admin's key.")
    key = given.drumbeat_api_key.reveal()

    async def work() -> dict[str, Any]:
        async with Client(given.drumbeat_url, key) as client:
            body = None if reason is None else {"reason": reason}
            return dict(await client.ask("POST", f"/api/bulk/{verb}", body))

    return asyncio.run(work())


def sentence(found: dict[str, Any]) -> str:
    """Return the switch as a sentence. Pure.

    >>> sentence({"disabled": False, "reason": None, "by": None, "since": None})
    'sending is on'
    """
    if not found["disabled"]:
        return "sending is on"
    since = f" since {found['since']}" if found["since"] else ""
    why = f": {found['reason']}" if found["reason"] else ""
    return f"sending is off{since}, by {found['by']}{why}"


def _print(found: dict[str, Any], *, as_json: bool) -> int:
    text = msgspec.json.encode(found).decode() if as_json else sentence(found)
    sys.stdout.write(f"{text}\n")
    return 0
