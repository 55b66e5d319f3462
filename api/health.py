"""What makes an API process live and ready; results are kept for a second."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from api.resources import Resources, resources
from shared.errors import UnavailableError
from shared.management import Check
from shared.migrate import steps


def ready_checks(made: Resources) -> Mapping[str, Check]:
    """Return the checks of /readyz by name."""
    need = steps()[-1][0]

    async def redis() -> None:
        try:
            await made.queue.probe()
        except BaseException:
            made.metrics.redis_up.set(0)
            raise
        made.metrics.redis_up.set(1)

    async def postgres() -> None:
        try:
            await made.archive.ping()
        except BaseException:
            made.metrics.postgres_up.set(0)
            raise
        made.metrics.postgres_up.set(1)

    async def schema() -> None:
        have = await made.archive.schema_version()
        if have < need:
            raise UnavailableError("storage_unavailable", f"schema {have or 'none'}, need {need}")

    async def draining() -> None:
        if made.is_draining:
            raise UnavailableError("draining", "about to stop")

    return {"redis": redis, "postgres": postgres, "schema": schema, "draining": draining}


async def live(_request: web.Request) -> web.Response:
    """GET /livez: the loop turned, or this would not be answered."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """GET /readyz: may traffic come?"""
    return await resources(request).ready.response()
