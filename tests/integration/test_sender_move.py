"""A sender changes its shard only between jobs, and no job is accepted for where it was."""

from __future__ import annotations

import asyncio

import pytest

from shared.archive import Archive, SenderRow
from shared.errors import ConflictError, NotFoundError, UnavailableError
from shared.ids import Ids
from shared.models import OutcomeEntry, State
from shared.office import Act, AuditFilter, Office
from tests.integration.command import Run, refused
from tests.integration.test_archive import add_user, new_job

IDS = Ids()
WORD = Act("cli", "sender.move", "snd_1", "shard 1")


async def end(archive: Archive, job: str) -> None:
    """Let all of a job be cancelled, as a writer of outcomes is told."""
    all_of_it = OutcomeEntry("7-0", "range", job, state=State.CANCELLED, reason=4, ranges=[(0, 3)])
    over = OutcomeEntry(
        "8-0", "state", job, job_state="cancelled", version=3, event="8-1", finished_ms=8
    )
    await archive.record([all_of_it, over])


async def test_a_sender_with_unfinished_jobs_stays_where_it_is(archive: Archive) -> None:
    owner, office = await add_user(archive), Office(archive._pool)
    await archive.add_sender(SenderRow("snd_1", "main", "1001", b"sealed"))
    job = new_job(owner)
    await archive.add_job(job)
    with pytest.raises(ConflictError, match="1 unfinished jobs; --wait"):
        await office.move_sender(WORD, "snd_1", 1, None)
    await end(archive, job.id)
    await office.move_sender(WORD, "snd_1", 1, None)
    [row] = await archive.senders()
    assert (row.shard, row.version) == (1, 2)
    [line] = await office.audit(AuditFilter(action="sender.move"), 0, 9)
    assert (line.object, line.reason) == ("snd_1", "shard 1")
    with pytest.raises(NotFoundError):
        await office.move_sender(WORD, "snd_2", 1, None)


async def test_while_it_is_waited_for_nothing_is_accepted_and_afterwards_only_there(
    archive: Archive,
) -> None:
    owner, office = await add_user(archive), Office(archive._pool)
    await archive.add_sender(SenderRow("snd_1", "main", "1001", b"sealed"))
    job = new_job(owner)
    await archive.add_job(job)
    is_waiting, may_look = asyncio.Event(), asyncio.Event()
    counts: list[int] = []

    async def wait(jobs: int) -> None:
        counts.append(jobs)
        is_waiting.set()
        await may_look.wait()

    move = asyncio.create_task(office.move_sender(WORD, "snd_1", 1, wait))
    await is_waiting.wait()
    for shard in (0, 1):
        with pytest.raises(UnavailableError) as told:
            await archive.add_job(new_job(owner, id=IDS.job_id(shard)))
        assert told.value.word == "sender_moving"
    # Another's jobs are none of its business.
    await archive.add_job(new_job(owner, id=IDS.job_id(0), sender_id="snd_2"))
    await end(archive, job.id)
    may_look.set()
    await move
    assert counts == [1]
    # Whoever read the sender before it was moved asks again.
    with pytest.raises(UnavailableError):
        await archive.add_job(new_job(owner, id=IDS.job_id(0)))
    await archive.add_job(new_job(owner, id=IDS.job_id(1)))


async def test_who_gives_up_waiting_leaves_the_sender_as_it_was(archive: Archive) -> None:
    owner, office = await add_user(archive), Office(archive._pool)
    await archive.add_sender(SenderRow("snd_1", "main", "1001", b"sealed"))
    await archive.add_job(new_job(owner))
    is_waiting = asyncio.Event()

    async def wait(_jobs: int) -> None:
        is_waiting.set()
        await asyncio.Event().wait()

    move = asyncio.create_task(office.move_sender(WORD, "snd_1", 1, wait))
    await is_waiting.wait()
    move.cancel()
    with pytest.raises(asyncio.CancelledError):
        await move
    await archive.add_job(new_job(owner, id=IDS.job_id(0)))
    assert [row.shard for row in await archive.senders()] == [0]


async def test_the_command_moves_within_the_shards_there_are(archive: Archive, run: Run) -> None:
    await archive.add_sender(SenderRow("snd_1", "main", "1001", b"sealed"))
    assert "below QUEUE_SHARDS" in await refused(run, "sender", "move", "main", "64")
    assert "sender list" in await refused(run, "sender", "move", "nobody", "0")
    await run("sender", "move", "main", "0", "--wait")
    [row] = await archive.senders()
    assert (row.shard, row.version) == (0, 2)
