"""What WhatsApp's API may do, each as whole jobs through the real worker, held to its class.

The numbers in the tables are the rows of the table of provider behaviours: what is asserted of each
is its outcomes, the requests for each recipient, and what its job and its sender wait for.
"""

from __future__ import annotations

import asyncio
import io
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from api.cli.main import app as command_line
from api.progress import wait_of
from api.wire import Wait
from shared.archive import Archive, NewJob, SenderRow, pack_blob
from shared.clock import Clock
from shared.embedded.postgres import Postgres
from shared.errors import ArchiveError
from shared.ids import Ids
from shared.models import Chunk, JobSpec, JobStatus, attempts_of
from shared.queue import Queue
from shared.sealing import Sealing
from shared.settings import Settings
from tests.conftest import replaced
from worker import app
from worker.retry import WAITS, Waits
from worker.sandbox.app import Sandbox
from worker.sandbox.behaviour import Behaviour, Config, Match, Raw, Script, Step
from worker.sandbox.ledger import Ledger

IDS = Ids()
TEXT = b'{"kind":"text","text":{"body":"hello","preview_url":false}}'
OFFER = b'{"kind":"template","template":{"name":"order_update","language_code":"en_US","components":[{"type":"body","parameters":[{"type":"text","text":"7"}]}]}}'  # noqa: E501 - one message
FIRST = 393330000000
SIZE = 50
Eventually = Callable[..., Awaitable[Any]]


class Provider:
    """The pretended Graph, the senders it knows, and what the jobs at the worker came to."""

    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        archive: Archive,
        folder: Path,
        eventually: Eventually,
    ) -> None:
        self.settings, self.queue, self.archive = settings, queue, archive
        self.eventually = eventually
        self.behaviour = Behaviour(Config(rate=0, latency_ms=0))
        self.ledger = Ledger(folder / "ledger.ndjson", fsync=False)
        self.sandbox = Sandbox(self.behaviour, self.ledger, Clock(), Ids(1))
        self.sealing = Sealing(settings.bulk_secret_key)
        self.clock = Clock()
        self.owner = str(IDS.user_id())
        self.next = FIRST
        self.stop = asyncio.Event()
        self.working: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self.sandbox.listen("127.0.0.1", 0)
        await self.archive.add_user(self.owner, "a@example.com", "hash", "user")
        await self.queue.give_born(0, "b")

    async def close(self) -> None:
        self.stop.set()
        if self.working is not None:
            await self.working
        await self.sandbox.close()

    def work(self, waits: Waits = WAITS, **changes: Any) -> None:
        """Start the worker."""
        given = {"graph_base_url": f"http://127.0.0.1:{self.sandbox.port}", "worker_tick_ms": 50}
        settings = replaced(self.settings, **{**given, **changes})
        self.working = asyncio.create_task(app.run(settings, self.stop, waits))

    async def sender(
        self, name: str, *, token: str = "", waba: str | None = None, rate: float = 0
    ) -> None:
        """Add a sender; its name is its id, and its number at Graph."""
        sealed = self.sealing.seal(token or f"token-of-{name}")
        await self.archive.add_sender(
            SenderRow(name, name, name, sealed, waba_id=waba, rate=float(rate))
        )

    async def row(self, name: str) -> SenderRow:
        row = await self.archive.sender_by_name_or_id(name)
        assert row is not None
        return row

    def phones(self, count: int) -> list[int]:
        self.next += count
        return list(range(self.next - count, self.next))

    async def job(
        self, phones: list[int], sender: str, *, template: bool = False, on_unknown: str = "hold"
    ) -> str:
        """Submit as the API does."""
        job, message, count = IDS.job_id(0), OFFER if template else TEXT, len(phones)
        chunks = [
            msgspec.msgpack.encode(Chunk(phones[i : i + SIZE])) for i in range(0, count, SIZE)
        ]
        now_ms = self.clock.now_ms()
        await self.archive.add_job(
            NewJob(
                id=job, owner=self.owner, campaign_id=None, name=None,
                kind="template" if template else "text",
                template_name="order_update" if template else None,
                template_language="en_US" if template else None, sender_id=sender,
                sender_name=sender, message=message, vars=[], chunk_size=SIZE, recipients=count,
                blob=pack_blob(chunks), intake=b"{}", rate=0.0, weight=4, priority="normal",
                scheduled_ms=0, expires_ms=0, on_unknown=on_unknown, reserved=count, step=count,
                born="b", created_ms=now_ms,
            )
        )  # fmt: skip
        await self.queue.stage(job, 0, chunks)
        spec = JobSpec(job, sender, self.owner, count, SIZE, count, count, message, [],
                       on_unknown=on_unknown, created_ms=now_ms)  # fmt: skip
        assert (await self.queue.submit(spec)).kind == "made"
        return job

    def script(self, *steps: Step, **match: Any) -> None:
        self.behaviour.scripts.append(Script(Match(**match), list(steps)))

    def asked(self, phone: int) -> int:
        found = self.ledger.counts.get(f"+{phone}")
        return found.requests if found else 0

    def accepted(self, phone: int) -> int:
        found = self.ledger.counts.get(f"+{phone}")
        return found.accepted if found else 0

    async def status(self, job: str) -> JobStatus:
        status = (await self.queue.statuses([job]))[0]
        assert status is not None
        return status

    async def waits(self, job: str, reason: str, within_s: float = 10) -> Wait:
        """Return what the job shows once it waits for `reason` and nothing of it is in the air."""

        async def does() -> Wait | None:
            status = await self.status(job)
            wait = wait_of(status, self.clock.now_ms())
            is_it = wait is not None and wait.reason == reason and not status.tally.in_flight
            return wait if is_it else None

        found: Wait = await self.eventually(does, within_s=within_s)
        return found

    async def over(self, job: str, within_s: float = 20) -> JobStatus:
        """Return the job's last status once it has ended and every outcome is logged."""

        async def is_over() -> bool:
            row = await self.archive.job(job, None)
            assert row is not None
            done = row.sent + row.failed + row.skipped + row.unknown + row.cancelled
            return row.state in ("completed", "cancelled") and done == row.recipients

        await self.eventually(is_over, within_s=within_s)
        return await self.status(job)

    async def is_untouched(self, job: str) -> None:
        """Hold that nobody has an outcome or has used an attempt, once no try is on its way."""

        async def are_back() -> bool:
            return set(await self.queue.states(job)) == {0}

        await self.eventually(are_back, within_s=5)
        assert (await self.status(job)).tally.done == 0


@pytest.fixture
async def provider(
    settings: Settings, queue: Queue, archive: Archive, tmp_path: Path, eventually: Eventually
) -> AsyncIterator[Provider]:
    made = Provider(settings, queue, archive, tmp_path, eventually)
    await made.open()
    yield made
    await made.close()


def html(status: int, **headers: str) -> Step:
    return Step(record=False, raw=Raw(status, "<html>no</html>", headers=headers))


class Row(NamedTuple):
    """What a provider does to ten of a hundred, what they come to, and in how many requests."""

    steps: list[Step]
    outcome: str
    requests: int = 1
    code: int | None = None


LOST = Step(record=True, accept=True)
TAKEN = Step(accept=True)
SHORT = Waits(backoff=(1.0, 1.0, 2.0), pair=(1.0, 1.0, 1.0, 1.0, 2.0), scale=1 / 43_200)
lost = msgspec.structs.replace
ROWS = {
    "3 reset after the request": Row([lost(LOST, cut="after_read", reset=True)], "unknown"),
    "3 end of file after the request": Row([lost(LOST, cut="after_read")], "unknown"),
    "3 end of file in the headers": Row([lost(LOST, cut="in_headers")], "unknown"),
    "4 no answer though it was taken": Row([lost(LOST, hang=True)], "unknown"),
    "4 an answer byte by byte": Row([lost(LOST, drip_bytes_per_s=5)], "unknown"),
    "5 the body is cut": Row([lost(LOST, cut="in_body")], "unknown"),
    "6 not JSON": Row([Step(record=True, raw=Raw(200, "{"))], "unknown"),
    "6 HTML": Row([Step(record=True, raw=Raw(200, "<html>ok</html>"))], "unknown"),
    "6 no id": Row([Step(record=True, raw=Raw(200, '{"messages":[{}]}'))], "unknown"),
    "7 502": Row([Step(record=True, raw=Raw(502, "<html>502</html>"))], "unknown"),
    "7 504": Row([Step(record=True, raw=Raw(504, ""))], "unknown"),
    "8 too long": Row([Step(record=True, raw=Raw(200, " " * 70_000))], "unknown"),
    "8 too long once unpacked": Row(
        [Step(record=True, gzip=True, raw=Raw(200, " " * 70_000))], "unknown"
    ),
    "8 endless": Row([lost(LOST, endless=True)], "unknown"),
    "8 a header without end": Row(
        [Step(record=True, raw=Raw(200, "", headers={"X-Fill": "a" * 70_000}))], "unknown"
    ),
    "8 headers without end": Row(
        [Step(record=True, raw=Raw(200, "", headers={f"X-{n}": "a" for n in range(20_000)}))],
        "unknown",
    ),
    "10 slow": Row([lost(TAKEN, delay_ms=400)], "sent"),
    "10 chunked": Row([lost(TAKEN, chunked=True)], "sent"),
    "10 gzip": Row([lost(TAKEN, gzip=True, chunked=True)], "sent"),
    "10 more fields": Row(
        [lost(TAKEN, merge={"contacts": [{"wa_id": "99", "x": 1}], "more": {"a": []}})], "sent"
    ),
    "11 held": Row([lost(TAKEN, message_status="held_for_quality_assessment")], "sent"),
    "13 one id for all": Row([lost(TAKEN, wamid="wamid.ONE")], "sent"),
    "14 an error with 200": Row([Step(code=131026, http=200)], "failed", 1, 131026),
    "14 an error with 503": Row([Step(code=131026, http=503)], "failed", 1, 131026),
    "16 pair, then not": Row([Step(code=131056, times=2), TAKEN], "sent", 3),
    "16 pair": Row([Step(code=131056, http=429)], "failed", 6, 131056),
    "18 131000, then not": Row([Step(code=131000, times=2), TAKEN], "sent", 3),
    "18 131000": Row([Step(code=131000)], "failed", 4, 131000),
    "18 408": Row([lost(html(408), times=1), TAKEN], "sent", 2),
    "18 425": Row([html(425)], "failed", 4),
    "18 2": Row([Step(code=2)], "failed", 4, 2),
    "18 131016, then not": Row([Step(code=131016, times=3), TAKEN], "sent", 4),
    "18 133004": Row([Step(code=133004)], "failed", 4, 133004),
    "1 then a content error": Row([Step(code=1)], "failed", 3, 1),
    "19 130472": Row([Step(code=130472)], "failed", 1, 130472),
    "19 131021": Row([Step(code=131021)], "failed", 1, 131021),
    "19 131026": Row([Step(code=131026)], "failed", 1, 131026),
    "19 131047": Row([Step(code=131047)], "failed", 1, 131047),
    "19 130403": Row([Step(code=130403)], "failed", 1, 130403),
    "19 131050": Row([Step(code=131050)], "failed", 1, 131050),
    "19 131049": Row([Step(code=131049)], "failed", 2, 131049),
    "19 131049, then not": Row([Step(code=131049, times=1), TAKEN], "sent", 2),
    "20 132000 for a few": Row([Step(code=132000)], "failed", 1, 132000),
    "24 unlisted, transient": Row([Step(code=999_001, transient=True)], "failed", 4, 999_001),
    "24 unlisted, 5xx": Row([Step(code=999_001, http=503)], "failed", 4, 999_001),
    "24 unlisted": Row([Step(code=999_001)], "failed", 1, 999_001),
}


async def test_ten_of_a_hundred_come_to_what_their_row_says_and_ninety_are_sent(
    provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    await provider.sender("main")
    phones = {name: provider.phones(100) for name in ROWS}
    for name, row in ROWS.items():
        for phone in phones[name][::10]:
            provider.script(*row.steps, to=str(phone))
    provider.work(SHORT, graph_timeout_s=1.5, bulk_retry_base_ms=50)
    jobs = {name: await provider.job(phones[name], "main") for name in ROWS}
    found, expected = {}, {}
    for name, row in ROWS.items():
        status = await provider.over(jobs[name], within_s=60)
        ill, well = phones[name][::10], [p for i, p in enumerate(phones[name]) if i % 10]
        tally = status.tally
        codes = await provider.archive.error_counts(jobs[name])
        found[name] = (
            {"sent": tally.sent, "failed": tally.failed, "unknown": tally.unknown},
            {provider.asked(phone) for phone in ill},
            {provider.asked(phone) for phone in well},
            codes,
        )
        counts = {"sent": 90, "failed": 0, "unknown": 0}
        counts[row.outcome] += 10
        expected[name] = (counts, {row.requests}, {1}, {row.code: 10} if row.code else {})
    assert found == expected
    suppressed = {(s.phone, s.scope, s.reason) for s in await provider.archive.suppressions()}
    assert suppressed == {
        (phone, scope, code)
        for name, scope, code in (
            ("19 130403", "all", "130403"),
            ("19 131050", "marketing", "131050"),
        )
        for phone in phones[name][::10]
    }
    assert "provider_anomaly" in capsys.readouterr().out


async def test_taken_and_never_heard_of_again_is_sent_and_not_delivered(
    provider: Provider,
) -> None:
    # Row 12: no webhook ever comes. Nobody is asked for again, and nothing waits for one.
    await provider.sender("main")
    phones = provider.phones(1000)
    provider.work(SHORT)
    job = await provider.job(phones, "main")
    status = await provider.over(job)
    assert (status.tally.sent, status.tally.done) == (1000, 1000)
    assert (status.delivered, status.read, status.undelivered) == (0, 0, 0)
    assert {provider.asked(phone) for phone in phones} == {1}
    row = await provider.archive.job(job, None)
    assert row is not None
    assert (row.state, row.delivered, row.read, row.undelivered) == ("completed", 0, 0, 0)
    # Nothing is left to be asked for again.
    assert {attempts_of(byte) for byte in await provider.queue.states(job)} == {1}
    assert not (await provider.queue.stats(0, [])).ready


async def test_a_resend_is_ordered_by_the_job_and_ends(provider: Provider) -> None:
    await provider.sender("main")
    once, always = provider.phones(10), provider.phones(10)
    for phone in once:
        provider.script(lost(LOST, cut="after_read", times=1), TAKEN, to=str(phone))
    for phone in always:
        provider.script(lost(LOST, cut="after_read"), to=str(phone))
    provider.work(SHORT, bulk_retry_base_ms=50)
    job = await provider.job(once + always + provider.phones(80), "main", on_unknown="resend")
    tally = (await provider.over(job)).tally
    assert (tally.sent, tally.unknown, tally.failed) == (90, 10, 0)
    assert {provider.asked(phone) for phone in once} == {2}
    assert {provider.asked(phone) for phone in always} == {4}


class Stop(NamedTuple):
    """An answer that stops more than its recipient, and what the others of its scope are."""

    step: Step
    scope: str
    why: str


# Its own token and account for each: the scopes of one do not meet those of another.
PARKS = [
    Stop(Step(code=131057), "sender", "sender:131057"),
    Stop(Step(code=80007), "waba", "waba:80007"),
    Stop(Step(code=80008), "waba", "waba:80008"),
    Stop(Step(code=4, http=429), "token", "app:4"),
]
SENDER_PAUSES = [
    *(Stop(Step(code=code), "sender", f"sender:{code}") for code in (131048, 131045, 133010, 33)),
    *(Stop(Step(code=code), "waba", f"waba:{code}") for code in (131031, 368, 131042, 131064)),
    Stop(html(302, Location="/v22.0/elsewhere/messages"), "sender", "sender:http 302"),
    Stop(html(307, Location="/v22.0/elsewhere/messages"), "sender", "sender:http 307"),
    Stop(html(404), "sender", "sender:http 404"),
]
TOKEN_PAUSES = [
    *(Stop(Step(code=code), "token", f"token:{code}") for code in (0, 3, 10, 104, 190, 131005)),
    *(Stop(Step(code=code), "token", f"token:{code}") for code in (200, 250, 299)),
    Stop(html(401), "token", "token:http 401"),
    Stop(html(403), "token", "token:http 403"),
]


class Stopped:
    """For each stop three senders: the one that met it, one of its token, one of its account."""

    def __init__(self, provider: Provider, stops: list[Stop]) -> None:
        self.p, self.stops = provider, stops
        self.jobs: dict[tuple[int, str], str] = {}
        self.phones: dict[tuple[int, str], list[int]] = {}

    async def submit(self, i: int, kin: str) -> None:
        phones = self.phones[i, kin] = self.p.phones(100 if kin == "met" else 10)
        self.jobs[i, kin] = await self.p.job(phones, f"{kin}{i}")

    def stopped(self, i: int) -> set[str]:
        return {"met", self.stops[i].scope} - {"sender"}

    async def meet(self, waits: Waits) -> None:
        """Let all meet their errors, then ask the kin of each."""
        for i, stop in enumerate(self.stops):
            await self.p.sender(f"met{i}", token=f"t{i}", waba=f"w{i}")
            await self.p.sender(f"token{i}", token=f"t{i}", waba=f"v{i}")
            await self.p.sender(f"waba{i}", token=f"u{i}", waba=f"w{i}")
            self.p.script(stop.step, sender=f"met{i}")
        self.p.work(waits)
        for i in range(len(self.stops)):
            await self.submit(i, "met")
        for i in range(len(self.stops)):

            async def is_stopped(name: str = f"met{i}") -> bool:
                return (await self.p.row(name)).state != "active"

            await self.p.eventually(is_stopped, within_s=10)
        # Graph has said it once: what comes after the stop is taken.
        self.p.behaviour.scripts.clear()
        for i in range(len(self.stops)):
            for kin in ("token", "waba"):
                await self.submit(i, kin)

    async def waits(self, reason: str) -> dict[tuple[int, str], Wait]:
        """Return what the jobs of each scope wait for; the others go on at once, and are over."""
        found = {}
        for i in range(len(self.stops)):
            for kin in ("met", "token", "waba"):
                if kin in self.stopped(i):
                    found[i, kin] = await self.p.waits(self.jobs[i, kin], reason)
                    await self.p.is_untouched(self.jobs[i, kin])
                else:
                    assert (await self.p.over(self.jobs[i, kin])).tally.sent == 10
        return found

    async def rows(self) -> dict[str, tuple[str, str]]:
        found = {}
        for i in range(len(self.stops)):
            for kin in ("met", "token", "waba"):
                row = await self.p.row(f"{kin}{i}")
                found[row.name] = (row.state, row.why)
        return found

    def expected(self, state: str) -> dict[str, tuple[str, str]]:
        return {
            f"{kin}{i}": (state, stop.why) if kin in self.stopped(i) else ("active", "")
            for i, stop in enumerate(self.stops)
            for kin in ("met", "token", "waba")
        }

    async def is_sent_once(self) -> None:
        """Hold that everybody was sent to, and was asked for again at most once for it."""
        for key, job in self.jobs.items():
            tally = (await self.p.over(job)).tally
            assert tally.sent == tally.total, (key, tally)
            assert {self.p.accepted(phone) for phone in self.phones[key]} == {1}
            asked = Counter(self.p.asked(phone) for phone in self.phones[key])
            assert set(asked) <= {1, 2}
            # What was in the air when the first answer came, and no more.
            assert asked[2] <= 30


async def test_a_call_limit_holds_its_scope_and_ends_by_itself(provider: Provider) -> None:
    stopped = Stopped(provider, PARKS)
    await stopped.meet(msgspec.structs.replace(WAITS, scale=1 / 15))
    waits = await stopped.waits("sender_blocked")
    assert await stopped.rows() == stopped.expected("blocked")
    assert all(wait.until and wait.until.startswith("20") for wait in waits.values())
    assert "80007: WABA reached its rate limit" in waits[1, "waba"].detail
    await stopped.is_sent_once()
    met = [await provider.row(f"met{i}") for i in range(len(PARKS))]
    # However many were in the air: written once, and an acceptance ends the row of parks.
    assert {(row.version, row.parks) for row in met} == {(2, 0)}


async def test_a_pause_of_a_number_or_its_account_waits_for_an_operator(
    provider: Provider,
) -> None:
    stopped = Stopped(provider, SENDER_PAUSES)
    await stopped.meet(WAITS)
    waits = await stopped.waits("sender_paused")
    assert await stopped.rows() == stopped.expected("paused")
    assert {wait.by for wait in waits.values()} == {"system"}
    assert {wait.until for wait in waits.values()} == {None}
    # A redirect was not followed: nobody heard of the token elsewhere.
    assert "elsewhere" not in provider.ledger.times
    for name, (state, _) in stopped.expected("paused").items():
        if state == "paused":
            await provider.archive.set_sender_state(name, "active", "", 0, "operator")
    await stopped.is_sent_once()


async def test_a_refused_token_stops_all_that_use_it_until_another_is_stored(
    provider: Provider,
) -> None:
    stopped = Stopped(provider, TOKEN_PAUSES)
    await stopped.meet(WAITS)
    await stopped.waits("token_invalid")
    assert await stopped.rows() == stopped.expected("paused")
    for name, (state, _) in stopped.expected("paused").items():
        if state == "paused":
            row, sealed = await provider.row(name), provider.sealing.seal("another")
            await provider.archive.add_sender(msgspec.structs.replace(row, token_sealed=sealed))
    await stopped.is_sent_once()


async def test_a_call_limit_that_stays_doubles_and_after_ten_becomes_a_pause(
    provider: Provider,
) -> None:
    await provider.sender("main", waba="w")
    provider.script(Step(code=80007), sender="main")
    provider.work(msgspec.structs.replace(WAITS, scale=1 / 6000))
    phones = provider.phones(100)
    job = await provider.job(phones, "main")
    await provider.waits(job, "sender_paused", within_s=20)
    await provider.is_untouched(job)
    assert (await provider.row("main")).why == "waba:80007"
    provider.behaviour.scripts.clear()
    await provider.archive.set_sender_state("main", "active", "", 0, "operator")
    assert (await provider.over(job)).tally.sent == 100
    assert {provider.accepted(phone) for phone in phones} == {1}


async def test_the_time_that_graph_names_is_waited_for(provider: Provider) -> None:
    await provider.sender("main", waba="w")
    provider.behaviour.config.regain_min = 5
    provider.script(Step(code=80007, times=1), TAKEN, sender="main")
    provider.work(msgspec.structs.replace(WAITS, scale=1 / 100))
    job = await provider.job(provider.phones(1), "main")
    await provider.waits(job, "sender_blocked")
    assert (await provider.over(job)).tally.sent == 1
    refused, taken = provider.ledger.times["main"]
    assert 3.0 <= taken - refused <= 4.5


async def test_nobody_is_touched_while_graph_refuses_the_connection(provider: Provider) -> None:
    await provider.sender("main")
    port = provider.sandbox.port
    provider.sandbox._shut()
    provider.work(msgspec.structs.replace(WAITS, endpoint=0.2, endpoint_max=1.0))
    phones = provider.phones(100)
    job = await provider.job(phones, "main")
    await provider.waits(job, "graph_unreachable")
    # It is asked again and again, and the job shows why all the while.
    await provider.clock.sleep(1.5)
    await provider.waits(job, "graph_unreachable")
    await provider.is_untouched(job)
    await provider.sandbox.listen("127.0.0.1", port)
    assert (await provider.over(job)).tally.sent == 100
    assert {provider.asked(phone) for phone in phones} == {1}
    assert {attempts_of(byte) for byte in await provider.queue.states(job)} == {1}


@pytest.mark.parametrize("cause", ["dns", "tls", "silence"])
async def test_a_graph_that_cannot_be_reached_costs_nobody_an_attempt(
    provider: Provider, cause: str
) -> None:
    # A listener whose queue is full lets no connection be made.
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = [socket.socket() for _ in range(4)]
    for each in waiting:
        each.setblocking(False)  # noqa: FBT003 - the socket's own way
        each.connect_ex(full.getsockname())
    urls = {
        "dns": "http://graph.invalid",
        "tls": f"https://127.0.0.1:{provider.sandbox.port}",
        "silence": f"http://127.0.0.1:{full.getsockname()[1]}",
    }
    await provider.sender("main")
    waits = msgspec.structs.replace(WAITS, endpoint=0.2, endpoint_max=1.0)
    provider.work(waits, graph_base_url=urls[cause], graph_connect_timeout_s=0.3)
    job = await provider.job(provider.phones(100), "main")
    await provider.waits(job, "graph_unreachable")
    await provider.is_untouched(job)
    assert provider.ledger.seq == 0
    await provider.queue.control(job, "cancel", by="a")
    assert (await provider.over(job)).tally.cancelled == 100
    for each in (full, *waiting):
        each.close()


async def test_a_provider_that_dies_in_mid_call_leaves_doubt_about_the_calls_alone(
    provider: Provider,
) -> None:
    await provider.sender("main", rate=100)
    phones = provider.phones(100)
    hanging = phones[40:43]
    for phone in hanging:
        provider.script(lost(LOST, hang=True), to=str(phone))
    port = provider.sandbox.port
    provider.work(msgspec.structs.replace(WAITS, endpoint=0.2, endpoint_max=1.0))
    job = await provider.job(phones, "main")
    await provider.eventually(lambda: all(map(provider.asked, hanging)), within_s=10)
    provider.sandbox._shut()
    await provider.waits(job, "graph_unreachable")
    await provider.sandbox.listen("127.0.0.1", port)
    status = await provider.over(job)
    # The two lanes that did not hang may have had a request on its way, and so may the five of the
    # claim that begins in the meantime.
    assert 3 <= status.tally.unknown <= 3 + 2 + 5
    assert status.tally.sent == 100 - status.tally.unknown
    # The far side had taken those it never answered: a second request would have been a copy.
    assert {provider.accepted(phone) for phone in hanging} == {1}
    assert max(map(provider.asked, phones)) == 1


@pytest.mark.parametrize(
    ("step", "block_s"),
    [
        (Step(code=130429, delay_ms=150), 1.0),
        (lost(html(429), delay_ms=150), 1.0),
        (lost(html(429, **{"Retry-After": "2"}), delay_ms=150), 2.0),
    ],
)
async def test_a_throttle_cuts_the_rate_once_and_costs_nobody_an_attempt(
    provider: Provider, step: Step, block_s: float
) -> None:
    await provider.sender("main", rate=200)
    phones = provider.phones(100)
    for phone in phones[20:24]:
        provider.script(step, TAKEN, to=str(phone))
    provider.work()
    job = await provider.job(phones, "main")
    wait = await provider.waits(job, "sender_blocked")
    assert wait.until is not None
    status = await provider.over(job)
    assert status.tally.sent == 100
    assert {provider.accepted(phone) for phone in phones} == {1}
    assert {attempts_of(byte) for byte in await provider.queue.states(job)} == {1}
    assert sum(provider.asked(phone) for phone in phones) == 104
    # Four were in the air and all said the same: one cut.
    assert 139 <= (await provider.queue.sender_status(0, "main")).rate < 195
    times = provider.ledger.times["main"]
    longest = max(b - a for a, b in zip(times, list(times)[1:], strict=False))
    assert block_s - 0.3 <= longest <= block_s + 1.0


BREAKERS = (100, 130497, 131008, 131009, 131051, 132000, 132012, 999_001)


async def test_a_content_error_opens_the_breaker_and_the_repaired_job_goes_on(
    provider: Provider,
) -> None:
    jobs, phones = {}, {}
    for code in BREAKERS:
        await provider.sender(f"s{code}", rate=40)
        provider.script(Step(code=code), sender=f"s{code}")
    provider.work()
    for code in BREAKERS:
        phones[code] = provider.phones(100)
        jobs[code] = await provider.job(phones[code], f"s{code}")
    failed = {}
    for code in BREAKERS:
        wait = await provider.waits(jobs[code], "paused")
        assert wait.by == "system"
        assert str(code) in wait.detail or code == 999_001
        tally = (await provider.status(jobs[code])).tally
        failed[code] = tally.failed
        # The threshold, and what leaves in a quarter of a second until everybody knows.
        assert 20 <= tally.failed <= 40
        assert tally.failed + tally.queued == 100
        assert max(map(provider.asked, phones[code])) == 1
        assert (await provider.row(f"s{code}")).state == "active"
    provider.behaviour.scripts.clear()
    for code in BREAKERS:
        await provider.queue.control(jobs[code], "resume", by="a")
    for code in BREAKERS:
        tally = (await provider.over(jobs[code])).tally
        assert (tally.sent, tally.failed) == (100 - failed[code], failed[code])
        assert await provider.archive.error_counts(jobs[code]) == {code: failed[code]}
        assert {provider.asked(phone) for phone in phones[code]} == {1}


async def test_a_template_that_graph_refuses_pauses_every_job_that_uses_it(
    provider: Provider,
) -> None:
    codes = (132001, 132015, 132016, 132007, 134102)
    jobs = {}
    for code in codes:
        for name, waba in (("met", "w"), ("kin", "w"), ("other", "v")):
            await provider.sender(f"{name}{code}", waba=f"{waba}{code}", rate=50)
        provider.script(Step(code=code), sender=f"met{code}")
    provider.work()
    for code in codes:
        for name, kin, is_template in (
            ("same", "kin", True),
            ("text", "kin", False),
            ("elsewhere", "other", True),
            ("met", "met", True),
        ):
            phones = provider.phones(100 if is_template else 20)
            jobs[code, name] = await provider.job(phones, f"{kin}{code}", template=is_template)
    for code in codes:
        for name in ("met", "same"):
            wait = await provider.waits(jobs[code, name], "template_paused")
            assert (wait.by, f"({code}: " in wait.detail) == ("system", True)
            assert (await provider.status(jobs[code, name])).tally.failed == 0
        await provider.is_untouched(jobs[code, "met"])
    provider.behaviour.scripts.clear()
    for code in codes:
        for name in ("text", "elsewhere"):
            tally = (await provider.over(jobs[code, name])).tally
            assert tally.sent == tally.total
        for name in ("met", "same"):
            await provider.queue.control(jobs[code, name], "resume", by="a")
    for job in jobs.values():
        tally = (await provider.over(job)).tally
        assert tally.sent == tally.total


JOB_PAUSES = {
    "413": html(413),
    **{str(code): Step(code=code) for code in (131055, 131063, 134011, 134100, 139200)},
}


async def test_a_refusal_of_the_whole_job_pauses_it_and_no_other(provider: Provider) -> None:
    for name, step in JOB_PAUSES.items():
        await provider.sender(f"s{name}")
        provider.script(step, sender=f"s{name}")
    provider.work()
    jobs = {name: await provider.job(provider.phones(100), f"s{name}") for name in JOB_PAUSES}
    for name, job in jobs.items():
        wait = await provider.waits(job, "paused")
        assert (wait.by, name in wait.detail) == ("system", True)
        await provider.is_untouched(job)
        assert (await provider.row(f"s{name}")).state == "active"
    provider.behaviour.scripts.clear()
    for name, job in jobs.items():
        after = await provider.job(provider.phones(10), f"s{name}")
        assert (await provider.over(after)).tally.sent == 10
        await provider.queue.control(job, "resume", by="a")
        assert (await provider.over(job)).tally.sent == 100


async def test_a_token_revoked_in_mid_job_fails_nobody_and_another_one_lets_it_go_on(
    provider: Provider, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    for name, token in (("main", "shared"), ("kin", "shared"), ("other", "own")):
        await provider.sender(name, token=token, rate=100)
    provider.work()
    phones = {name: provider.phones(300) for name in ("main", "kin", "other")}
    jobs = {name: await provider.job(phones[name], name) for name in phones}
    await provider.eventually(lambda: provider.asked(phones["main"][100]), within_s=10)
    provider.behaviour.config.revoked.append("shared")
    for name in ("main", "kin"):
        wait = await provider.waits(jobs[name], "token_invalid")
        assert "190" in wait.detail
        tally = (await provider.status(jobs[name])).tally
        assert (tally.failed, tally.unknown, tally.retrying) == (0, 0, 0)
        assert 0 < tally.sent == 300 - tally.queued
    assert (await provider.over(jobs["other"])).tally.sent == 300
    for name in ("main", "kin"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("rotated"))
        await asyncio.to_thread(command_line, ["sender", "token", name, "--stdin"])
    for name, job in jobs.items():
        tally = (await provider.over(job)).tally
        assert (tally.sent, tally.failed) == (300, 0)
        assert {provider.accepted(phone) for phone in phones[name]} == {1}
        # Only what was in the air when the token went was asked for twice.
        assert sum(provider.asked(phone) - 1 for phone in phones[name]) <= 30
        assert {attempts_of(byte) for byte in await provider.queue.states(job)} == {1}


async def test_a_stop_holds_while_postgresql_is_away_and_is_written_when_it_is_back(
    provider: Provider, postgres: Postgres
) -> None:
    await provider.sender("main", rate=50)
    provider.work(database_timeout_s=1)
    phones = provider.phones(100)
    job = await provider.job(phones, "main")
    await provider.eventually(lambda: provider.asked(phones[20]), within_s=10)
    await postgres.stop()
    try:
        provider.script(Step(code=190), sender="main")
        await provider.waits(job, "token_invalid")
        refused = provider.ledger.codes["190"]
        await provider.clock.sleep(1.0)
        # It is stopped in Redis: nobody asks Graph again and again meanwhile.
        assert provider.ledger.codes["190"] == refused <= 10
    finally:
        await postgres.start()

    async def is_written() -> bool:
        try:
            row = await provider.row("main")
        except ArchiveError:
            return False
        return (row.state, row.why) == ("paused", "token:190")

    await provider.eventually(is_written, within_s=20)
    provider.behaviour.scripts.clear()
    row = await provider.row("main")
    await provider.archive.add_sender(
        msgspec.structs.replace(row, token_sealed=provider.sealing.seal("another"))
    )
    tally = (await provider.over(job)).tally
    assert (tally.sent, tally.failed, tally.unknown) == (100, 0, 0)
    assert {provider.accepted(phone) for phone in phones} == {1}


async def test_a_number_that_gets_nothing_through_at_its_lowest_rate_is_paused(
    provider: Provider,
) -> None:
    await provider.sender("main", rate=1)
    provider.script(Step(code=130429), sender="main")
    provider.work(msgspec.structs.replace(WAITS, floor=2.0))
    job = await provider.job(provider.phones(10), "main")
    await provider.waits(job, "sender_paused", within_s=20)
    assert (await provider.row("main")).why == "sender:throttled_out"
    await provider.is_untouched(job)
