"""`drumbeat purge`: what is old goes, what is needed stays, and nobody is kept waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest

from api.cli.purge import days_of, plan_of
from shared import retention as door
from shared.archive import Archive
from shared.errors import InvalidError
from shared.ids import Ids
from shared.models import Fact, OutcomeEntry, State
from shared.office import AuditFilter, Office
from shared.retention import Retention
from shared.settings import Settings
from tests.conftest import replaced
from tests.integration.command import Run, refused
from tests.integration.test_archive import add_user, facts, new_job

DAY_MS = 86_400_000
IDS = Ids()


def test_days_are_days() -> None:
    assert (days_of("1d"), days_of("36500d")) == (1, 36_500)
    for text in ("", "0d", "90", "d", "-1d", "36501d", "9 d", "3w", "90d\n"):
        with pytest.raises(InvalidError):
            days_of(text)


def test_the_settings_say_how_long_unless_one_is_asked(settings: Settings) -> None:
    kept = replaced(settings, logs_keep_days=30, audit_keep_days=0)
    assert plan_of(kept, None, None) == (30, 0)
    assert plan_of(kept, None, "audit") == (None, 0)
    assert plan_of(kept, "90d", None) == (90, 90)
    assert plan_of(kept, "90d", "jobs") == (90, None)
    # A repeated submission must find the row that its key has made.
    long = replaced(kept, idempotency_ttl_s=31 * 86_400 + 1)
    with pytest.raises(InvalidError, match=r"LOGS_KEEP_DAYS .* 32 days"):
        plan_of(long, None, None)
    with pytest.raises(InvalidError, match=r"--older-than .* 32 days"):
        plan_of(long, "31d", None)
    assert plan_of(long, "1d", "audit") == (None, 1)


class Jobs:
    """Jobs that ended so many days ago."""

    def __init__(self, archive: Archive, owner: str, now_ms: int) -> None:
        self.archive, self.owner, self.now_ms = archive, owner, now_ms

    async def ended(self, days: int, *, logged: int = 4, **more: Any) -> str:
        at_ms = self.now_ms - days * DAY_MS
        job = new_job(self.owner, created_ms=at_ms - 1000, **more)
        await self.archive.add_job(job)
        given = [Fact(i, State.SENT, 1) for i in range(logged)]
        end = OutcomeEntry("8-0", "state", job.id, job_state="completed", version=3, event="8-1",
                           finished_ms=at_ms)  # fmt: skip
        await self.archive.record([facts(job.id, "7-0", *given), end])
        return job.id

    async def left(self) -> dict[str, int]:
        """Return how many rows of its log each job has that is still there."""
        rows = await self.archive._pool.fetch(
            "SELECT j.id, count(l.position)::integer AS n FROM bulk_jobs j"
            " LEFT JOIN campaign_logs l ON l.job_number = j.number GROUP BY 1"
        )
        return {row["id"]: row["n"] for row in rows}

    async def rows(self) -> int:
        return int(await self.archive._pool.fetchval("SELECT count(*) FROM campaign_logs"))


@pytest.fixture
async def jobs(archive: Archive) -> Jobs:
    now_ms = await Office(archive._pool).now_ms()
    return Jobs(archive, await add_user(archive), now_ms)


async def test_only_jobs_that_ended_long_ago_go_with_their_log(
    run: Run, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "ROWS_AT_ONCE", 3)
    old, young = await jobs.ended(91), await jobs.ended(89)
    running = new_job(jobs.owner, created_ms=jobs.now_ms - 400 * DAY_MS)
    await jobs.archive.add_job(running)
    await jobs.archive.record([facts(running.id, "1-0", Fact(0, State.SENT, 1))])
    missing = await jobs.ended(91, logged=3)
    before = await jobs.left()
    assert "1 jobs that ended more than 90 days ago, with 4 recipients' rows, would be" in (
        await run("purge", "--older-than", "90d", "--dry-run")
    )
    assert await jobs.left() == before
    done = msgspec.json.decode(await run("purge", "--older-than", "90d", "--json"))
    assert (done["jobs"], done["recipients"], done["unlogged"]) == (1, 4, 1)
    assert await jobs.left() == {young: 4, running.id: 1, missing: 3}
    assert await jobs.rows() == 8
    assert await jobs.archive.job(old, None) is None
    again = msgspec.json.decode(await run("purge", "--older-than", "90d", "--json"))
    assert (again["jobs"], again["recipients"], again["audit"]) == (0, 0, 0)
    log = await Office(jobs.archive._pool).audit(AuditFilter(action="retention.purge"), 0, 9)
    assert [row.result for row in log] == ["ok", "asked"] * 2
    assert log[2].reason == "1 jobs, 4 rows, 0 audit entries"


async def test_what_a_younger_retry_stems_from_stays(run: Run, jobs: Jobs) -> None:
    root = await jobs.ended(300)
    child = await jobs.ended(200, parent=root, is_retry=True)
    grandchild = await jobs.ended(5, parent=child, is_retry=True)
    lonely = await jobs.ended(300)
    leaf = await jobs.ended(200, parent=lonely, is_retry=True)
    told = msgspec.json.decode(await run("purge", "--older-than", "90d", "--dry-run", "--json"))
    done = msgspec.json.decode(await run("purge", "--older-than", "90d", "--json"))
    assert told["jobs"] == done["jobs"] == 2
    assert set(await jobs.left()) == {root, child, grandchild}
    assert leaf not in await jobs.left()


async def test_a_retry_that_is_made_meanwhile_keeps_its_parent(jobs: Jobs) -> None:
    root = await jobs.ended(300)
    retention = Retention(jobs.archive._pool)
    found = await retention.old_jobs(jobs.now_ms - 90 * DAY_MS)
    child = new_job(jobs.owner, parent=root, is_retry=True)
    await jobs.archive.add_job(child)
    assert len(found) == 1
    assert await retention.drop_jobs(found) == 0
    assert set(await jobs.left()) == {root, child.id}


async def test_what_an_ended_purge_left_behind_goes_with_the_next(run: Run, jobs: Jobs) -> None:
    young = await jobs.ended(1)
    retention = Retention(jobs.archive._pool)
    await jobs.ended(300)
    assert await retention.drop_jobs(await retention.old_jobs(jobs.now_ms - 90 * DAY_MS)) == 1
    assert await jobs.rows() == 8
    done = msgspec.json.decode(await run("purge", "--older-than", "90d", "--json"))
    assert (done["jobs"], done["recipients"]) == (0, 4)
    assert await jobs.left() == {young: 4}
    assert await jobs.rows() == 4


async def test_audit_entries_go_by_their_own_age(
    run: Run, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "ROWS_AT_ONCE", 2)
    await jobs.ended(300)
    for days in (400, 370, 366, 300, 1):
        await jobs.archive._pool.execute(
            "INSERT INTO audit_log (at, actor, action, object, result)"
            " VALUES (now() - make_interval(days => $1), 'cli', 'job.read', $2, 'ok')",
            days, f"{days}",
        )  # fmt: skip
    for_ever = await run("purge")
    assert "jobs are kept for ever: set LOGS_KEEP_DAYS" in for_ever
    assert "audit entries are kept for ever: set AUDIT_KEEP_DAYS" in for_ever
    monkeypatch.setenv("AUDIT_KEEP_DAYS", "365")
    assert "3 audit entries older than 365 days would be removed" in (
        await run("purge", "--dry-run")
    )
    said = await run("purge")
    assert "3 audit entries older than 365 days removed" in said
    assert "jobs are kept for ever" in said
    log = await Office(jobs.archive._pool).audit(AuditFilter(action="job.read"), 0, 9)
    assert [row.object for row in log] == ["1", "300"]
    assert len(await jobs.left()) == 1
    await run("purge", "--older-than", "90d", "--only", "audit")
    assert len(await jobs.left()) == 1


@asynccontextmanager
async def working_role(settings: Settings) -> AsyncIterator[str]:
    """The role of api and worker: it deletes neither logs nor the audit log."""
    role, schema = f"poor_{IDS.object_id('sup')[4:]}", settings.database_schema
    url = str(settings.database_url)
    connection = await asyncpg.connect(url)
    await connection.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'pw'; GRANT USAGE ON SCHEMA {schema} TO {role};"
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role};"
        f"REVOKE DELETE ON {schema}.campaign_logs, {schema}.audit_log FROM {role}"
    )
    try:
        yield f"postgresql://{role}:pw@{url.rpartition('@')[2]}"
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close()


async def test_a_role_that_may_not_delete_is_told_whose_it_must_be(
    run: Run, jobs: Jobs, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await jobs.ended(300)
    async with working_role(settings) as url:
        monkeypatch.setenv("DATABASE_URL", url)
        why = await refused(run, "purge", "--older-than", "90d")
        assert "audit_log, campaign_logs" in why
        assert "DATABASE_URL" in why
        # To look is no more than it may.
        assert "1 jobs" in await run("purge", "--older-than", "90d", "--dry-run")
    assert len(await jobs.left()) == 1


async def test_late_outcomes_of_a_purged_job_change_nothing(run: Run, jobs: Jobs) -> None:
    job = await jobs.ended(300)
    await run("purge", "--older-than", "90d")
    recorded = await jobs.archive.record([facts(job, "9-0", Fact(0, State.SENT, 1))])
    assert recorded.rows == 0
    assert await jobs.rows() == 0
