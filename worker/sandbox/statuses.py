"""The sandbox's webhooks: what becomes of accepted messages, signed and posted as Meta does."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import aiohttp
import msgspec

from shared.clock import Clock
from shared.graph_codes import row_of
from shared.ids import Ids
from worker.sandbox.ledger import Entry

COLLECT_S: Final = 0.05
PER_POST_MAX: Final = 1000
STATUSES: Final = ("sent", "delivered", "read", "failed")
WISHES: Final = ("stop", "resume")
_PAUSE_MAX_S: Final = 60.0
_TIMEOUT_S: Final = 10.0
_FIRST_VERSION_WITHOUT_CONVERSATION: Final = 24
_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]")
_json: Final = msgspec.json.Encoder()


class Hooks(msgspec.Struct, forbid_unknown_fields=True):
    """Every switch of webhooks; `PATCH /_sandbox/hooks` sets them at once.

    Attributes:
        url: where they go; '' = nowhere.
        sent_ms, delivered_ms, read_ms: mean time from the acceptance; each draw is half to one and
            a half of it.
        read_share: share of messages that are read.
        no_delivered: share of read messages that are never called delivered.
        silent: share of messages of which nothing is ever said.
        copies: of each status.
        shuffle_ms: within such a span statuses leave in any order.
        early: the first status leaves before the answer does.
        is_failed_opaque: `failed` carries the opaque value.
        is_recipient_named: statuses carry `recipient_id`.
    """

    url: str = ""
    sent_ms: float = 150.0
    delivered_ms: float = 1_500.0
    read_ms: float = 20_000.0
    read_share: float = 0.6
    no_delivered: float = 0.0
    silent: float = 0.0
    copies: int = 1
    shuffle_ms: float = 0.0
    early: bool = False
    is_failed_opaque: bool = True
    is_recipient_named: bool = True


def escaped(body: bytes) -> bytes:
    r"""Return JSON as Meta writes it: nothing beyond ASCII, and `/` as `\/`.

    >>> escaped('{"a":"ä/"}'.encode())
    b'{"a":"\\u00e4\\/"}'
    """
    text = body.decode().replace("/", "\\/")
    return _BEYOND_ASCII.sub(_units, text).encode("ascii")


def _units(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def webhook(field: str, values: Iterable[dict[str, Any]], waba: str = "0") -> bytes:
    """Return a whole body as it leaves."""
    changes = [{"value": value, "field": field} for value in values]
    whole = {"object": "whatsapp_business_account", "entry": [{"id": waba, "changes": changes}]}
    return escaped(_json.encode(whole))


class Webhooks:
    """Tells one address what became of messages; repeats what is not answered 200.

    Args:
        hooks: the switches.
        secret: of the app, signs every body.
        clock, ids: for times and draws.
    """

    def __init__(self, hooks: Hooks, secret: str, clock: Clock, ids: Ids) -> None:
        """Tell nothing yet."""
        self.hooks = hooks
        self._secret = secret.encode()
        self._clock = clock
        self._ids = ids
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._session: aiohttp.ClientSession | None = None
        self.posted = 0

    async def close(self) -> None:
        """Forget what has not left."""
        for timer in self._timers:
            timer.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def verify(self, token: str) -> bool:
        """Ask the address as Meta does, once it listens; tell whether it answered right."""
        challenge = self._ids.token(12)
        asked = {"hub.mode": "subscribe", "hub.verify_token": token, "hub.challenge": challenge}
        while True:
            try:
                async with self._client().get(self.hooks.url, params=asked) as response:
                    return await response.text() == challenge
            except (aiohttp.ClientError, TimeoutError):
                await self._clock.sleep(1.0)

    def accepted(self, entry: Entry, failed: int | None = None) -> None:
        """Plan the statuses of a message that was taken; `failed`: it will not arrive."""
        hooks = self.hooks
        if not hooks.url or entry.wamid is None or self._ids.jitter() < hooks.silent:
            return
        plan = [("sent", hooks.sent_ms)]
        if failed is not None:
            plan.append(("failed", hooks.delivered_ms))
        else:
            is_read = self._ids.jitter() < hooks.read_share
            if not (is_read and self._ids.jitter() < hooks.no_delivered):
                plan.append(("delivered", hooks.delivered_ms))
            if is_read:
                plan.append(("read", hooks.read_ms))
        for place, (word, mean_ms) in enumerate(plan):
            due_ms = 0.0 if hooks.early and not place else mean_ms * (0.5 + self._ids.jitter())
            status = self._status(entry, word, due_ms, failed if word == "failed" else None)
            for _ in range(hooks.copies):
                late_ms = due_ms + hooks.shuffle_ms * self._ids.jitter()
                self._later(late_ms / 1000, entry.sender, status)

    def say(self, entries: Sequence[Entry], word: str, code: int | None = None) -> None:
        """Say of messages that were taken what they have come to by now, whatever was said before.

        Args:
            entries: of the ledger, each with a message's id.
            word: `sent`, `delivered`, `read` or `failed`.
            code: of the failure.

        Raises:
            ValueError: there is no address to say it to.
        """
        self._require_address()
        now_ms = self._clock.now_ms()
        for entry in entries:
            self._later(0, entry.sender, self._status(entry, word, now_ms - entry.t_ms, code))

    def wish(self, entries: Sequence[Entry], word: str) -> None:
        """Say that those who got messages want no marketing (`stop`), or want it (`resume`).

        Raises:
            ValueError: there is no address to say it to.
        """
        self._require_address()
        at_s = str(self._clock.now_ms() // 1000)
        wishes: dict[str, dict[str, dict[str, str]]] = {}
        for entry in entries:
            wishes.setdefault(entry.sender, {})[entry.delivered] = {
                "wa_id": entry.delivered,
                "category": "marketing_messages",
                "value": word,
                "timestamp": at_s,
            }
        for sender, people in wishes.items():
            told = list(people.values())
            for at in range(0, len(told), PER_POST_MAX):
                value = {
                    "messaging_product": "whatsapp",
                    "metadata": {"phone_number_id": sender},
                    "user_preferences": told[at : at + PER_POST_MAX],
                }
                self.post(webhook("user_preferences", [value]))

    def _require_address(self) -> None:
        if not self.hooks.url:
            raise ValueError("webhooks have no address: start the sandbox with --webhook URL")

    def post(self, body: bytes) -> None:
        """Sign a body and post it until it is answered 200."""
        task = asyncio.get_running_loop().create_task(self._post(body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _status(self, entry: Entry, word: str, after_ms: float, code: int | None) -> dict[str, Any]:
        at_s = (entry.t_ms + int(after_ms)) // 1000
        made: dict[str, Any] = {"id": entry.wamid, "status": word, "timestamp": str(at_s)}
        if self.hooks.is_recipient_named:
            made["recipient_id"] = entry.delivered
        if entry.opaque is not None and (code is None or self.hooks.is_failed_opaque):
            made["biz_opaque_callback_data"] = entry.opaque
        if code is not None:
            meaning = row_of(code, 400).meaning
            error = {"code": code, "title": meaning, "message": meaning}
            made["errors"] = [{**error, "error_data": {"details": meaning}}]
        elif word in ("sent", "delivered"):
            made["pricing"] = {"billable": True, "pricing_model": "PMP", "type": "regular",
                               "category": "utility"}  # fmt: skip
            version = entry.version.lstrip("v").split(".")[0]
            if version.isdigit() and int(version) < _FIRST_VERSION_WITHOUT_CONVERSATION:
                made["conversation"] = {"id": f"c{entry.seq}", "origin": {"type": "utility"}}
        return made

    def _later(self, delay_s: float, sender: str, status: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def collect() -> None:
            self._timers.discard(timer)
            waiting = self._waiting.setdefault(sender, [])
            waiting.append(status)
            if len(waiting) == 1:
                self._timers.add(loop.call_later(COLLECT_S, self._leave, sender))
            elif len(waiting) >= PER_POST_MAX:
                self._leave(sender)

        timer = loop.call_later(delay_s, collect)
        self._timers.add(timer)

    def _leave(self, sender: str) -> None:
        statuses = self._waiting.pop(sender, [])
        if statuses:
            metadata = {"display_phone_number": "15550000000", "phone_number_id": sender}
            value = {"messaging_product": "whatsapp", "metadata": metadata, "statuses": statuses}
            self.post(webhook("messages", [value]))

    async def _post(self, body: bytes) -> None:
        digest = hmac.digest(self._secret, body, "sha256").hex()
        headers = {"X-Hub-Signature-256": f"sha256={digest}", "Content-Type": "application/json"}
        pause_s = 1.0
        while True:
            try:
                async with self._client().post(
                    self.hooks.url, data=body, headers=headers
                ) as response:
                    if response.status == 200:  # noqa: PLR2004 - HTTP
                        self.posted += 1
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await self._clock.sleep(pause_s)
            pause_s = min(_PAUSE_MAX_S, 2 * pause_s)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S))
        return self._session
