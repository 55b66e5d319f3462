"""The far side, in process: it answers by script and keeps its own ledger of what it was asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from shared.models import Answer
from tests.oracle import Line
from worker.answer import not_sent, read, unknown

Reply = tuple[int, dict[str, Any]]
SLOW_DOWN: Reply = (429, {"error": {"code": 130429, "message": "slow down"}})
TEMPORARY: Reply = (500, {"error": {"code": 131000, "message": "something went wrong"}})
SERVICE: Reply = (503, {"error": {"code": 131016, "message": "later"}})
PAIR: Reply = (400, {"error": {"code": 131056, "message": "pair rate"}})
NOT_THERE: Reply = (400, {"error": {"code": 131026, "message": "undeliverable"}})
BAD_TOKEN: Reply = (401, {"error": {"code": 190, "message": "token"}})
# What the wire makes of an exchange: no byte left; taken, but the answer never came.
NO_BYTE: Reply = (0, {})
NO_ANSWER: Reply = (-1, {})


class Provider:
    """Graph as a witness.

    Args:
        now_s: the clock of its ledger.

    Attributes:
        ledger: every request that reached it, in order.
        script: phone → its replies, one a request; after the last it accepts.
        doubtful: how many answers could not be relied on.
        hooks: request number → what happens elsewhere before its answer arrives.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.reset()

    def reset(self) -> None:
        self.ledger: list[Line] = []
        self.script: dict[int, list[Reply]] = {}
        self.doubtful = 0
        self.hooks: dict[int, Callable[[], Awaitable[None]]] = {}
        self._asked: Counter[int] = Counter()

    @property
    def requests(self) -> int:
        """Return how often it was asked, those of which no byte arrived included."""
        return self._asked.total()

    def take(self, where: str, body: bytes) -> Answer:
        message = json.loads(body)
        phone = int(message["to"].lstrip("+"))
        _, job, position, attempt, _ = message["biz_opaque_callback_data"].split(".")
        replies = self.script.get(phone, [])
        turn = self._asked[phone]
        self._asked[phone] += 1
        status, reply = replies[turn] if turn < len(replies) else (200, {})
        if (status, reply) == NO_BYTE:
            return not_sent("refused")
        is_taken = status in (200, -1)
        wamid = f"wamid.{len(self.ledger)}" if is_taken else None
        code = None if is_taken else reply["error"]["code"]
        verdict = "accepted" if is_taken else "refused"
        line = Line(
            len(self.ledger), phone, job, int(position), int(attempt), verdict, wamid, code, where,
            self._now_s(),
        )  # fmt: skip
        self.ledger.append(line)
        if status < 0:
            self.doubtful += 1
            return unknown("timeout")
        reply = {"messages": [{"id": wamid}]} if is_taken else reply
        return read(status, {}, json.dumps(reply).encode())

    async def after(self) -> None:
        """Let happen elsewhere what this request's number stands for, once."""
        hook = self.hooks.pop(len(self.ledger), None)
        if hook is not None:
            await hook()
