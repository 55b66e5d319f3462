"""Jobs and outcomes on a real PostgreSQL."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec
import pytest

from shared import migrate
from shared.archive import Archive, JobFilter, NewJob, SenderRow, accept, pack_blob
from shared.errors import ArchiveError, ConflictError
from shared.graph_codes import reason_of
from shared.ids import Ids
from shared.models import Chunk, Detail, Fact, OutcomeEntry, State
from shared.settings import Settings

IDS = Ids()


async def add_user(archive: Archive) -> str:
    user = str(IDS.user_id())
    await archive.add_user(user, f"{user}@example.com", "hash", "user")
    return user


def new_job(owner: str, **changes: Any) -> NewJob:
    chunks = [msgspec.msgpack.encode(Chunk([15550000000 + i for i in range(4)]))]
    fields: dict[str, Any] = {
        "id": IDS.job_id(0), "owner": owner, "campaign_id": "autumn", "name": "Spring",
        "kind": "text", "template_name": None, "template_language": None, "sender_id": "snd_1",
        "sender_name": "main", "message": b"{}", "vars": [], "chunk_size": 4, "recipients": 4,
        "blob": pack_blob(chunks), "intake": b"{}", "rate": 0.0, "weight": 4, "priority": "normal",
        "scheduled_ms": 0, "expires_ms": 0, "on_unknown": "hold", "reserved": 4, "step": 4,
        "born": "b", "created_ms": 1,
    }  # fmt: skip
    return NewJob(**{**fields, **changes})


def facts(job: str, entry: str, *given: Fact, wamid: str | None = None) -> OutcomeEntry:
    record = msgspec.msgpack.encode(
        [Detail(f.index, 15550000000 + f.index, 5, wamid) for f in given]
    )
    packed = b"".join(fact.pack() for fact in given)
    return OutcomeEntry(entry, "facts", job, chunk=0, chunk_size=4, facts=packed, record=record)


async def test_a_higher_rank_replaces_and_counters_follow_what_changed(archive: Archive) -> None:
    owner = await add_user(archive)
    job = new_job(owner)
    await archive.add_job(job)
    first = facts(job.id, "1-0", Fact(0, State.UNKNOWN, 1), Fact(1, State.SENT, 1))
    both = [first, facts(job.id, "2-0", Fact(0, State.SENT, 1), wamid="wamid.1")]
    assert (await archive.record([first])).rows == 2
    assert (await archive.record(both)).rows == 1
    assert (await archive.record(both)).rows == 0
    assert (await archive.record([first])).rows == 0
    row = await archive.job(job.id, owner)
    assert row is not None
    assert (row.sent, row.unknown, row.failed) == (2, 0, 0)


async def test_a_key_is_free_again_soon_after_the_connection_that_held_it_hung(
    archive: Archive,
) -> None:
    owner = await add_user(archive)
    with_key = {"idempotency_key": "k1", "idempotency_route": "POST /", "request_hash": b"h"}
    async with archive._pool.acquire() as hanging:
        await hanging.transaction().start()
        await accept(hanging, new_job(owner, **with_key))
        job = new_job(owner, **with_key)
        for _ in range(3):
            try:
                await archive.add_job(job)
                break
            except ArchiveError:
                continue
    found = await archive.idempotent(owner, "POST /", "k1")
    assert found is not None
    assert found.id == job.id


async def test_a_job_has_ended_only_when_every_recipient_is_logged(archive: Archive) -> None:
    owner = await add_user(archive)
    job = new_job(owner)
    await archive.add_job(job)
    entry = OutcomeEntry("7-0", "range", job.id, state=State.CANCELLED, reason=4, ranges=[(1, 3)])
    state = OutcomeEntry(
        "8-0", "state", job.id, job_state="cancelled", version=3, event="8-1", finished_ms=8
    )
    assert (await archive.record([entry, state])).ended == []
    last = facts(job.id, "9-0", Fact(0, State.SENT, 1))
    assert (await archive.record([last])).ended == [(job.id, 3)]
    row = await archive.job(job.id, None)
    assert row is not None
    assert (row.cancelled, row.state, row.end_event) == (3, "cancelled", "8-1")
    assert set(await archive.logged(job.id)) == {0, 1, 2, 3}


async def test_an_older_state_never_replaces_a_newer_one(archive: Archive) -> None:
    owner = await add_user(archive)
    job = new_job(owner)
    await archive.add_job(job)
    newer = OutcomeEntry("2-0", "state", job.id, job_state="paused", version=4)
    older = OutcomeEntry("1-0", "state", job.id, job_state="running", version=2)
    await archive.record([newer])
    await archive.record([older])
    row = await archive.job(job.id, owner)
    assert row is not None
    assert row.state == "paused"


async def test_a_foreign_job_is_absent(archive: Archive) -> None:
    owner, other = await add_user(archive), await add_user(archive)
    job = new_job(owner)
    await archive.add_job(job)
    assert await archive.job(job.id, other) is None
    assert [row.id for row in await archive.jobs(JobFilter(owner=owner))] == [job.id]
    assert await archive.jobs(JobFilter(owner=other)) == []


async def test_one_idempotency_key_makes_one_job(archive: Archive) -> None:
    owner = await add_user(archive)
    keyed = {"idempotency_key": "k", "idempotency_route": "POST /api/bulk/send", "response": b"{}"}
    first = new_job(owner, **keyed)
    await archive.add_job(first)
    with pytest.raises(ConflictError):
        await archive.add_job(new_job(owner, **keyed))
    found = await archive.idempotent(owner, "POST /api/bulk/send", "k")
    assert found is not None
    assert found.id == first.id


async def test_a_sender_is_found_by_name_id_and_as_default(archive: Archive) -> None:
    await archive.add_sender(SenderRow("snd_1", "main", "123", b"x", is_default=True))
    for found in (
        await archive.sender_by_name_or_id("main"),
        await archive.sender_by_name_or_id("snd_1"),
        await archive.default_sender(),
    ):
        assert found is not None
        assert found.name == "main"
    await archive.set_sender_state("snd_1", "paused", "token", 0, "system")
    paused = await archive.default_sender()
    assert paused is not None
    assert (paused.state, paused.version) == ("paused", 2)


async def test_migrating_leaves_a_foreign_public_schema_alone(settings: Settings) -> None:
    connection = await asyncpg.connect(str(settings.database_url))
    try:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS public.users (a int);"
            "CREATE TABLE IF NOT EXISTS public.schema_migrations (b int)"
        )
        assert await migrate.apply(settings) == []
        columns = await connection.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public'"
        )
        assert sorted(row["column_name"] for row in columns) == ["a", "b"]
    finally:
        await connection.execute("DROP TABLE public.users, public.schema_migrations")
        await connection.close()


async def test_what_is_no_outcome_makes_no_row(archive: Archive) -> None:
    job = new_job(await add_user(archive))
    await archive.add_job(job)
    told = facts(job.id, "1-0", Fact(0, State.INTENT, 1), Fact(1, State.RETRY, 1, 0, 5))
    assert (await archive.record([told, facts(job.id, "2-0", Fact(2, State.SENT, 1))])).rows == 1
    assert set(await archive.logged(job.id)) == {2}


async def test_who_blocked_the_business_is_suppressed_with_the_outcome_and_once(
    archive: Archive,
) -> None:
    owner = await add_user(archive)
    job = new_job(owner)
    await archive.add_job(job)
    entry = facts(
        job.id,
        "1-0",
        Fact(0, State.FAILED, 1, reason_of(130403)),
        Fact(1, State.FAILED, 1, reason_of(131026)),
        Fact(2, State.FAILED, 1, reason_of(131050)),
        Fact(3, State.SENT, 1),
    )
    for _ in range(2):
        await archive.record([entry])
    found = await archive.suppressions()
    assert {(s.phone, s.scope, s.reason, s.source) for s in found} == {
        (15550000000, "all", "130403", "graph"),
        (15550000002, "marketing", "131050", "graph"),
    }
    assert [s.change for s in found] == [1, 2]
    assert [s.change for s in await archive.suppressions(after=1)] == [2]


async def test_one_message_id_for_two_recipients_is_seen_in_any_order(archive: Archive) -> None:
    owner = await add_user(archive)
    job = new_job(owner)
    await archive.add_job(job)
    first = facts(job.id, "1-0", Fact(0, State.SENT, 1), wamid="wamid.1")
    assert (await archive.record([first])).shared == {}
    assert (await archive.record([first])).shared == {}
    second = facts(job.id, "2-0", Fact(1, State.SENT, 1), wamid="wamid.1")
    assert (await archive.record([second])).shared == {job.id: 2}


async def test_a_stop_counts_once_and_an_acceptance_after_the_hold_ends_the_row_of_parks(
    archive: Archive,
) -> None:
    await archive.add_sender(SenderRow("snd_1", "main", "123", b"x", is_default=True))
    before = await archive.default_sender()
    assert before is not None
    assert await archive.move_sender(before, "blocked", "waba:80007", 100, 3, "system")
    assert not await archive.move_sender(before, "blocked", "waba:80007", 200, 4, "system")
    owner = await add_user(archive)
    job = new_job(owner)
    await archive.add_job(job)

    async def sent_at(index: int, at_ms: int) -> int:
        record = msgspec.msgpack.encode([Detail(index, 15550000000 + index, at_ms)])
        packed = Fact(index, State.SENT, 1).pack()
        await archive.record(
            [OutcomeEntry("1-0", "facts", job.id, chunk_size=4, facts=packed, record=record)]
        )
        row = await archive.default_sender()
        assert row is not None
        return row.parks

    # What was in the air when it was parked says nothing of how it is now.
    assert await sent_at(0, 99) == 3
    assert await sent_at(1, 100) == 0


@pytest.mark.parametrize(
    ("why", "token", "state"),
    [
        ("token:190", b"new", "active"),
        ("token:190", b"old", "paused"),
        ("sender:131048", b"new", "paused"),
        ("operator", b"new", "paused"),
    ],
)
async def test_another_token_frees_only_what_the_old_one_stopped(
    archive: Archive, why: str, token: bytes, state: str
) -> None:
    sender = SenderRow("snd_1", "main", "123", b"old")
    await archive.add_sender(sender)
    await archive.move_sender(sender, "paused", why, 0, 0, "system")
    await archive.add_sender(msgspec.structs.replace(sender, token_sealed=token))
    row = await archive.sender_by_name_or_id("main")
    assert row is not None
    assert (row.state, row.why) == (state, "" if state == "active" else why)


async def test_a_template_is_shared_by_the_unfinished_jobs_of_its_account(
    archive: Archive,
) -> None:
    for name, waba in (("a", "w1"), ("b", "w1"), ("c", "w2"), ("d", None)):
        await archive.add_sender(SenderRow(f"snd_{name}", name, name, b"x", waba_id=waba))
    owner = await add_user(archive)
    offer = {"template_name": "offer", "template_language": "en_US"}

    async def add(sender: str, **more: str) -> str:
        job = new_job(owner, sender_id=f"snd_{sender}", **{**offer, **more})
        await archive.add_job(job)
        return job.id

    first, second = await add("a"), await add("b")
    for sender in ("c", "d"):
        await add(sender)
    await add("b", template_language="de")
    alone, other = await add("d"), await add("d")
    assert await archive.same_template(first) == [second]
    assert other in await archive.same_template(alone)
    done = OutcomeEntry("8-0", "state", second, job_state="cancelled", version=3, finished_ms=8)
    await archive.record([done])
    assert await archive.same_template(first) == []
