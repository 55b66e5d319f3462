"""What makes an API process live and ready; results are kept for a second."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from api.resources import Resources, resources
from shared.errors import UnavailableError
from shared.management import Check, shown
from shared.migrate import steps


def ready_checks(made: Resources) -> Mapping[str, Check]:
    """Return the checks of /readyz by name."""
    need = steps()[-1][0]

    async def schema() -> None:
        have = await made.archive.schema_version()
        if have < need:
            raise UnavailableError("storage_unavailable", f"schema {have or 'none'}, need {need}")

    async def draining() -> None:
        if made.is_draining:
            raise UnavailableError("draining", "about to stop")

    redis = shown(made.queue.probe, made.metrics.redis_up)
    postgres = shown(made.archive.ping, made.metrics.postgres_up)
    return {"redis": redis, "postgres": postgres, "schema": schema, "draining": draining}


async def live(_request: web.Request) -> web.Response:
    """GET /livez: the loop turned, or this would not be answered."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """GET /readyz: may traffic come?"""
    return await resources(request).ready.response()
