"""Visitors, not jobs: sessions, quotas, failed logins; a script each. Knows nothing of HTTP."""

from __future__ import annotations

import hashlib
from typing import Any, Final, cast

import msgspec

from shared.errors import TooManyError
from shared.ids import Ids
from shared.models import Argument
from shared.queue import Queue
from shared.scripts import Script
from shared.settings import Settings

HOUR_S: Final = 3600
MINUTE_S: Final = 60
TOKEN_BYTES: Final = 32
_SCRIPTS: Final = ("open", "look", "close", "quota", "refund", "login")


def digest(text: str) -> str:
    """Return the SHA-256 under which a secret is looked up."""
    return hashlib.sha256(text.encode()).hexdigest()


class Session(msgspec.Struct, frozen=True):
    """A live session: whose, its hash, and when it ends unless used (epoch, ms)."""

    user_id: str
    hash: str
    expires_ms: int


class Policy(msgspec.Struct, frozen=True):
    """One quota in force.

    Attributes:
        name: as in the RateLimit header, such as `submit-ip`.
        key: Redis key of its sliding log.
        limit: places in any hour.
        left: free places after this request.
        reset_s: seconds until the oldest place is free again.
    """

    name: str
    key: str
    limit: int
    left: int = 0
    reset_s: int = 0


class Quota(msgspec.Struct, frozen=True):
    """What a submission took, or was refused.

    Attributes:
        is_taken: every policy had a free place.
        member: gives the places back.
        policies: those in force.
    """

    is_taken: bool
    member: str
    policies: list[Policy]

    def given_back(self) -> Quota:
        """Return it as it stands once its place is free again."""
        if not self.is_taken:
            return self
        policies = [
            msgspec.structs.replace(
                policy,
                left=policy.left + 1,
                # Where nobody else has a place it was its own that it waited for.
                reset_s=policy.reset_s if policy.left + 1 < policy.limit else 0,
            )
            for policy in self.policies
        ]
        return msgspec.structs.replace(self, policies=policies)

    def headers(self) -> dict[str, str]:
        """Return the two headers of draft-ietf-httpapi-ratelimit-headers-11."""
        if not self.policies:
            return {}
        left = ", ".join(f'"{p.name}";r={p.left};t={p.reset_s}' for p in self.policies)
        return {**policy_header(self.policies), "RateLimit": left}


def policy_header(policies: list[Policy]) -> dict[str, str]:
    """Return the header that names the policies; it says nothing of what is left."""
    if not policies:
        return {}
    texts = [f'"{p.name}";q={p.limit};w={HOUR_S}' for p in policies]
    return {"RateLimit-Policy": ", ".join(texts)}


class Visitors:
    """Sessions, quotas and failed logins in Redis, on the server's clock.

    Every method is one script and raises QueueError.

    Args:
        queue: the Redis door; its `visitors` client is used.
        settings: times and limits.
        ids: session tokens.
        shebang: False where the server's Lua does not know the first line (fakeredis).
    """

    def __init__(self, queue: Queue, settings: Settings, ids: Ids, *, shebang: bool = True) -> None:
        """Borrow the door; nothing is sent yet."""
        self._queue = queue
        self._settings = settings
        self._ids = ids
        self._scripts = {name: Script(f"visitor_{name}", shebang=shebang) for name in _SCRIPTS}

    async def _run(self, name: str, keys: list[str], *args: Argument) -> Any:  # noqa: ANN401
        return await self._queue.visit(self._scripts[name], keys, list(args))

    async def open(self, user_id: str) -> tuple[str, Session]:
        """Return a new cookie value, 256 random bits, and its session."""
        token = self._ids.token(TOKEN_BYTES)
        found = digest(token)
        s = self._settings
        ends = await self._run(
            "open",
            [f"{{v}}:session:{found}", f"{{v}}:user:{user_id}"],
            found,
            user_id,
            s.session_idle_s,
            s.session_max_s,
        )
        return token, Session(user_id, found, int(ends))

    async def look(self, token: str) -> Session | None:
        """Return the session of a cookie's value and keep it alive; None when there is none."""
        found = digest(token)
        reply = cast(
            "list[bytes]",
            await self._run("look", [f"{{v}}:session:{found}"], self._settings.session_idle_s),
        )
        return Session(reply[0].decode(), found, int(reply[1])) if reply else None

    async def close(self, user_id: str, session: str) -> None:
        """End one session."""
        await self._run("close", [f"{{v}}:user:{user_id}"], session, "")

    async def close_all(self, user_id: str, but: str = "") -> None:
        """End every session of a user, `but` one."""
        await self._run("close", [f"{{v}}:user:{user_id}"], "", but)

    async def take(self, policies: list[Policy]) -> Quota:
        """Take a place for one submission under every policy, or under none."""
        member = self._ids.object_id("req")
        if not policies:
            return Quota(is_taken=True, member=member, policies=[])
        keys = [policy.key for policy in policies]
        reply = await self._run("quota", keys, member, HOUR_S, *(p.limit for p in policies))
        after = [
            msgspec.structs.replace(
                policy, left=int(reply[1 + 2 * i]), reset_s=int(reply[2 + 2 * i])
            )
            for i, policy in enumerate(policies)
        ]
        return Quota(is_taken=int(reply[0]) == 1, member=member, policies=after)

    async def pace(self, who: str) -> int:
        """Count a request of somebody; return the seconds to wait when it is one too many, else 0.

        Args:
            who: a key or a session's hash.
        """
        limit = self._settings.api_requests_per_minute
        if not limit:
            return 0
        key = f"{{v}}:quota:requests:{who}"
        reply = await self._run("quota", [key], self._ids.object_id("req"), MINUTE_S, limit)
        return 0 if int(reply[0]) else max(1, int(reply[2]))

    async def give_back(self, quota: Quota) -> None:
        """Undo `take`: the submission was refused."""
        if quota.is_taken and quota.policies:
            await self._run("refund", [policy.key for policy in quota.policies], quota.member)

    def policies(self, address: str, user_id: str) -> list[Policy]:
        """Return the submission quotas in force for an address and a user."""
        s = self._settings
        pairs = (
            ("submit-ip", f"ip:{digest(address)[:32]}", s.bulk_submits_per_hour_ip),
            ("submit-user", f"user:{user_id}", s.bulk_submits_per_hour_user),
        )
        return [Policy(name, f"{{v}}:quota:{who}", limit) for name, who, limit in pairs if limit]

    async def login(self, email: str, address: str, outcome: str = "") -> int:
        """Return the seconds to wait before a log-in; 0 = try, and an outcome is counted.

        Args:
            email: of the account as it is kept, known or not.
            address: of the client.
            outcome: '' asks only; `0` it failed; `1` it went well. Neither counts, nor must be
                told to anybody, where others have used up the tries meanwhile.
        """
        s = self._settings
        keys = [
            f"{{v}}:login:a:{digest(email)[:32]}",
            f"{{v}}:login:i:{digest(address)[:32]}",
        ]
        args = (outcome, s.login_failures, s.login_window_s, s.login_failures_ip)
        return int(await self._run("login", keys, *args))


class PaceError(TooManyError):
    """More requests of one credential than API_REQUESTS_PER_MINUTE: 429."""

    policies = ("requests",)

    def __init__(self, wait_s: int) -> None:
        """Take when the oldest of them is a minute ago."""
        super().__init__("rate_limited", "Too many requests a minute.", wait_s)


class QuotaError(TooManyError):
    """The 11th submission of an hour: 429 until the oldest place is free.

    Attributes:
        policies: names of those without a free place.
    """

    def __init__(self, quota: Quota) -> None:
        """Take the waiting time from the quota, never shorter than its `t`."""
        full = [policy for policy in quota.policies if not policy.left]
        wait_s = max((policy.reset_s for policy in full), default=1)
        super().__init__("rate_limited", "No more submissions are allowed this hour.", wait_s)
        self.policies = [policy.name for policy in full]
