"""Switching off in mid-job: how soon it is silent, what becomes unknown, and that it goes on."""

from __future__ import annotations

import hashlib

import pytest

from api.client import Client
from shared.archive import KeyRow, SenderRow
from shared.clock import Clock
from shared.ids import Ids
from shared.sealing import Sealing
from shared.settings import Settings
from tests.e2e.stack import Eventually, Stack, sent
from tests.integration.test_worker import numbers

ADMIN_KEY = f"drb_abcdefghij_{'a' * 43}"
OFF = {"DISABLE_BULK_MESSAGING": "true"}


async def begun(stack: Stack, settings: Settings, eventually: Eventually, count: int) -> str:
    """Start four workers; return a job of 200/s that is half done."""
    sealed = Sealing(settings.bulk_secret_key).seal("token")
    await stack.archive.add_sender(SenderRow("snd_half", "half", "3000", sealed, rate=200.0))
    await stack.add_workers(4, eventually)
    job = await stack.submit(numbers(count, 393331000000), sender="snd_half")

    async def is_half_done() -> bool:
        return await sent(stack, job) >= count / 2

    await eventually(is_half_done, within_s=count / 200 + 20)
    return job


async def stays_silent(stack: Stack, job: str, count: int) -> float:
    """Return when the last request began, once no worker can be at work any more."""
    # Long enough for a worker that did not hear of it to show itself.
    await Clock().sleep(3.0)
    last_s, tally = stack.times()[-1], (await stack.status(job)).tally
    assert tally.unknown == 0
    assert tally.sent == len(stack.lines()) < count
    return last_s


async def ends_exact(stack: Stack, job: str, count: int, eventually: Eventually) -> None:
    await eventually(lambda: stack.is_over(job), within_s=count / 200 + 20)
    tally = (await stack.status(job)).tally
    assert (tally.sent, tally.unknown) == (count, 0)
    accepted = stack.accepted()
    assert (len(accepted), set(accepted.values())) == (count, {1})
    await stack.check(job, eventually)


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.slow)])
async def test_disabled_in_mid_job_it_is_silent_within_a_second(
    stack: Stack, settings: Settings, eventually: Eventually, count: int
) -> None:
    user, digest = str(Ids().user_id()), hashlib.sha256(ADMIN_KEY.encode()).digest()
    await stack.archive.add_user(user, "root@example.com", "hash", "admin")
    row = KeyRow(
        id="abcdefghij", user_id=user, name="t", sha256=digest, scopes=["admin", "read", "send"],
        last4="aaaa", expires_at_ms=0, revoked=False, role="admin", disabled=False,
    )  # fmt: skip
    await stack.archive.add_key(row)
    _, origin = await stack.add_api(eventually)
    job = await begun(stack, settings, eventually, count)
    async with Client(origin, ADMIN_KEY) as client:
        await client.ask("POST", "/api/bulk/disable", {"reason": "wrong template"})
        answered_s = Clock().monotonic()
        late_s = await stays_silent(stack, job, count) - answered_s
        print(f"\n{count}: the last request began {late_s:.3f} s after the answer")  # noqa: T201
        assert late_s <= 1.0
        await client.ask("POST", "/api/bulk/enable")
        await ends_exact(stack, job, count, eventually)


@pytest.mark.slow
async def test_by_the_variable_and_a_rolling_restart_in_under_two_minutes(
    stack: Stack, settings: Settings, eventually: Eventually
) -> None:
    count, clock = 5000, Clock()
    api, _ = await stack.add_api(eventually)
    job = await begun(stack, settings, eventually, count)
    decided_s = clock.monotonic()

    async def roll(**variables: str) -> None:
        nonlocal api
        await api.stop()
        api, _ = await stack.add_api(eventually, **variables)
        for child in stack.workers[:]:
            await child.stop()
            stack.workers.remove(child)
            await stack.add_workers(1, eventually, **variables)

    await roll(**OFF)
    rolled_s = clock.monotonic() - decided_s
    quiet_s = await stays_silent(stack, job, count) - decided_s
    print(f"\nthe last request began {quiet_s:.1f} s after the decision, all new at {rolled_s:.1f}")  # noqa: T201
    assert max(quiet_s, rolled_s) < 120
    await roll()
    await ends_exact(stack, job, count, eventually)
