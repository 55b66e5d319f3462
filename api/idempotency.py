"""The same key and body gives the same answer; the unique column of the job's row decides."""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec
from aiohttp import web

from api import wire
from api.resources import Resources
from shared.archive import JobRow
from shared.errors import InvalidError, MalformedError

_BARE: Final = re.compile(r"\A[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?\Z")
_QUOTED: Final = re.compile(r'\A"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\]){1,255})"\Z')


def key_of(request: web.BaseRequest) -> str | None:
    """Return the Idempotency-Key, bare or as a structured-field string; None without one.

    Raises:
        MalformedError: sent twice, empty, longer than 255, or not printable ASCII.
    """
    given = request.headers.getall("Idempotency-Key", [])
    if not given:
        return None
    quoted = _QUOTED.match(given[0])
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else given[0]
    if len(given) > 1 or not (quoted or (_BARE.match(key) and not key.startswith('"'))):
        raise MalformedError(
            "bad_idempotency_key", "An Idempotency-Key is 1 to 255 printable ASCII characters."
        )
    return key


def hash_of(body: object) -> bytes:
    """Return the hash that equal requests share, whatever their key order and white space."""
    return hashlib.sha256(wire.canonical(body)).digest()


async def replay(
    made: Resources, owner: str, route: str, key: str | None, request_hash: bytes
) -> web.Response | None:
    """Return the first answer to this key; None when there was none.

    Raises:
        InvalidError: the key came with another body.
    """
    if key is None:
        return None
    row = await made.archive.idempotent(owner, route, key)
    return None if row is None else answer_of(row, request_hash)


def answer_of(row: JobRow, request_hash: bytes) -> web.Response:
    """Return the 202 that lies beside a job's row."""
    if row.request_hash != request_hash:
        raise InvalidError(
            "idempotency_mismatch", "This Idempotency-Key came before with another body."
        )
    body = row.response or b"{}"
    location = msgspec.json.decode(body).get("links", {}).get("self", "")
    headers = {"Idempotent-Replayed": "true", "Location": location}
    return web.Response(status=202, body=body, content_type="application/json", headers=headers)
