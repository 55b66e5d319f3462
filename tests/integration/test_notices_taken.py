"""What Meta tells of templates and accounts is carried out once, in the order it was told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.clock import Clock
from shared.connect import open_postgres
from shared.errors import QueueError
from shared.inbox import Inbox
from shared.models import JobStatus, State
from shared.templates import Templates
from tests.integration.postbox import Post
from tests.integration.test_provider_behaviours import Provider, provider
from worker.sandbox.behaviour import Step, Template

__all__ = ["provider"]
Eventually = Callable[..., Awaitable[Any]]
STATUS = "message_template_status_update"


def notice(field: str, value: Any, *, at_s: int = 1_751_247_548, waba: str = "w1") -> bytes:
    entry = {"id": waba, "time": at_s, "changes": [{"value": value, "field": field}]}
    return json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()


def template(event: str, name: str = "t", language: str = "en", **of: Any) -> bytes:
    value = {"event": event, "message_template_id": 1, "message_template_name": name}
    return notice(STATUS, {**value, "message_template_language": language, "reason": "NONE"}, **of)


def account(event: str, state: str = "", **of: Any) -> bytes:
    ban = {"ban_info": {"waba_ban_state": state}} if state else {}
    return notice("account_update", {"event": event, **ban}, **of)


async def told(post: Post, *bodies: bytes) -> None:
    for each in bodies:
        await post.inbox.append(each)
    await post.work()
    assert await post.waiting() == 0


async def status(post: Post, job: str) -> JobStatus:
    found = (await post.queue.statuses([job]))[0]
    assert found is not None
    return found


async def test_a_template_paused_in_mid_job_stops_it_and_goes_on_once_approved(
    provider: Provider, eventually: Eventually
) -> None:
    pool = await open_postgres(provider.settings)
    inbox, lists = Inbox.open(provider.settings, Clock()), Templates(pool)
    await provider.sender("one", waba="77", rate=50)
    await provider.sender("two", waba="77", rate=50)
    await provider.sender("elsewhere", waba="88", rate=50)
    provider.work()
    phones = provider.phones(150)
    jobs = [await provider.job(phones, "one", template=True)]
    jobs.append(await provider.job(provider.phones(100), "two", template=True))
    others = [await provider.job(provider.phones(40), "two")]
    others.append(await provider.job(provider.phones(40), "elsewhere", template=True))

    async def shown() -> str | None:
        have = {each.language: each for each in await lists.named("77", "order_update")}
        return have["en_US"].category if have else None

    async def is_under_way() -> bool:
        return (await provider.status(jobs[0])).tally.sent > 20 and await shown() == "UTILITY"

    await eventually(is_under_way, within_s=10)
    order = provider.behaviour.templates["order_update", "en_US"]
    for state, category in (("PAUSED", "MARKETING"), ("APPROVED", "UTILITY")):
        # The pretended Graph takes it all the time: nothing but the notice can stop it.
        made = Template(order.name, order.language, order.body, category)
        provider.behaviour.templates["order_update", "en_US"] = made
        body = template(state, "order_update", "en-US", waba="77", at_s=int(state == "APPROVED"))
        assert await inbox.append(body)
        if state == "PAUSED":
            for job in jobs:
                assert "132015" in (await provider.waits(job, "template_paused")).detail
                assert (await provider.status(job)).tally.sent < 100
            for job in others:
                assert (await provider.over(job)).tally.sent == 40

        async def is_read_again(category: str = category) -> bool:
            return await shown() == category

        await eventually(is_read_again, within_s=15)
    for job in jobs:
        tally = (await provider.over(job)).tally
        assert (tally.sent, tally.failed) == (tally.total, 0)
    assert {provider.asked(phone) for phone in phones} == {1}
    await inbox.close()
    await pool.close()


async def test_an_answer_that_speaks_of_the_template_has_its_list_read_again(
    provider: Provider, eventually: Eventually
) -> None:
    pool = await open_postgres(provider.settings)
    lists = Templates(pool)
    await provider.sender("one", waba="77")
    provider.work()

    async def is_read() -> bool:
        return (await lists.state("77")).is_settled

    await eventually(is_read, within_s=10)
    first = await lists.state("77")
    provider.script(Step(code=132000), every=1)
    job = await provider.job(provider.phones(10), "one", template=True)
    assert (await provider.over(job)).tally.failed == 10

    async def is_read_again() -> bool:
        return (await lists.state("77")).synced_ms > first.synced_ms

    # Unasked it would be read after five minutes.
    await eventually(is_read_again, within_s=15)
    await pool.close()


async def test_of_two_notices_about_a_template_the_later_counts_in_any_order(post: Post) -> None:
    job = await post.job(State.INTENT)
    await post.write()
    await told(post, template("APPROVED", at_s=20))
    await told(post, template("PAUSED", at_s=10))
    assert (await status(post, job)).state == "running"
    await told(post, template("PAUSED", at_s=30))
    assert (await status(post, job)).reason == "template_paused:132015"
    # An operator lets it go on; the same notice once more does not stop it again.
    await post.queue.control(job, "resume", by="x")
    await told(post, template("PAUSED", at_s=30), template("PAUSED", at_s=10))
    assert (await status(post, job)).state == "running"
    await told(post, template("DISABLED", at_s=40))
    assert (await status(post, job)).reason == "template_paused:132016"
    assert post.metric("notices_total", field=STATUS, action="old") == 3


async def test_a_template_of_another_name_language_or_account_stops_nobody(post: Post) -> None:
    job = await post.job(State.INTENT)
    await post.write()
    await told(
        post, template("PAUSED", "u"), template("PAUSED", language="de"),
        template("PAUSED", waba="w2"),
    )  # fmt: skip
    assert (await status(post, job)).state == "running"
    assert post.metric("webhooks_total", result="foreign") == 1


@pytest.mark.parametrize(
    ("by", "reason", "goes_on"),
    [
        ("system", "template_paused:132001", True),
        ("system", "template_paused:132015", True),
        ("system", "template_paused:132007", False),
        ("system", "template_paused:132068", False),
        ("system", "breaker:40", False),
        ("x", "", False),
        ("x", "template_paused:132015", False),
    ],
)
async def test_what_is_approved_opens_what_its_state_has_paused_and_nothing_else(
    post: Post, by: str, reason: str, *, goes_on: bool
) -> None:
    job = await post.job(State.INTENT)
    await post.queue.control(job, "pause", by=by, reason=reason)
    await post.write()
    await told(post, template("APPROVED"))
    assert (await status(post, job)).state == ("running" if goes_on else "paused")


async def test_who_pauses_a_job_that_its_template_has_paused_keeps_it_paused(post: Post) -> None:
    job = await post.job(State.INTENT)
    await post.write()
    await told(post, template("PAUSED", at_s=10))
    done = await post.queue.control(job, "pause", by="ana", reason="not today")
    assert (done.kind, done.state) == ("ok", "paused")
    assert (await post.queue.control(job, "pause", by="ana", reason="not today")).kind == "same"
    await told(post, template("APPROVED", at_s=20))
    found = await status(post, job)
    assert (found.state, found.by, found.reason) == ("paused", "ana", "not today")
    row = await post.archive.job(job, None)
    assert row is not None
    assert (row.by, row.reason) == ("ana", "not today")


async def test_a_restricted_account_stops_its_senders_until_an_operator_lets_them_go_on(
    post: Post,
) -> None:
    async def senders() -> dict[str, tuple[str, str]]:
        return {row.id: (row.state, row.why) for row in await post.archive.senders()}

    await told(post, account("PARTNER_ADDED", at_s=5), account("DISABLED_UPDATE", at_s=10))
    stopped = ("paused", "waba:disabled_update")
    assert await senders() == dict.fromkeys(("s1", "s2"), stopped)
    audits = await post.pool.fetch("SELECT * FROM audit_log WHERE action = 'sender.paused'")
    assert sorted(row["object"] for row in audits) == ["s1", "s2"]
    await told(post, account("DISABLED_UPDATE", "REINSTATE", at_s=20))
    assert await senders() == dict.fromkeys(("s1", "s2"), stopped)
    for sender in ("s1", "s2"):
        await post.archive.set_sender_state(sender, "active", "", 0, "ana")
    # What Meta repeats, and what it told before, stops nobody again.
    await told(
        post, account("DISABLED_UPDATE", at_s=10), account("ACCOUNT_VIOLATION", at_s=15),
        account("DISABLED_UPDATE", "REINSTATE", at_s=20),
    )  # fmt: skip
    assert await senders() == dict.fromkeys(("s1", "s2"), ("active", ""))
    await told(post, account("ACCOUNT_RESTRICTION", at_s=30))
    assert set((await senders()).values()) == {("paused", "waba:account_restriction")}


async def test_limits_and_malformed_notices_are_counted_and_done_with(post: Post) -> None:
    job = await post.job(State.INTENT)
    await post.write()
    number = {"display_phone_number": "15550783881", "event": "THROUGHPUT_UPGRADE"}
    await told(
        post,
        notice("phone_number_quality_update", number),
        notice("business_capability_update", {"max_daily_conversations_per_business": 2000}),
        notice("account_update", {"event": "a\0b"}),
        notice("account_alerts", {"alert_info": 5}),
        notice("flows", {"event": "FLOW_STATUS_CHANGE"}),
        template("PAUSED\0"),
    )
    assert (await status(post, job)).state == "running"
    for field in ("phone_number_quality_update", "business_capability_update"):
        assert post.metric("notices_total", field=field, action="show") == 1
    assert post.metric("webhooks_total", result="unreadable") == 3
    assert post.metric("webhooks_total", result="ignored") == 1


async def test_a_notice_that_could_not_be_carried_out_is_carried_out_later(
    post: Post, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it is done when Redis goes away; nothing is noted before all of it is."""
    jobs = [await post.job(State.INTENT) for _ in range(2)]
    await post.write()
    control, fails = post.queue.control, True

    async def cut(job: str, *args: Any, **kwargs: Any) -> Any:
        if fails and job == jobs[1]:
            raise QueueError("away", refused=True)
        return await control(job, *args, **kwargs)

    monkeypatch.setattr(post.queue, "control", cut)
    await post.inbox.append(template("PAUSED"))
    reading = asyncio.create_task(post.read())
    await eventually(lambda: post.consumer._failures > 0)
    assert await post.pool.fetchval("SELECT count(*) FROM notices") == 0
    assert await post.waiting() == 1
    fails = False
    await asyncio.wait_for(reading, 10)
    assert {(await status(post, job)).state for job in jobs} == {"paused"}
    assert await post.waiting() == 0


async def test_two_workers_with_a_notice_each_end_with_the_later_one(post: Post) -> None:
    """Whatever their order: who comes second waits for the first, and finds what it noted."""
    job = await post.job(State.INTENT)
    await post.write()
    order = []

    def act(word: str, action: str, value: str) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            order.append(word)
            reason = "" if value else "template_paused:132015"
            await post.queue.control(job, action, by="system", reason=reason, value=value)

        return run

    notices = post.tools.board._notices
    pause = act("PAUSED", "pause", "")
    resume = act("APPROVED", "resume", "template_paused:132015")
    for at_s in range(0, 40, 2):
        first, second = ((at_s, "PAUSED", pause), (at_s + 1, "APPROVED", resume))[:: (at_s % 4) - 1]
        await asyncio.gather(*(notices.once("w1", "x", *each) for each in (first, second)))
        assert (await status(post, job)).state == "running"
    assert order.count("APPROVED") == 20
