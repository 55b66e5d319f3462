"""The sandbox's HTTP side: a lean protocol, Graph's paths and the admin paths."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import socket
import struct
from array import array
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import parse_qs, urlsplit

import msgspec

from shared.clock import Clock
from shared.graph_codes import row_of
from shared.ids import Ids
from worker.sandbox.behaviour import (
    JSON,
    Behaviour,
    Config,
    Request,
    Script,
    Step,
    Template,
    Verdict,
    delivered_to,
    parse_opaque,
    whatsapp_id,
)
from worker.sandbox.ledger import Count, Entry, Ledger
from worker.sandbox.statuses import STATUSES, WISHES, Hooks, Webhooks, webhook

HEAD_MAX: Final = 65_536
BODY_MAX: Final = 1_048_576
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_PLAIN: Final = Step()
_ENDLESS: Final = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
_ENDLESS_EVERY_S: Final = 0.002
_json: Final = msgspec.json.Encoder()
_requests: Final = msgspec.json.Decoder(Request)
_any: Final = msgspec.json.Decoder()
_scripts: Final = msgspec.json.Decoder(Script | list[Script])


class Heard(msgspec.Struct):
    """One request as it came in."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def token(self) -> str:
        """Return what stands behind `Bearer`."""
        kind, _, token = self.headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        return token.strip() if kind.lower() == "bearer" else ""


class Connection(asyncio.Protocol):
    """One client: requests are taken one after another, the next once the last is answered."""

    def __init__(self, sandbox: Sandbox) -> None:
        """Wait for bytes."""
        self._sandbox = sandbox
        self._buffer = b""
        self._is_busy = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the open connections."""
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._sandbox.connections.add(self)
        if self._sandbox.is_shut:
            # It was in the kernel's queue when the port was closed.
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the base class names it
        """Leave the open connections."""
        self._transport = None
        self._sandbox.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Take what came, and a request when it is whole."""
        self._buffer += data
        if not self._is_busy:
            self._take()

    def _take(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_MAX:
                self.drop()
            return
        start, *lines = self._buffer[:end].split(b"\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        length = headers.get(b"content-length", b"0")
        parts = start.decode("latin-1").split(" ")
        if len(parts) != 3 or not length.isdigit() or b"transfer-encoding" in headers:  # noqa: PLR2004 - method, path, version
            self.refuse(411)
            return
        whole = end + 4 + int(length)
        if int(length) > BODY_MAX:
            self.refuse(413)
            return
        if len(self._buffer) < whole:
            return
        body = self._buffer[end + 4 : whole]
        self._buffer = self._buffer[whole:]
        self._is_busy = True
        self._sandbox.hear(Heard(parts[0], parts[1], headers, body), self)

    def answer(self, status: int, body: bytes, extra: str = "", content_type: str = JSON) -> None:
        """Send an answer whole and go on with the next request."""
        self.finish(_head(status, len(body), extra, content_type) + body)

    def finish(self, data: bytes) -> None:
        """Send the last bytes of an answer and go on with the next request."""
        self.write(data)
        self._is_busy = False
        if self._buffer and self._transport is not None:
            self._take()

    def refuse(self, status: int) -> None:
        """Answer what cannot be read on, and end."""
        self.write(_head(status, 0))
        self._is_busy = True
        self.close()

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self._transport is not None:
            self._transport.write(data)

    @property
    def is_open(self) -> bool:
        """Tell whether there is anybody to write to."""
        return self._transport is not None

    def close(self) -> None:
        """End the connection in order."""
        if self._transport is not None:
            self._transport.close()

    def drop(self, *, reset: bool = False) -> None:
        """End the connection at once, with RST when asked."""
        if self._transport is None:
            return
        if reset:
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _head(status: int, length: int | None, extra: str = "", content_type: str = JSON) -> bytes:
    body = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"HTTP/1.1 {status} {_PHRASES.get(status, 'Unknown')}\r\n"
        f"Content-Type: {content_type}\r\n{body}\r\n{extra}\r\n"
    ).encode("latin-1")


def _chunks(body: bytes) -> bytes:
    """Return a body in chunks of 16 bytes and their end."""
    cut = [body[i : i + 16] for i in range(0, len(body), 16)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in cut) + b"0\r\n\r\n"


class Sandbox:
    """The pretended Graph.

    Args:
        behaviour: the rules.
        ledger: where every send is noted.
        clock: for bucket and stamps.
        ids: for latency and wamids.
        admin_token: asked of the admin paths; None asks nothing, an empty one lets nobody in.
        webhooks: told of what is accepted; None = nobody is.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        admin_token: str | None = None,
        webhooks: Webhooks | None = None,
    ) -> None:
        """Keep what is given; `listen` opens the port."""
        self._behaviour = behaviour
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._admin_token = admin_token
        self._webhooks = webhooks or Webhooks(Hooks(), "", clock, ids)
        self._epoch = f"{clock.now_ms():X}"
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_hanging = False
        self.is_shut = False
        self.connections: set[Connection] = set()
        self.host = "127.0.0.1"
        self.port = 0

    async def listen(self, host: str, port: int) -> None:
        """Open the port; 0 picks a free one."""
        self.is_shut = False
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), host, port, backlog=1_024)
        self.host, self.port = host, self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close the port and every connection, then the ledger."""
        for task in self._tasks:
            task.cancel()
        self._shut()
        await self._webhooks.close()
        await self._ledger.close()

    def _shut(self) -> None:
        self.is_shut = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in tuple(self.connections):
            connection.drop()

    def hear(self, heard: Heard, connection: Connection) -> None:
        """Answer one request, now or later."""
        if heard.path.startswith("/_sandbox/"):
            task = asyncio.get_running_loop().create_task(self._administer(heard, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        if self._is_hanging:
            return
        version, _, rest = heard.path[1:].partition("/")
        node, _, edge = rest.partition("/")
        if heard.method == "POST" and edge in ("messages", "marketing_messages"):
            self._send(heard, version, node, connection)
            return
        is_list = urlsplit(edge).path == "message_templates"
        refusal = self._behaviour.refused_token(heard.token, "")
        if refusal is None and is_list and heard.method == "GET":
            refusal = self._behaviour.refused_list()
        if refusal is not None:
            connection.answer(refusal.http, self._error(refusal), self._usage(refusal))
        elif heard.method == "GET" and is_list:
            connection.answer(200, self._list(heard.path))
        elif heard.method == "GET":
            connection.answer(200, self._node(rest))
        else:
            unsupported = Verdict("refused", 100, 400, "Unsupported request.")
            connection.answer(400, self._error(unsupported))

    # Sends

    def _send(self, heard: Heard, version: str, sender: str, connection: Connection) -> None:
        now = self._clock.monotonic()
        try:
            request = _requests.decode(heard.body)
            fault = None
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            request = Request()
            fault = Verdict("refused", 100, 400, "The body is not a JSON object.")
        to = request.to if isinstance(request.to, str) else ""
        delivered = delivered_to(to, self._behaviour.config.country)
        verdict = (
            self._behaviour.refused_token(heard.token, sender)
            or fault
            or self._behaviour.judge(request, sender, delivered, now)
        )
        step = verdict.step or _PLAIN
        count = self._ledger.counts.get(to)
        seq = self._ledger.seq + 1
        wamid = step.wamid or f"wamid.{self._epoch}{seq:010X}"
        opaque = request.biz_opaque_callback_data
        entry = Entry(
            seq=seq,
            t_mono=now,
            t_ms=self._clock.now_ms(),
            sender=sender,
            version=version,
            attempt=count.requests + 1 if count else 1,
            to=to,
            delivered=delivered,
            opaque=opaque if isinstance(opaque, str) else None,
            parsed=parse_opaque(opaque),
            sha256=hashlib.sha256(heard.body).hexdigest(),
            verdict=verdict.word,
            code=verdict.code,
            wamid=wamid if verdict.word == "accepted" else None,
            answered=not (step.cut or step.reset or step.hang or step.endless),
        )
        if step.raw is not None:
            status, text, content_type = (
                step.raw.status,
                step.raw.body.encode(),
                step.raw.content_type,
            )
        elif verdict.code is not None:
            status, text, content_type = verdict.http, self._error(verdict), JSON
        else:
            status, text, content_type = 200, _accepted(to, delivered, wamid, step), JSON
        extra = self._usage(verdict)
        if step.raw is not None:
            extra += "".join(f"{name}: {value}\r\n" for name, value in step.raw.headers.items())
        if step.gzip:
            text, extra = gzip.compress(text), extra + "Content-Encoding: gzip\r\n"
        is_chunked = step.chunked or step.endless
        head = _head(status, None if is_chunked else len(text), extra, content_type)
        if is_chunked:
            text = _chunks(text)
        draw = self._ids.jitter() if self._behaviour.config.latency_ms else 0.0
        delay_s = self._behaviour.latency_s(draw) if step.delay_ms is None else step.delay_ms / 1000
        due = now + delay_s

        def leave() -> None:
            self._webhooks.accepted(entry, step.failed)
            wait_s = due - self._clock.monotonic() if delay_s else 0.0
            if wait_s > 0:
                asyncio.get_running_loop().call_later(
                    wait_s, self._deliver, connection, head, text, step
                )
            else:
                self._deliver(connection, head, text, step)

        self._ledger.append(entry, leave)

    def _deliver(self, connection: Connection, head: bytes, text: bytes, step: Step) -> None:
        if step.hang:
            return
        if step.cut in ("before_read", "after_read") or (step.reset and step.cut is None):
            connection.drop(reset=step.reset)
        elif step.cut == "in_headers":
            connection.write(head[: len(head) // 2])
            connection.close()
        elif step.cut == "in_body":
            connection.write(head + text[: len(text) // 2])
            connection.close()
        elif step.endless:
            connection.write(head)
            self._pour(connection)
        elif step.drip_bytes_per_s > 0:
            self._drip(connection, head + text, step.drip_bytes_per_s)
        else:
            connection.finish(head + text)

    def _drip(self, connection: Connection, rest: bytes, bytes_per_s: int) -> None:
        connection.write(rest[:1])
        if len(rest) == 1:
            connection.finish(b"")
            return
        asyncio.get_running_loop().call_later(
            1 / bytes_per_s, self._drip, connection, rest[1:], bytes_per_s
        )

    def _pour(self, connection: Connection) -> None:
        if connection.is_open:
            connection.write(_ENDLESS)
            asyncio.get_running_loop().call_later(_ENDLESS_EVERY_S, self._pour, connection)

    def _usage(self, verdict: Verdict) -> str:
        config = self._behaviour.config
        is_limit = verdict.code is not None and row_of(verdict.code, 400).action in ("slow", "park")
        minutes = config.regain_min if is_limit else 0
        usage = (
            'x-business-use-case-usage: {"100":[{"type":"whatsapp","call_count":1,'
            '"total_cputime":1,"total_time":1,'
            f'"estimated_time_to_regain_access":{minutes}}}]}}\r\n'
        )
        if is_limit and config.retry_after_s:
            usage += f"Retry-After: {config.retry_after_s}\r\n"
        return usage

    def _error(self, verdict: Verdict) -> bytes:
        meaning = row_of(verdict.code, verdict.http).meaning
        is_transient = verdict.step is not None and verdict.step.transient
        return _json.encode(
            {
                "error": ({"is_transient": True} if is_transient else {})
                | {
                    "message": f"(#{verdict.code}) {meaning}",
                    "type": "OAuthException",
                    "code": verdict.code,
                    "error_data": {
                        "messaging_product": "whatsapp",
                        "details": verdict.details or meaning,
                    },
                    "fbtrace_id": f"A{self._epoch}{self._ledger.seq:X}",
                }
            }
        )

    def _node(self, rest: str) -> bytes:
        node = urlsplit(rest).path.partition("/")[0]
        return _json.encode(
            {
                "id": node,
                "display_phone_number": "+1 555-000-0000",
                "verified_name": "Sandbox",
                "quality_rating": "GREEN",
                "throughput": {"level": "STANDARD"},
                "health_status": {"can_send_message": "AVAILABLE"},
            }
        )

    def _list(self, path: str) -> bytes:
        """Return a page of templates; a cursor is the place where the next one begins."""
        query = parse_qs(urlsplit(path).query)
        given = (query.get("after", ["0"])[-1], query.get("limit", ["25"])[-1])
        after, limit = (int(text) if text.isdigit() else 0 for text in given)
        found, has_more = self._behaviour.listed(after, limit)
        paging: dict[str, Any] = {"cursors": {"before": str(after), "after": str(after + limit)}}
        if has_more:
            paging["next"] = f"http://{self.host}:{self.port}{path}&after={after + limit}"
        return _json.encode({"data": found, "paging": paging})

    # Admin paths

    async def _administer(self, heard: Heard, connection: Connection) -> None:
        if self._admin_token is not None and heard.token != (self._admin_token or None):
            connection.answer(401, b'{"error":"admin token"}')
            return
        url = urlsplit(heard.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        route = self._routes().get((heard.method, url.path.removeprefix("/_sandbox/")))
        if route is None:
            connection.answer(404, b'{"error":"no such admin path"}')
            return
        try:
            answer = await route(heard.body, query)
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as error:
            connection.answer(400, _json.encode({"error": str(error)}))
            return
        if isinstance(answer, bytes):
            connection.answer(200, answer, content_type="application/x-ndjson")
        else:
            connection.answer(200, _json.encode(answer))

    def _routes(
        self,
    ) -> dict[tuple[str, str], Callable[[bytes, dict[str, str]], Awaitable[object]]]:
        return {
            ("GET", "config"): self._show_config,
            ("PATCH", "config"): self._change_config,
            ("GET", "scripts"): self._show_scripts,
            ("POST", "scripts"): self._add_scripts,
            ("DELETE", "scripts"): self._drop_scripts,
            ("POST", "templates"): self._add_template,
            ("GET", "ledger"): self._show_ledger,
            ("GET", "counts"): self._show_counts,
            ("GET", "stats"): self._show_stats,
            ("GET", "hooks"): self._show_hooks,
            ("PATCH", "hooks"): self._change_hooks,
            ("POST", "inbound"): self._inbound,
            ("POST", "event"): self._event,
            ("POST", "statuses"): self._say_statuses,
            ("POST", "token"): self._change_token,
            ("POST", "down"): self._go_down,
            ("POST", "reset"): self._reset,
        }

    async def _show_config(self, _body: bytes, _query: dict[str, str]) -> Config:
        return self._behaviour.config

    async def _change_config(self, body: bytes, _query: dict[str, str]) -> Config:
        now = msgspec.to_builtins(self._behaviour.config)
        self._behaviour.config = msgspec.convert(now | _any.decode(body), Config)
        return self._behaviour.config

    async def _show_scripts(self, _body: bytes, _query: dict[str, str]) -> list[Script]:
        return self._behaviour.scripts

    async def _add_scripts(self, body: bytes, _query: dict[str, str]) -> list[Script]:
        added = _scripts.decode(body)
        scripts = added if isinstance(added, list) else [added]
        if any(not script.steps for script in scripts):
            raise ValueError("a script needs at least one step")
        self._behaviour.scripts.extend(scripts)
        return self._behaviour.scripts

    async def _drop_scripts(self, _body: bytes, _query: dict[str, str]) -> list[Script]:
        self._behaviour.scripts.clear()
        return []

    async def _add_template(self, body: bytes, _query: dict[str, str]) -> Template:
        template = msgspec.json.decode(body, type=Template)
        self._behaviour.templates[template.name, template.language] = template
        return template

    async def _show_ledger(self, _body: bytes, query: dict[str, str]) -> bytes:
        await self._ledger.settled()
        return self._ledger.after(int(query.get("after", "0")))

    async def _show_counts(self, _body: bytes, query: dict[str, str]) -> dict[str, Count]:
        least = int(query.get("min", "1"))
        return {to: c for to, c in self._ledger.counts.items() if c.requests >= least}

    async def _show_stats(self, _body: bytes, _query: dict[str, str]) -> dict[str, object]:
        return {
            "requests": self._ledger.seq,
            "codes": self._ledger.codes,
            "senders": {sender: _speed(times) for sender, times in self._ledger.times.items()},
        }

    async def _show_hooks(self, _body: bytes, _query: dict[str, str]) -> Hooks:
        return self._webhooks.hooks

    async def _change_hooks(self, body: bytes, _query: dict[str, str]) -> Hooks:
        now = msgspec.to_builtins(self._webhooks.hooks)
        self._webhooks.hooks = msgspec.convert(now | _any.decode(body), Hooks)
        return self._webhooks.hooks

    async def _inbound(self, body: bytes, _query: dict[str, str]) -> dict[str, object]:
        """Take `{"sender": id, "messages": […]}` or `{"sender": id, "user_preferences": […]}`."""
        asked = _any.decode(body)
        metadata = {"phone_number_id": asked.pop("sender")}
        field = "user_preferences" if "user_preferences" in asked else "messages"
        value = {"messaging_product": "whatsapp", "metadata": metadata, **asked}
        self._webhooks.post(webhook(field, [value]))
        return {"field": field}

    async def _event(self, body: bytes, _query: dict[str, str]) -> dict[str, object]:
        """Take `{"field": name, "value": {…}, "waba": id}`."""
        asked = _any.decode(body)
        self._webhooks.post(webhook(asked["field"], [asked["value"]], asked.get("waba", "0")))
        return {"field": asked["field"]}

    async def _say_statuses(self, body: bytes, _query: dict[str, str]) -> dict[str, object]:
        """Take `{"job": id, "word": "read", "position": 7, "code": 131026}`; the last two or none.

        `word` is `sent`, `delivered`, `read`, `failed`, `stop` or `resume`.
        """
        asked = _any.decode(body)
        word, code, position = asked["word"], asked.get("code"), asked.get("position")
        if word not in STATUSES + WISHES:
            raise ValueError(f"word is one of {', '.join(STATUSES + WISHES)}")
        await self._ledger.settled()
        entries = [
            entry
            for entry in await asyncio.to_thread(self._ledger.of_job, asked["job"])
            if position is None or (entry.parsed and entry.parsed.position == position)
        ]
        if word in WISHES:
            self._webhooks.wish(entries, word)
        else:
            self._webhooks.say(entries, word, code if word == "failed" else None)
        return {"messages": len(entries)}

    async def _change_token(self, body: bytes, _query: dict[str, str]) -> dict[str, object]:
        """Take `{"revoke": token}` or `{"rotate": token, "to": token}`."""
        asked = _any.decode(body)
        config = self._behaviour.config
        old = asked.get("revoke") or asked["rotate"]
        config.revoked.append(old)
        number = config.tokens.pop(old, "")
        if "to" in asked:
            config.revoked = [token for token in config.revoked if token != asked["to"]]
            if config.tokens or number:
                config.tokens[asked["to"]] = number
        return {"revoked": config.revoked}

    async def _go_down(self, body: bytes, _query: dict[str, str]) -> dict[str, object]:
        """Take `{"seconds": 3, "mode": "refuse" | "hang"}`; it begins once this is answered."""
        asked = _any.decode(body)
        seconds, mode = float(asked["seconds"]), asked.get("mode", "refuse")
        if mode not in ("refuse", "hang"):
            raise ValueError("mode is refuse or hang")
        task = asyncio.get_running_loop().create_task(self._down(seconds, mode))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return {"seconds": seconds, "mode": mode}

    async def _down(self, seconds: float, mode: str) -> None:
        await self._clock.sleep(0.05)
        if mode == "hang":
            self._is_hanging = True
            await self._clock.sleep(seconds)
            self._is_hanging = False
            return
        self._shut()
        await self._clock.sleep(seconds)
        await self.listen(self.host, self.port)

    async def _reset(self, body: bytes, _query: dict[str, str]) -> dict[str, object]:
        self._behaviour.reset()
        if body and _any.decode(body).get("ledger"):
            await self._ledger.renew()
        return {"ok": True}


def _accepted(to: str, delivered: str, wamid: str, step: Step) -> bytes:
    if step.merge or step.message_status:
        plain = _any.decode(_accepted(to, delivered, wamid, _PLAIN))
        if step.message_status:
            plain["messages"][0]["message_status"] = step.message_status
        return _json.encode(plain | step.merge)
    return b"".join(
        (
            b'{"messaging_product":"whatsapp","contacts":[{"input":',
            _json.encode(to),
            b',"wa_id":"',
            whatsapp_id(delivered).encode(),
            b'"}],"messages":[{"id":"',
            wamid.encode(),
            b'"}]}',
        )
    )


def _speed(times: array[float]) -> dict[str, float]:
    """Return requests, their mean rate and the most of them in any second."""
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= 1.0:
            first += 1
        most = max(most, last - first + 1)
    span_s = times[-1] - times[0]
    mean = (len(times) - 1) / span_s if span_s > 0 else 0.0
    return {"requests": len(times), "mean_per_s": round(mean, 3), "max_in_1s": most}
