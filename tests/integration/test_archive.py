"""Jobs and outcomes on a real PostgreSQL."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec
import pytest

from shared import migrate
from shared.archive import Archive, JobFilter, NewJob, SenderRow, pack_blob
from shared.errors import ConflictError
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
