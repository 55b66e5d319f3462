"""`drumbeat doctor`: as `check`, and deeper: each right in Redis, ports, lists of templates."""

from __future__ import annotations

import asyncio
import http.client
import socket
from contextlib import closing
from typing import Final

from api.cli.check import Finding, Json, findings, is_of_meta, look, report
from api.cli.health import near
from shared import connect
from shared.archive import Archive, SenderRow
from shared.errors import DrumbeatError, SealError
from shared.queue import Queue
from shared.sealing import Sealing
from shared.settings import Settings

_OURS_S: Final = 2.0
_GOOD: Final = 200


def doctor(*, as_json: Json = False) -> int:
    """Look at all that `check` does, each right in Redis, ports, lists of templates; 1 on a fault.

    Args:
        as_json: one JSON document.
    """
    return report(findings(_deeper), as_json=as_json)


# -- what is decided without asking anybody ---------------------------------------------------


def of_rights(denied: list[str]) -> Finding:
    """Return whether Redis lets this user do what we do. Pure."""
    if denied:
        text = f"this user may not {', '.join(denied)}"
        return Finding("fail", "redis acl", text, "grant them: `ACL SETUSER … +command`")
    return Finding("ok", "redis acl", "every command we use is allowed")


def of_port(name: str, port: int, *, is_free: bool, is_ours: bool) -> Finding:
    """Return whether a process could listen. Pure.

    Args:
        name: of the variable.
        port: its value; 0 = a free one.
        is_free: nobody listens there, and we may.
        is_ours: who listens there answers as we do.
    """
    if is_free:
        return Finding("ok", "port", f"{name} {port or 'any'} is free")
    if is_ours:
        return Finding("ok", "port", f"{name} {port} is answered by a process of ours")
    return Finding("fail", "port", f"{name} {port} cannot be listened on", f"set {name} to another")


def of_templates(name: str, waba_id: str | None, status: int, code: int | None) -> Finding:
    """Return what Graph's answer to a look at an account's templates means. Pure.

    Args:
        name: of the sender.
        waba_id: its account; None = nobody has said.
        status: of the answer; 0 = none came.
        code: Graph's, where there is one.
    """
    if waba_id is None:
        remedy = f"`PATCH /api/senders/{{id}}` with the waba_id of {name}"
        return Finding("note", "templates", f"{name}: not checked before sending", remedy)
    if status == _GOOD:
        return Finding("ok", "templates", f"{name}: Graph shows the list of its account")
    said = f"HTTP {status}" + (f", code {code}" if code is not None else "")
    remedy = "compare waba_id with WhatsApp Manager; the token needs whatsapp_business_management"
    return Finding("fail", "templates", f"{name}: Graph does not show the list ({said})", remedy)


# -- what is asked ----------------------------------------------------------------------------


async def _deeper(given: Settings) -> list[Finding]:
    ports = (
        ("API_PORT", given.api_host, given.api_port, "/livez"),
        ("METRICS_PORT", given.metrics_host, given.api_metrics_port, "/livez"),
        ("METRICS_PORT", given.metrics_host, given.worker_metrics_port, "/livez"),
    )
    found = [await asyncio.to_thread(_port, *each) for each in ports]
    try:
        return [*await _rights(given), *found, *await _templates(given)]
    except DrumbeatError:
        return found  # `check` has said which store is away


async def _rights(given: Settings) -> list[Finding]:
    queue = await Queue.open(given)
    try:
        found = [of_rights(await queue.denied(shard)) for shard in range(queue.shards)]
    finally:
        await queue.close()
    # Shards of one server say the same.
    return list(dict.fromkeys(found))


def _port(name: str, host: str, port: int, path: str) -> Finding:
    is_free = _is_free(host, port)
    is_ours = not is_free and _is_ours(host, port, path)
    return of_port(name, port, is_free=is_free, is_ours=is_ours)


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError:
            return False
    return True


def _is_ours(host: str, port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(near(host), port, timeout=_OURS_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status == _GOOD and b'"ok"' in answer.read(1024)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


async def _templates(given: Settings) -> list[Finding]:
    pool = await connect.open_postgres(given, size=1)
    try:
        rows = await Archive(pool).senders()
    finally:
        await pool.close()
    return [await _list_of(given, row) for row in rows]


async def _list_of(given: Settings, row: SenderRow) -> Finding:
    status, code = 0, None
    if row.waba_id is not None:
        try:
            token = Sealing(given.bulk_secret_key).open(row.token_sealed)
        except SealError:
            return Finding("note", "templates", f"{row.name}: its token cannot be opened")
        if given.is_sandbox and is_of_meta(token):
            return Finding("note", "templates", f"{row.name}: not asked for, see the sender")
        version = row.graph_api_version or given.graph_api_version
        path = f"/{version}/{row.waba_id}/message_templates?fields=name&limit=1"
        status, code = await asyncio.to_thread(look, given, path, token)
    return of_templates(row.name, row.waba_id, status, code)
