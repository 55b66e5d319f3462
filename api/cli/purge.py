"""`drumbeat purge`: jobs that ended long ago and audit entries as old are forgotten."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Annotated, Final, Literal, NamedTuple

import cyclopts
import msgspec

from api.cli.acts import audited, print_line
from shared import connect, settings
from shared.archive import Archive
from shared.errors import InvalidError, RequestError
from shared.office import Office
from shared.retention import Retention
from shared.settings import Settings

DAY_S: Final = 86_400
DAYS_MAX: Final = 36_500
_OWNER: Final = "DATABASE_URL must be their owner's, as `drumbeat migrate` needs it."
_UNLOGGED: Final = "ended, and outcomes of theirs are not logged; see the log of the workers"
_DAYS: Final = re.compile(r"\A([0-9]{1,5})d\Z")
Json = Annotated[bool, cyclopts.Parameter(name="--json")]


class Plan(NamedTuple):
    """How old what is forgotten must be, in days; 0 = it is kept for ever, None = not asked for."""

    jobs: int | None
    audit: int | None


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """What a purge has removed, or would remove.

    Attributes:
        jobs, recipients: jobs, and rows of their recipients; None = kept.
        audit: entries; None = kept.
        unlogged: jobs that are old enough and stay: outcomes of theirs have never come.
        dry_run: nothing was removed.
    """

    jobs: int | None = None
    recipients: int | None = None
    audit: int | None = None
    unlogged: int = 0
    dry_run: bool = False


def purge(
    *,
    older_than: str | None = None,
    only: Literal["jobs", "audit"] | None = None,
    dry_run: bool = False,
    as_json: Json = False,
) -> None:
    """Forget ended jobs, with their recipients and log, and audit entries that are old enough.

    Connect as the owner of the tables, as `migrate` does. A job that has not ended is never
    touched, nor one that a younger job stems from.

    Args:
        older_than: days, such as 90d; LOGS_KEEP_DAYS and AUDIT_KEEP_DAYS when left out.
        only: leave the others alone.
        dry_run: remove nothing, say how much it would be.
        as_json: one JSON document.
    """
    given = settings.load()
    plan = plan_of(given, older_than, only)
    if not plan.jobs and not plan.audit:
        done = Purged(dry_run=dry_run)
    else:
        done = asyncio.run(_purge(given, plan, dry_run=dry_run))
    if as_json:
        print_line(msgspec.json.encode(done).decode())
        return
    for line in lines_of(done, plan):
        print_line(line)
    if done.unlogged:
        sys.stderr.write(f"{done.unlogged} jobs stay: they {_UNLOGGED}\n")


def days_of(text: str) -> int:
    """Return the days of `90d`. Pure.

    Raises:
        InvalidError: it is none from 1d to 36500d.

    >>> days_of("90d")
    90
    """
    found = _DAYS.match(text)
    days = int(found[1]) if found else 0
    if not 1 <= days <= DAYS_MAX:
        raise InvalidError("bad_format", f"--older-than takes days, from 1d to {DAYS_MAX}d.")
    return days


def least_days(given: Settings) -> int:
    """Return how long a job must have been over: until then its row is needed. Pure."""
    return -(-max(given.idempotency_ttl_s, given.job_ttl_s) // DAY_S)


def plan_of(given: Settings, older_than: str | None, only: str | None) -> Plan:
    """Return what is to be forgotten. Pure.

    Args:
        given: LOGS_KEEP_DAYS, AUDIT_KEEP_DAYS, and how long rows of jobs are needed.
        older_than: as the command line has it; None = what the settings say.
        only: `jobs`, `audit`; None = both.

    Raises:
        InvalidError: `older_than` is none, or rows would go that are still needed.
    """
    asked = None if older_than is None else days_of(older_than)
    jobs = None if only == "audit" else given.logs_keep_days if asked is None else asked
    audit = None if only == "jobs" else given.audit_keep_days if asked is None else asked
    least = least_days(given)
    if jobs and jobs < least:
        name = "LOGS_KEEP_DAYS" if asked is None else "--older-than"
        text = f"{name} must be at least {least} days: for so long IDEMPOTENCY_TTL_S or JOB_TTL_S "
        raise InvalidError("validation_failed", text + "needs a job's row; lower these, or wait.")
    return Plan(jobs, audit)


def lines_of(done: Purged, plan: Plan) -> list[str]:
    """Return what is said about a purge. Pure."""
    word = "would be removed" if done.dry_run else "removed"
    out = []
    if plan.jobs == 0:
        out.append("jobs are kept for ever: set LOGS_KEEP_DAYS, or give --older-than 90d")
    elif plan.jobs is not None:
        out.append(f"{done.jobs} jobs that ended more than {plan.jobs} days ago, with "
                   f"{done.recipients} recipients' rows, {word}")  # fmt: skip
    if plan.audit == 0:
        out.append("audit entries are kept for ever: set AUDIT_KEEP_DAYS, or give --older-than 90d")
    elif plan.audit is not None:
        out.append(f"{done.audit} audit entries older than {plan.audit} days {word}")
    return out


async def _purge(given: Settings, plan: Plan, *, dry_run: bool) -> Purged:
    pool = await connect.open_postgres(given, size=2)
    try:
        archive, retention = Archive(pool), Retention(pool)
        now_ms = await Office(pool).now_ms()
        if dry_run:
            return await _look(retention, plan, now_ms)
        denied = await retention.undeletable()
        if denied:
            tables = ", ".join(denied)
            raise RequestError("forbidden", f"This role may not touch {tables}: {_OWNER}")
        what = f"jobs {plan.jobs}, audit {plan.audit} days"
        async with audited(archive, "retention.purge", "purge", what) as said:
            done = await _remove(retention, plan, now_ms)
            said.append(f"{done.jobs or 0} jobs, {done.recipients or 0} rows")
            said.append(f"{done.audit or 0} audit entries")
        return done
    finally:
        await pool.close()


def _before_ms(now_ms: int, days: int) -> int:
    return now_ms - days * DAY_S * 1000


async def _look(retention: Retention, plan: Plan, now_ms: int) -> Purged:
    jobs = recipients = audit = None
    unlogged = 0
    if plan.jobs:
        before_ms = _before_ms(now_ms, plan.jobs)
        found = await retention.old_jobs(before_ms)
        jobs, recipients = len(found), sum(job.recipients for job in found)
        unlogged = await retention.unlogged_jobs(before_ms)
    if plan.audit:
        audit = await retention.old_audit(_before_ms(now_ms, plan.audit))
    return Purged(jobs=jobs, recipients=recipients, audit=audit, unlogged=unlogged, dry_run=True)


async def _remove(retention: Retention, plan: Plan, now_ms: int) -> Purged:
    jobs = recipients = audit = None
    unlogged = 0
    if plan.jobs:
        before_ms = _before_ms(now_ms, plan.jobs)
        jobs = await retention.drop_jobs(await retention.old_jobs(before_ms))
        # Those too that an earlier purge has left behind when it was ended.
        recipients = await retention.drop_lost_logs()
        unlogged = await retention.unlogged_jobs(before_ms)
    if plan.audit:
        audit = await retention.drop_audit(_before_ms(now_ms, plan.audit))
    return Purged(jobs=jobs, recipients=recipients, audit=audit, unlogged=unlogged)
