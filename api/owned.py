"""The job that a request names, if its asker may see it; foreign and absent look the same."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from api import wire
from api.audit import note
from api.auth import Principal
from api.resources import Resources
from api.wire import refuse
from shared import ids, keys
from shared.archive import JobRow
from shared.errors import NotFoundError

_LIMIT_MAX: Final = 100


def id_of(request: web.Request, made: Resources) -> str:
    """Return the job id of the path.

    Raises:
        NotFoundError: it has another form, or names a shard that there is not.
    """
    return checked_id(request.match_info["job_id"], made)


def checked_id(job_id: str, made: Resources) -> str:
    """Return a job id that may be one.

    Raises:
        NotFoundError: it has another form, or names a shard that there is not.
    """
    if not ids.is_job_id(job_id):
        raise NotFoundError
    try:
        shard = keys.shard_of(job_id)
    except ValueError as error:
        raise NotFoundError from error
    if shard >= made.queue.shards:
        raise NotFoundError
    return job_id


async def visible(made: Resources, asker: Principal, job_id: str) -> JobRow:
    """Return the job's row.

    Raises:
        NotFoundError: absent, or another's.
    """
    row = await made.archive.job(job_id, asker.owner)
    if row is None:
        raise NotFoundError
    return row


async def note_foreign(
    request: web.Request, made: Resources, asker: Principal, row: JobRow
) -> None:
    """Note that an admin looked at somebody else's job."""
    if row.owner != asker.user_id:
        await note(request, made, asker, "job.read", row.id, "ok")


def limit_of(query: dict[str, str]) -> int:
    """Return how many rows a page has, 1 to 100; 20 where nobody says.

    Raises:
        InvalidError: anything else.
    """
    text = query.get("limit", "20")
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= _LIMIT_MAX):  # noqa: PLR2004
        refuse("", "limit is 1 to 100")
    return int(text)


def answer(body: object, status: int = 200) -> web.Response:
    """Return a struct as the answer."""
    return web.Response(status=status, body=wire.encode(body), content_type="application/json")
