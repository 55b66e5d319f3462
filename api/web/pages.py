"""Serve the page and its two files, read once; a file's name changes with its content."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

from aiohttp import web

from api.auth import OPEN
from api.router import HEADERS, Route

FOREVER: Final = "public, max-age=31536000, immutable"
_TYPES: Final = {"app.css": "text/css", "app.js": "text/javascript"}
_FOLDER: Final = files("api.web") / "static"


def _load() -> tuple[bytes, dict[str, tuple[bytes, str]]]:
    """Return the page, and by its hashed name each file with its type."""
    page = (_FOLDER / "index.html").read_bytes()
    assets: dict[str, tuple[bytes, str]] = {}
    for name, kind in _TYPES.items():
        body = (_FOLDER / name).read_bytes()
        stem, _, ending = name.partition(".")
        hashed = f"{stem}-{hashlib.sha256(body).hexdigest()[:12]}.{ending}"
        assets[hashed] = (body, kind)
        page = page.replace(f"/static/{name}".encode(), f"/static/{hashed}".encode())
    return page, assets


_PAGE, _ASSETS = _load()


def path_of(name: str) -> str:
    """Return where a file of ours is served; its name there changes with its content."""
    stem, _, ending = name.partition(".")
    found = next(hashed for hashed in _ASSETS if hashed.startswith(f"{stem}-"))
    assert found.endswith(ending)  # noqa: S101 - a name of ours
    return f"/static/{found}"


def _page(_request: web.Request) -> web.Response:
    return web.Response(body=_PAGE, content_type="text/html", charset="utf-8")


async def home(request: web.Request) -> web.Response:
    """Show the page."""
    return _page(request)


async def login(request: web.Request) -> web.Response:
    """Show the page; without a session it shows the form."""
    return _page(request)


async def job(request: web.Request) -> web.Response:
    """Show the page; the script follows the job of its address."""
    return _page(request)


async def static(request: web.Request) -> web.Response:
    """Answer one file under its hashed name."""
    found = _ASSETS.get(request.match_info["name"])
    if found is None:
        raise web.HTTPNotFound
    body, kind = found
    request[HEADERS]["Cache-Control"] = FOREVER
    return web.Response(body=body, content_type=kind, charset="utf-8")


# They hold nothing of anybody, so anybody may have them.
ROUTES: Final = tuple(
    Route("GET", path, handler, OPEN, "page")
    for path, handler in (
        ("/", home),
        ("/login", login),
        ("/jobs/{job_id}", job),
        ("/static/{name}", static),
    )
)
