"""What webhooks say reaches both stores and the snapshot, whatever their order and who dies."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any

import pytest

from shared import keys
from shared.graph_codes import reason_of
from shared.models import State, state_of
from shared.results import RecipientFilter, Results
from tests.integration.postbox import AT_S, FIRST, Eventually, Post, body, status
from worker.receipts import Consumer


async def test_receipts_move_up_and_are_counted_everywhere(post: Post) -> None:
    job = await post.job(State.SENT, State.SENT, State.SENT, State.FAILED)
    ids = [f"wamid.{job[-6:]}{i}" for i in range(3)]
    await post.said(
        status(ids[0], "read", 5, of=(job, 0)),
        status(ids[0], "delivered", 3, of=(job, 0)),
        status(ids[1], "delivered", 2),  # by the message's id alone
        status(ids[2], "failed", 4, of=(job, 2), code=131026),
    )
    await post.said(status(ids[0], "sent", 1, of=(job, 0)))
    await post.work()
    assert await post.figures(job) == [(0, 3, 2, 1, 1)] * 4
    first, third = await post.row(job, 0), await post.row(job, 2)
    assert (first["receipt"], third["receipt"], third["outcome"]) == (4, 2, "sent")
    assert first["receipt_at"].timestamp() == AT_S + 5
    assert first["receipt_delivered_at"].timestamp() == AT_S + 3
    assert first["receipt_sent_at"].timestamp() == AT_S + 1
    assert third["receipt_code"] == 131026
    assert "15550000000" not in third["receipt_error"]
    assert await post.waiting() == 0
    assert post.metric("receipts_total", status="delivered") == 2
    assert post.metric("receipts_total", status="failed") == 1
    assert post.metric("receipt_delay_seconds_sum", status="failed") == 4


async def test_a_replay_changes_nothing_and_tells_the_totals_again(post: Post) -> None:
    job = await post.job(State.SENT)
    told = [status(f"wamid.{job[-6:]}0", word, of=(job, 0)) for word in ("sent", "delivered")]
    for _ in range(3):
        await post.said(*told)
        await post.work()
    row = await post.archive.job(job, None)
    assert row is not None
    assert (row.receipts_version, row.delivered) == (1, 1)
    client: Any = post.queue.visitors
    await client.hdel(keys.job(job), "receipts_version", "delivered")
    await post.said(*told)
    await post.work()
    assert await post.figures(job) == [(0, 1, 1, 0, 0)] * 4
    assert post.metric("webhooks_total", result="duplicate") >= 6


@pytest.mark.parametrize("word", ["sent", "delivered", "read", "failed"])
async def test_any_status_settles_an_unknown_one(post: Post, word: str) -> None:
    job = await post.job(State.UNKNOWN, State.SENT)
    await post.write()
    assert [f[:2] for f in await post.figures(job)] == [(1, 1)] * 4
    await post.said(
        status("wamid.new", word, of=(job, 0), code=131026 if word == "failed" else None)
    )
    await post.work()
    figures = await post.figures(job)
    assert len(set(figures)) == 1, figures
    assert figures[0][:2] == (0, 2)
    row = await post.row(job, 0)
    assert (row["outcome"], row["wamid"]) == ("sent", "wamid.new")
    assert post.metric("unknown_settled_total", to="sent") == 1
    assert [state_of(b) for b in await post.queue.states(job)] == [State.SENT] * 2


async def test_an_unknown_one_is_settled_after_the_jobs_keys_have_gone(post: Post) -> None:
    job = await post.job(State.UNKNOWN)
    await post.write()
    client: Any = post.queue.visitors
    await client.delete(*[key async for key in client.scan_iter(f"*{job}*")])
    await post.said(status("wamid.new", "delivered", of=(job, 0)))
    await post.work()
    row = await post.archive.job(job, None)
    assert row is not None
    assert (row.unknown, row.sent, row.delivered) == (0, 1, 1)
    assert (await post.row(job, 0))["wamid"] == "wamid.new"
    assert post.metric("unknown_settled_total", to="sent") == 1


async def test_a_webhook_before_its_answer_says_sent_and_the_answer_changes_nothing(
    post: Post,
) -> None:
    job = await post.job(State.INTENT, State.SENT)
    await post.said(status("wamid.first", "delivered", of=(job, 0)))
    await post.read()
    assert state_of((await post.queue.states(job))[0]) is State.SENT
    await post.work()
    assert await post.figures(job) == [(0, 2, 1, 0, 0)] * 4
    row = await post.row(job, 0)
    assert (row["phone"], row["wamid"]) == (FIRST, "wamid.first")
    assert await post.pool.fetchval("SELECT count(*) FROM early_receipts") == 0


async def test_a_failure_proves_nothing_of_what_was_refused_at_once(post: Post) -> None:
    job = await post.job(State.FAILED)
    await post.said(status("wamid.x", "failed", of=(job, 0), code=131026))
    await post.work()
    assert (await post.row(job, 0))["outcome"] == "failed"
    assert await post.figures(job) == [(0, 0, 0, 0, 0)] * 4
    await post.said(status("wamid.x", "delivered", of=(job, 0)))
    await post.work()
    assert await post.figures(job) == [(0, 1, 1, 0, 0)] * 4


async def test_an_unknown_id_waits_a_day_and_spoils_nothing(post: Post) -> None:
    job = await post.job(State.SENT)
    await post.said(
        status("wamid.never", "delivered"), status(f"wamid.{job[-6:]}0", "delivered", of=(job, 0))
    )
    await post.work()
    assert await post.figures(job) == [(0, 1, 1, 0, 0)] * 4
    assert post.metric("webhooks_total", result="unmatched") == 0
    await post.pool.execute("UPDATE early_receipts SET came_at = came_at - interval '24 hours'")
    await post.consumer.sweep()
    assert post.metric("webhooks_total", result="unmatched") == 1
    assert await post.pool.fetchval("SELECT count(*) FROM early_receipts") == 0


async def test_a_second_message_to_one_recipient_is_an_alarm(post: Post) -> None:
    job = await post.job(State.SENT)
    await post.said(status("wamid.second", "delivered", of=(job, 0), attempt=2))
    await post.work()
    row = await post.row(job, 0)
    assert (row["wamid"], row["wamid2"]) == (f"wamid.{job[-6:]}0", "wamid.second")
    await post.said(status("wamid.second", "read", 9))
    await post.work()
    assert (await post.row(job, 0))["receipt"] == 4
    assert post.metric("duplicates_total") == 1


async def test_what_a_dead_reader_was_given_is_taken_over(post: Post) -> None:
    job = await post.job(State.SENT)
    await post.said(status(f"wamid.{job[-6:]}0", "delivered", of=(job, 0)))
    await post.write()
    assert len(await post.inbox.read("dead", 10, 1, given=False)) == 1
    assert await post.consumer.take_over("0-0", asyncio.Event()) == "0-0"
    assert await post.waiting() == 1  # not idle for long enough
    client: Any = post.queue.visitors
    [entry] = await client.xpending_range(keys.INBOX, "receipts", "-", "+", 1)
    await client.xclaim(keys.INBOX, "receipts", "dead", 0, [entry["message_id"]], idle=31_000)
    await post.consumer.take_over("0-0", asyncio.Event())
    assert await post.waiting() == 0
    assert await post.figures(job) == [(0, 1, 1, 0, 0)] * 4


@pytest.mark.parametrize(
    ("bad", "result"),
    [
        (b"not json", "unreadable"),
        (b"[" * 100_000, "unreadable"),
        (b'{"object":"page","entry":[]}', "foreign"),
        (body(status("wamid.1", "delivered"), number="9"), "foreign"),
        (body(status("wamid.1", "teleported")), "unreadable"),
        (body(status("wamid.\0", "delivered")), "unreadable"),
        (body({"id": 5}), "unreadable"),
    ],
)
async def test_what_cannot_be_used_is_counted_and_done_with(
    post: Post, bad: bytes, result: str
) -> None:
    await post.inbox.append(bad)
    await post.work()
    assert post.metric("webhooks_total", result=result) == 1
    assert await post.waiting() == 0


async def test_a_dropped_template_pauses_the_jobs_that_use_it(post: Post) -> None:
    job = await post.job(State.SENT, State.INTENT, held=True)
    await post.write()
    failure = status(f"wamid.{job[-6:]}0", "failed", of=(job, 0), code=132015)
    await post.said(failure)
    await post.work()
    paused = (await post.queue.statuses([job]))[0]
    assert paused is not None
    assert (paused.state, paused.reason) == ("paused", "template_paused:132015")
    # An operator lets it go on; the same webhook once more does not stop it again.
    await post.queue.control(job, "resume", by="x")
    await post.said(failure)
    await post.work()
    resumed = (await post.queue.statuses([job]))[0]
    assert resumed is not None
    assert resumed.state == "running"


async def test_a_dropped_template_pauses_others_when_its_own_job_has_ended(post: Post) -> None:
    job, other = await post.job(State.SENT, held=True), await post.job(State.INTENT)
    await post.write()
    await post.said(status(f"wamid.{job[-6:]}0", "failed", of=(job, 0), code=132015))
    await post.work()
    ended, paused = await post.queue.statuses([job, other])
    assert ended is not None
    assert paused is not None
    assert (ended.state, paused.state) == ("completed", "paused")


async def test_content_errors_told_late_open_the_breaker_when_they_are_half_of_all(
    post: Post,
) -> None:
    half, less = [State.SENT] * 60, [State.SENT] * 120
    job, big, held = (
        await post.job(*half, State.INTENT),
        await post.job(*less, State.INTENT),
        await post.job(*half, State.INTENT, held=True),
    )
    await post.write()

    async def fail(positions: range, code: int = 131053) -> None:
        for name in (job, big, held):
            tail = name[-6:]
            await post.said(
                *(status(f"wamid.{tail}{i}", "failed", of=(name, i), code=code) for i in positions)
            )
        await post.work()
        await post.consumer.count_trips()

    async def shown(name: str) -> tuple[str, str]:
        [found] = await post.queue.statuses([name])
        assert found is not None
        return found.state, found.reason

    await fail(range(49))
    assert (await shown(job))[0] == "running"
    await fail(range(48, 50))
    assert await shown(job) == ("paused", f"breaker:{reason_of(131053)}")
    assert {(await shown(name))[0] for name in (big, held)} == {"running"}
    # What came before a resume does not count again, nor does what says nothing of the content.
    await post.queue.control(job, "resume", by="ana")
    await fail(range(10, 52))
    await fail(range(52, 60), code=131026)
    assert (await shown(job))[0] == "running"
    # Failed and then delivered all the same, or told by one who is late: no other figure.
    assert not await post.queue.trips(job, 49, 1)


async def test_whom_a_failure_stops_is_stopped_though_it_could_not_be_written_at_first(
    post: Post, eventually: Eventually
) -> None:
    """Told once: it is written before the webhook is done with."""
    job = await post.job(State.SENT)
    await post.write()
    await post.pool.execute("ALTER TABLE senders RENAME TO away")
    await post.said(status(f"wamid.{job[-6:]}0", "failed", of=(job, 0), code=131048))
    reading = asyncio.create_task(post.read())
    await eventually(lambda: post.consumer._failures > 0)
    await post.pool.execute("ALTER TABLE away RENAME TO senders")
    await asyncio.wait_for(reading, 10)
    row = await post.archive.sender_by_name_or_id("s1")
    assert row is not None
    assert (row.state, row.why) == ("paused", "sender:131048")
    assert (await post.row(job, 0))["receipt"] == 2


async def test_a_dropped_portfolio_stops_its_senders_and_only_when_held(post: Post) -> None:
    for is_held in (False, True):
        job = await post.job(State.SENT, held=is_held)
        await post.write()
        await post.said(status(f"wamid.{job[-6:]}0", "failed", of=(job, 0), code=135000))
        await post.work()
        rows = {row.id: (row.state, row.why) for row in await post.archive.senders()}
        stopped = ("paused", "portfolio:135000")
        assert rows == dict.fromkeys(("s1", "s2"), stopped if is_held else ("active", ""))


@pytest.mark.parametrize(("code", "scope"), [(131050, "marketing"), (130403, "all")])
async def test_who_does_not_want_us_is_suppressed(post: Post, code: int, scope: str) -> None:
    job = await post.job(State.SENT)
    await post.write()
    for _ in range(2):
        await post.said(status(f"wamid.{job[-6:]}0", "failed", of=(job, 0), code=code))
        await post.work()
    [entry] = await post.archive.suppressions()
    assert (entry.phone, entry.scope, entry.reason) == (FIRST, scope, str(code))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (1, 0, 2, 1, 0)])
async def test_the_last_wish_counts_in_any_order(post: Post, order: tuple[int, ...]) -> None:
    wishes = [("stop", 1), ("resume", 2), ("stop", 3)]
    for i in order:
        word, after_s = wishes[i]
        value = {
            "metadata": {"phone_number_id": "1001"},
            "user_preferences": [
                {"wa_id": str(FIRST), "category": "marketing_messages", "value": word,
                 "timestamp": AT_S + after_s}
            ],
        }  # fmt: skip
        change = {"changes": [{"field": "user_preferences", "value": value}]}
        whole = {"object": "whatsapp_business_account", "entry": [change]}
        await post.inbox.append(json.dumps(whole).encode())
        await post.work()
    kept = [e for e in await post.archive.suppressions() if not e.is_lifted]
    assert [(e.phone, e.scope, e.reason) for e in kept] == [(FIRST, "marketing", "stop")]


async def test_a_consumer_goes_on_after_both_stores_were_away(
    post: Post, eventually: Eventually
) -> None:
    """What is given stays given until it is written; nothing is read twice into the totals."""
    job = await post.job(State.SENT)
    await post.write()
    stop = asyncio.Event()
    running = asyncio.create_task(post.consumer.run(stop))
    await post.pool.expire_connections()
    client: Any = post.queue.visitors
    await client.client_kill_filter(_type="normal", skipme=True)
    told = body(status(f"wamid.{job[-6:]}0", "delivered", of=(job, 0)))
    await client.xadd(keys.INBOX, {"b": told})

    async def is_done() -> bool:
        return await post.waiting() == 0

    await eventually(is_done)
    assert await post.figures(job) == [(0, 1, 1, 0, 0)] * 4
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_a_failure_after_sent_is_shown_with_its_code(post: Post) -> None:
    job = await post.job(State.SENT, State.SENT)
    wamids = [f"wamid.{job[-6:]}{i}" for i in range(2)]
    await post.said(*(status(wamid, "failed", code=131026) for wamid in wamids))
    await post.said(status(wamids[1], "delivered", 2))
    await post.work()
    results = Results(post.pool)
    async with results.snapshot(job, None) as held:
        assert held is not None
        rows = await held.window(0, 1, RecipientFilter(), 10)
        failed = await held.window(0, 1, RecipientFilter(codes=[131026]), 10)
    assert [(row.outcome, row.receipt, row.code) for row in rows] == [
        ("sent", 2, 131026), ("sent", 3, None)
    ]  # fmt: skip
    assert [row.position for row in failed] == [0]
    [seen] = await results.history(FIRST, None, 0, 5)
    assert (seen.result.receipt, seen.result.code) == (2, 131026)


WORDS = ("sent", "failed", "delivered", "read", "played")


@pytest.mark.parametrize("seed", range(5))
async def test_any_order_repeats_and_two_consumers_end_the_same(post: Post, seed: int) -> None:
    """I13: what a job's receipts come to depends on what was said, and on nothing else."""
    random = Random(seed)  # noqa: S311 - repeatable
    count = 5
    job = await post.job(*[State.SENT, State.UNKNOWN] * 2, State.SENT)
    said: list[dict[str, Any]] = []
    for position in range(count):
        for word in random.sample(WORDS, random.randint(1, len(WORDS))):
            for _ in range(random.randint(1, 2)):
                code = random.choice([131026, 131049]) if word == "failed" else None
                wamid = f"wamid.{job[-6:]}{position}"
                told = status(wamid, word, random.randint(1, 9), of=(job, position), code=code)
                said += [told] * random.randint(1, 3)
    other = Consumer(post.tools, "w2")
    ends = []
    for _ in range(3):
        random.shuffle(said)
        rungs = [0] * count
        for at in range(0, len(said), 7):
            await post.inbox.append(body(*said[at : at + 7]))
        while hooks := await post.inbox.read("w1", 2, 1, given=False):
            stop = asyncio.Event()
            await asyncio.gather(
                *(c._work_off(hooks, stop) for c in (post.consumer, other)), post.write()
            )
            now = [(await post.row(job, i)).get("receipt", 0) for i in range(count)]
            assert all(a <= b for a, b in zip(rungs, now, strict=True)), "a receipt went down"
            rungs = now
        await post.write()
        await post.consumer.sweep()
        names = [f"receipt{part}" for part in ("", "_at", "_sent_at", "_failed_at", "_code")]
        rows = [await post.row(job, i) for i in range(count)]
        figures = await post.figures(job)
        assert len(set(figures)) == 1, figures
        ends.append((figures[0], [[row[name] for name in names] for row in rows]))
        # Forget it all, and hear it in another order.
        await post.pool.execute(
            "UPDATE campaign_logs SET receipt = 0, receipt_at = NULL, receipt_sent_at = NULL,"
            " receipt_failed_at = NULL, receipt_delivered_at = NULL, receipt_read_at = NULL,"
            " receipt_code = NULL, receipt_error = NULL"
        )
        await post.pool.execute("UPDATE bulk_jobs SET delivered = 0, read = 0, undelivered = 0")
    assert ends[0] == ends[1] == ends[2]
    assert ends[0][0][:2] == (0, count)
