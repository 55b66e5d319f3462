"""GET /openapi.json and /docs: the document, and a plain page made from it. Works offline."""

from __future__ import annotations

import json
from functools import lru_cache
from html import escape
from typing import Any, Final

from aiohttp import web

from api import wire
from api.auth import OPEN
from api.openapi import document
from api.resources import resources
from api.router import ROUTES as ROUTES_KEY
from api.router import Route, query_of
from api.web.pages import path_of

_HTML: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Drumbeat API</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="{css}"></head>
<body><header><a class="brand" href="/">Drumbeat</a>
<p><a href="/openapi.json">openapi.json</a></p></header>
<main>{parts}</main></body></html>
"""


def page(made: dict[str, Any], css: str) -> str:
    """Return the documentation page of an OpenAPI document as HTML, without a script. Pure.

    Args:
        made: from `openapi.document`.
        css: path of the style sheet.
    """
    tags: dict[str, list[str]] = {}
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            part = _operation(made, method, path, operation)
            tags.setdefault(operation["tags"][0], []).append(part)
    parts = "".join(
        f'<section class="card wide"><h1>{escape(tag)}</h1>{"".join(found)}</section>'
        for tag, found in tags.items()
    )
    return _HTML.format(css=css, parts=parts)


def _operation(made: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<li><code>{escape(p['name'])}</code> in {p['in']}"
        f"{': ' + escape(p['description']) if 'description' in p else ''}</li>"
        for p in operation["parameters"]
    )
    body = operation.get("requestBody", {}).get("content", {})
    success = min(operation["responses"])
    given = operation["responses"][success].get("content", {})
    refusals = ", ".join(sorted(operation["responses"].keys() - {success}))
    return (
        f"<details><summary><strong>{method.upper()}</strong> <code>{escape(path)}</code> "
        f"{escape(operation['summary'])}</summary>"
        f"<p>{escape(operation.get('description', ''))}</p><ul>{rows}</ul>"
        f"{_content(made, 'Takes', body)}{_content(made, f'Gives {success}', given)}"
        f'<p class="faint">Refusals: {refusals}, each a problem+json.</p></details>'
    )


def _content(made: dict[str, Any], title: str, content: dict[str, Any]) -> str:
    parts = []
    for media, inner in content.items():
        name = inner.get("schema", {}).get("$ref", "").rpartition("/")[2]
        schema = made["components"]["schemas"].get(name, {})
        about = escape(schema.get("description", ""))
        shown = "".join(
            f"<pre>{escape(json.dumps(example, indent=1, ensure_ascii=False))}</pre>"
            for example in schema.get("examples", [])
        )
        parts.append(f"<h2>{title}: {escape(media)}</h2><p>{about}</p>{shown}")
    return "".join(parts)


@lru_cache(maxsize=1)
def _written(routes: tuple[Route, ...], version: str, public_url: str) -> tuple[bytes, str]:
    # Made once: it takes 20 ms, and anybody may ask.
    made = document(routes, version, public_url)
    return wire.encode(made), page(made, path_of("app.css"))


def _written_for(request: web.Request) -> tuple[bytes, str]:
    made = resources(request)
    routes = tuple(request.config_dict[ROUTES_KEY].values())
    return _written(routes, made.version, made.settings.public_url)


async def show_document(request: web.Request) -> web.Response:
    """Give the OpenAPI 3.1 document."""
    query_of(request)
    return web.Response(body=_written_for(request)[0], content_type="application/json")


async def show_page(request: web.Request) -> web.Response:
    """Show the documentation."""
    query_of(request)
    return web.Response(text=_written_for(request)[1], content_type="text/html")


ROUTES: Final = (
    Route("GET", "/openapi.json", show_document, OPEN, "page"),
    Route("GET", "/docs", show_page, OPEN, "page"),
)
