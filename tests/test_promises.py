"""The nine sentences of the README, each held by the test of its name, at the smallest size.

`make faults` holds them at the size of the gate, `make torture` at that of a night.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from api.client import Client
from shared.archive import Archive, KeyRow
from shared.clock import Clock
from shared.ids import Ids
from tests.conftest import ROOT, Processes
from tests.e2e.stack import KEY as STACK_KEY
from tests.e2e.stack import Stack, sent, stack, workers_are_up
from tests.e2e.test_live_stream import KEY, body, fast, ready, user
from tests.faults.conftest import enumeration
from tests.faults.enumerate import Enumeration, singles
from tests.integration.test_worker import numbers

Eventually = Callable[..., Awaitable[Any]]
__all__ = ["enumeration", "fast", "stack", "user"]
# The kinds that leave most behind.
SMALL: Final = ("die_before", "die_after", "err_after", "stall_after")
WORKER_GRACE_S: Final = 25.0
CANARY: Final = "a text that nobody else may read"
OTHER: Final = "drb_9876543210_" + "o" * 43
BEARER: Final = {"Authorization": f"Bearer {OTHER}"}


def hold(enumeration: Enumeration, every: int, *scenarios: str) -> None:
    """Run scenarios clean and with a sample of their single faults; no invariant may break."""
    for scenario in scenarios:
        clean = enumeration.run(scenario)
        assert not clean.violations, str(clean)
        for plan in list(singles(clean.trace, SMALL))[::every]:
            run = enumeration.run(scenario, plan)
            assert not run.violations, str(run)


def test_accepted_is_durable(enumeration: Enumeration) -> None:
    """The API dies, or a store's answer is lost, at any step of a submission (I1, I12)."""
    hold(enumeration, 7, "submit")
    hold(enumeration, 31, "lost_job")


def test_one_outcome(enumeration: Enumeration) -> None:
    """Claims that two workers pass on, a cancel and a deadline in mid-job (I1)."""
    hold(enumeration, 37, "two_workers", "cancel", "deadline")


def test_no_blind_second_send(enumeration: Enumeration) -> None:
    """Answers that never come, a dead worker's intents, a stall beyond the lease (I2, I3)."""
    hold(enumeration, 31, "no_answer", "reap")


def test_unknown_is_bounded(enumeration: Enumeration) -> None:
    """What a dead worker and a wiped Redis leave in doubt, and nothing else (I6)."""
    hold(enumeration, 41, "reap", "wipe")


def test_numbers_agree(enumeration: Enumeration) -> None:
    """Retries in place and later, a pause, an archive that falls behind (I4, I5)."""
    hold(enumeration, 47, "retry", "moved", "pause", "archive")


@pytest.mark.usefixtures("settings", "user")
async def test_progress_resumes(fast: Processes, archive: Archive, eventually: Eventually) -> None:
    _, graph, _ = fast.sandbox("--rate", "1000")
    fast.environ["GRAPH_BASE_URL"] = graph
    (first, one), (_, two) = fast.api(), fast.api()
    fast.worker()
    await ready(one, eventually)
    await ready(two, eventually)
    await eventually(archive.default_sender, within_s=10)
    seen: list[tuple[str, dict[str, Any]]] = []
    async with Client([one, two], KEY) as client:
        job = (await client.submit(body(500)))["jobId"]
        async with asyncio.timeout(30):
            async for pair in client.watch(job):
                seen.append(pair)
                if len(seen) == 5:
                    first.send(signal.SIGKILL)
        ids = [tuple(map(int, event_id.split("-"))) for event_id, _ in seen]
        assert ids == sorted(set(ids))
        assert [e["type"] for _, e in seen].count("end") == 1
        last = seen[-1][1]
        assert (last["type"], last["state"]) == ("end", "completed")
        assert last["progress"]["sent"] == last["progress"]["total"] == 500
        for _, event in seen:
            p = event["progress"]
            done = p["sent"] + p["failed"] + p["skipped"] + p["cancelled"] + p["unknown"]
            assert p["done"] == done
            assert p["total"] == p["queued"] + p["in_flight"] + p["retrying"] + done
        assert [pair async for pair in client.watch(job, seen[-1][0])] == []
        again = [pair async for pair in client.watch(job)]
        assert [(i, e["type"]) for i, e in again] == [(seen[-1][0], "end")]


async def test_users_never_meet(stack: Stack, eventually: Eventually) -> None:
    """Another user's answers, and everybody's logs and metrics, show nothing of a job (I11)."""
    await stack.add_key()
    other = str(Ids().user_id())
    await stack.archive.add_user(other, "b@example.com", "hash", "user")
    digest = hashlib.sha256(OTHER.encode()).digest()
    row = KeyRow(
        id="9876543210", user_id=other, name="t", sha256=digest, scopes=["read", "send"],
        last4=OTHER[-4:], expires_at_ms=0, revoked=False, role="user", disabled=False,
    )  # fmt: skip
    await stack.archive.add_key(row)
    await stack.add_workers(1, eventually)
    _, origin = await stack.add_api(eventually)
    secrets = [CANARY, "15557654321"]
    async with Client(origin, STACK_KEY) as mine, Client(origin, OTHER) as theirs:
        message = {"kind": "text", "text": {"body": CANARY, "preview_url": False}}
        wish = {"recipients": [f"+{secrets[1]}"], "message": message, "sender": "main"}
        job = (await mine.submit({**wish, "campaignId": "c1"}))["jobId"]
        await eventually(lambda: stack.is_over(job), within_s=20)
        absent = Ids().job_id(0)
        paths = ["{}", "{}/recipients", "{}/recipients.csv", "{}/pause"]
        for path in ["/api/bulk/jobs/" + p for p in paths] + ["/realtime/bulk/{}"]:
            method = "POST" if path.endswith("pause") else "GET"
            answers = []
            for job_id in (job, absent):
                async with theirs.session.request(
                    method, origin + path.format(job_id), headers=BEARER
                ) as answer:
                    text = (await answer.text()).replace(job_id, "ID")
                    text = re.sub(r"req_[0-9a-z]{26}", "REQ", text)
                    answers.append((answer.status, text))
            assert answers[0] == answers[1], path
            assert answers[0][0] == 404, path
        listed = await theirs.ask("GET", "/api/bulk/jobs?campaignId=c1")
        assert listed["data"] == []
        logs = "".join(path.read_text() for path in stack.processes.folder.glob("*.log"))
    for secret in secrets:
        assert secret not in logs
    assert job in logs, "the log was not read"


async def test_stops_cleanly(stack: Stack, eventually: Eventually) -> None:
    for _ in range(2):
        stack.add_worker()
    await eventually(lambda: workers_are_up(stack, 2), within_s=30)
    job = await stack.submit(numbers(1200, 393331000000), sender="snd_fast")

    async def has_begun() -> bool:
        return await sent(stack, job) > 200

    await eventually(has_begun, within_s=30)
    leaving, clock = stack.workers[0], Clock()
    asked_s = clock.monotonic()
    leaving.send(signal.SIGTERM)
    await eventually(lambda: not leaving.is_running, within_s=15)
    # Answers come within 20 ms; the rest is a process that ends on a shared machine.
    assert clock.monotonic() - asked_s < WORKER_GRACE_S
    await eventually(lambda: stack.is_over(job), within_s=30)
    status = await stack.status(job)
    assert (status.tally.sent, status.tally.unknown) == (1200, 0)
    assert set(stack.accepted().values()) == {1}
    await stack.check(job, eventually)


def test_finishes_after_faults(enumeration: Enumeration) -> None:
    """A run that does not end within sentence 9's time after its last fault is a violation."""
    hold(enumeration, 41, "outage", "unreachable", "throttle")


def test_every_sentence_has_its_test_and_every_test_its_sentence() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    promised = re.findall(r"^\d\. \*\*.+?\*\* .+ `(test_[a-z_]+)`$", text, re.MULTILINE)
    source = (ROOT / "tests/test_promises.py").read_text(encoding="utf-8")
    held = re.findall(r"^(?:async )?def (test_[a-z_]+)\(", source, re.MULTILINE)
    assert len(promised) == 9
    assert promised == held[:-1]
