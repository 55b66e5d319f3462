"""A whole worker in this process, on real stores, against the sandbox."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api.progress import wait_of
from shared.archive import Archive, NewJob, SenderRow, pack_blob
from shared.clock import Clock
from shared.embedded.children import is_open
from shared.ids import Ids
from shared.models import Chunk, JobSpec, JobStatus, Reason, State, state_of
from shared.office import Act, Office
from shared.queue import Queue
from shared.sealing import Sealing
from shared.settings import Settings
from tests.conftest import Processes, replaced
from worker import app, suppression

IDS = Ids()
MESSAGE = b'{"kind":"text","text":{"body":"hello","preview_url":false}}'
Eventually = Callable[..., Awaitable[Any]]


class Bench:
    """Submits as the API does, and reads what came of it."""

    def __init__(self, queue: Queue, archive: Archive, ledger: Path, owner: str) -> None:
        self.queue, self.archive, self.ledger, self.owner = queue, archive, ledger, owner

    async def submit(
        self,
        phones: list[int],
        *,
        sender: str = "snd_main",
        message: bytes = MESSAGE,
        **more: Any,
    ) -> str:
        job, size, count = IDS.job_id(0), 50, len(phones)
        encoded = [
            msgspec.msgpack.encode(Chunk(phones[i : i + size])) for i in range(0, count, size)
        ]
        values: dict[str, Any] = {"created_ms": Clock().now_ms(), **more}
        await self.archive.add_job(
            NewJob(
                id=job, owner=self.owner, campaign_id=None, name=None, kind="text",
                template_name=None, template_language=None, sender_id=sender, sender_name="main",
                message=message, vars=[], chunk_size=size, recipients=count,
                blob=pack_blob(encoded), intake=b"{}", rate=0.0, weight=4, priority="normal",
                scheduled_ms=0, expires_ms=0, on_unknown="hold", reserved=count, step=count,
                born="b", created_ms=values["created_ms"],
            )
        )  # fmt: skip
        for first in range(0, len(encoded), 200):
            await self.queue.stage(job, first, encoded[first : first + 200])
        spec = JobSpec(job, sender, self.owner, count, size, count, count, message, [], **values)
        assert (await self.queue.submit(spec)).kind == "made"
        return job

    async def status(self, job: str) -> JobStatus:
        status = (await self.queue.statuses([job]))[0]
        assert status is not None
        return status

    async def is_over(self, job: str) -> bool:
        return (await self.status(job)).is_ended

    def accepted(self) -> Counter[str]:
        lines = [json.loads(line) for line in self.ledger.read_text().splitlines()]
        return Counter(line["to"] for line in lines if line["verdict"] == "accepted")

    def requests(self) -> Counter[str]:
        return Counter(json.loads(line)["to"] for line in self.ledger.read_text().splitlines())

    async def check(self, job: str, eventually: Eventually) -> None:
        """Hold counters, states and campaign_logs against each other."""
        status = await self.status(job)
        tally = Counter(state_of(byte).name.lower() for byte in await self.queue.states(job))

        async def is_archived() -> bool:
            row = await self.archive.job(job, None)
            assert row is not None
            done = row.sent + row.failed + row.skipped + row.unknown + row.cancelled
            return row.state in ("completed", "cancelled") and done == row.recipients

        # What a dead log writer had read is taken over after 30 s.
        await eventually(is_archived, within_s=40)
        row = await self.archive.job(job, None)
        assert row is not None
        logged = Counter(s.name.lower() for s, _ in (await self.archive.logged(job)).values())
        for name in ("sent", "failed", "skipped", "unknown", "cancelled"):
            found = (getattr(status.tally, name), tally[name], getattr(row, name), logged[name])
            assert len(set(found)) == 1, f"{name}: hash, states, row, logs = {found}"
        assert row.end_event == status.event


@pytest.fixture
def made(settings: Settings, processes: Processes, request: pytest.FixtureRequest) -> Any:
    words = getattr(request, "param", ["--rate", "100000", "--latency", "0", "--no-fsync"])
    _, origin, ledger = processes.sandbox(*words)
    changed = replaced(settings, graph_base_url=origin, worker_tick_ms=50)
    return changed, ledger


@pytest.fixture
async def bench(
    made: Any, queue: Queue, archive: Archive, eventually: Eventually
) -> AsyncIterator[Bench]:
    settings, ledger = made
    port = int(settings.graph_base_url.rsplit(":", 1)[1])
    await eventually(lambda: is_open(port), within_s=20)
    owner = str(IDS.user_id())
    await archive.add_user(owner, "a@example.com", "hash", "user")
    sealed = Sealing(settings.bulk_secret_key).seal("token")
    await archive.add_sender(SenderRow("snd_main", "main", "1001", sealed, rate=0.0))
    await archive.add_sender(SenderRow("snd_slow", "slow", "1002", sealed, rate=50.0))
    await queue.give_born(0, "b")
    stop = asyncio.Event()
    running = asyncio.create_task(app.run(settings, stop))
    yield Bench(queue, archive, ledger, owner)
    stop.set()
    await running


def numbers(count: int, first: int = 15551000000) -> list[int]:
    return [first + i for i in range(count)]


async def test_every_recipient_is_sent_once_and_all_counts_agree(
    bench: Bench, eventually: Eventually
) -> None:
    job = await bench.submit(numbers(2000, 393331000000))
    await eventually(lambda: bench.is_over(job), within_s=20)
    accepted = bench.accepted()
    assert (len(accepted), set(accepted.values())) == (2000, {1})
    await bench.check(job, eventually)


async def test_refusals_are_retried_or_final_and_stop_nobody(
    bench: Bench, eventually: Eventually
) -> None:
    good = numbers(200, 393331000000)
    # The sandbox's families: 8026 refused for good, 6100 once with 131000, 6200 twice.
    phones = [*good[:100], 15550008026, 15550016100, 15550026200, *good[100:]]
    job = await bench.submit(phones)
    await eventually(lambda: bench.is_over(job), within_s=20)
    status = await bench.status(job)
    assert (status.tally.sent, status.tally.failed) == (202, 1)
    requests = bench.requests()
    assert requests["+15550016100"] == 2
    assert requests["+15550026200"] == 3
    assert requests["+15550008026"] == 1
    await bench.check(job, eventually)


async def test_a_lost_answer_is_unknown_and_never_sent_again(
    bench: Bench, eventually: Eventually
) -> None:
    job = await bench.submit([15550015101, *numbers(20, 393331000000)])
    await eventually(lambda: bench.is_over(job), within_s=20)
    status = await bench.status(job)
    assert (status.tally.sent, status.tally.unknown) == (20, 1)
    assert bench.requests()["+15550015101"] == 1
    assert state_of((await bench.queue.states(job))[0]) == State.UNKNOWN
    await bench.check(job, eventually)


async def test_a_pause_stops_sending_and_a_resume_ends_exact(
    bench: Bench, eventually: Eventually
) -> None:
    job = await bench.submit(numbers(150, 393331000000), sender="snd_slow")

    async def has_begun() -> bool:
        return (await bench.status(job)).tally.sent > 10

    await eventually(has_begun, within_s=10)
    await bench.queue.control(job, "pause", by="a")

    async def has_stopped() -> bool:
        return (await bench.status(job)).tally.in_flight == 0

    await eventually(has_stopped)
    before = sum(bench.accepted().values())
    await Clock().sleep(1.0)  # 50 more would leave in it
    assert sum(bench.accepted().values()) == before
    await bench.queue.control(job, "resume", by="a")
    await eventually(lambda: bench.is_over(job), within_s=20)
    assert set(bench.accepted().values()) == {1}
    assert (await bench.status(job)).tally.sent == 150
    await bench.check(job, eventually)


async def test_a_cancel_settles_every_recipient(bench: Bench, eventually: Eventually) -> None:
    job = await bench.submit(numbers(300, 393331000000), sender="snd_slow")

    async def has_begun() -> bool:
        return (await bench.status(job)).tally.sent > 10

    await eventually(has_begun, within_s=10)
    await bench.queue.control(job, "cancel", by="a")
    await eventually(lambda: bench.is_over(job), within_s=10)
    tally = (await bench.status(job)).tally
    assert tally.sent + tally.cancelled == 300
    assert sum(bench.accepted().values()) == tally.sent
    await bench.check(job, eventually)


async def test_who_is_put_on_the_list_while_a_job_runs_is_skipped_without_a_request(
    bench: Bench, eventually: Eventually
) -> None:
    phones = numbers(200, 393331000000)
    job = await bench.submit(phones, sender="snd_slow")
    office, act = Office(bench.archive._pool), Act("cli", "suppression.add", "sup_a")
    # Position 199 starts after 3.7 s; an entry counts from 2 s after its commit on.
    await office.suppress(act, phones[199], "all", "", "api")
    await office.suppress(act._replace(object="sup_b"), phones[198], "marketing", "", "api")
    await office.suppress(act._replace(object="sup_c"), phones[197], "all", "", "api")
    await office.lift(act, "sup_c")
    await eventually(lambda: bench.is_over(job), within_s=20)
    status = await bench.status(job)
    assert (status.tally.sent, status.tally.skipped) == (199, 1)
    assert status.reasons == {int(Reason.SUPPRESSED): 1}
    assert f"+{phones[199]}" not in bench.requests()
    await bench.check(job, eventually)
    assert (await bench.archive.logged(job))[199] == (State.SKIPPED, 0)


async def test_on_a_list_that_nobody_could_read_for_long_no_claim_begins(
    bench: Bench, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(suppression, "OLD_S", -1.0)
        job = await bench.submit(numbers(100, 393331000000))

        async def is_released() -> bool:
            return (await bench.queue.stats(0, [])).ready > 0

        async def is_told() -> bool:
            wait = wait_of(await bench.status(job), Clock().now_ms())
            return wait is not None and wait.reason == "storage"

        await eventually(is_released)
        await eventually(is_told)
        assert not bench.requests()
        assert (await bench.status(job)).tally.in_flight == 0
    await eventually(lambda: bench.is_over(job), within_s=20)
    await bench.check(job, eventually)


async def test_a_sender_keeps_its_rate(bench: Bench, eventually: Eventually) -> None:
    start = Clock().monotonic()
    job = await bench.submit(numbers(150, 393331000000), sender="snd_slow")
    await eventually(lambda: bench.is_over(job), within_s=20)
    took_s = Clock().monotonic() - start
    # 150 at 50/s, less the burst of a quarter of a second.
    assert 2.5 <= took_s <= 4.5
    lines = [json.loads(line) for line in bench.ledger.read_text().splitlines()]
    starts = sorted(line["t_mono"] for line in lines)
    scale = 1.0 if starts[-1] - starts[0] < 100 else 1000.0
    most = max(sum(1 for t in starts if a <= t < a + 1 * scale) for a in starts)
    # The rate, the burst, and room for what a busy machine starts late (0.4 s of the rate).
    assert most <= 50 + 13 + 20


async def test_many_equal_content_errors_pause_the_job_and_leave_no_doubt(
    bench: Bench, eventually: Eventually
) -> None:
    # 131008 for each: the breaker opens at twenty in a row.
    job = await bench.submit([15550008008 + 10_000 * i for i in range(300)])

    async def is_paused() -> bool:
        status = await bench.status(job)
        return status.state == "paused" and status.tally.in_flight == 0

    await eventually(is_paused, within_s=20)
    status = await bench.status(job)
    assert status.by == "system"
    assert status.reason.startswith("breaker")
    assert status.tally.unknown == 0
    assert 20 <= status.tally.failed < 300
    assert status.tally.failed + status.tally.queued == 300
