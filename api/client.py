"""The API's other end: log in, submit, look, control, and follow a job through restarts.

What the server refuses is raised as the server raised it; tests, bench and command line use it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import aiohttp
import msgspec

from shared.clock import Clock
from shared.errors import (
    ConflictError,
    DeniedError,
    Fault,
    InvalidError,
    MalformedError,
    NotFoundError,
    RequestError,
    StoreError,
    TooManyError,
    UnavailableError,
)
from shared.ids import Ids

TIMEOUT_S: Final = 60
CONNECT_S: Final = 5
# Three heartbeats of the default SSE_HEARTBEAT_S: a stream silent for longer is dead.
SILENCE_S: Final = 45
RETRY_S: Final = 2.0
RETRY_MAX_S: Final = 30.0
_LOST: Final = (aiohttp.ClientError, TimeoutError, OSError)
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


class LostError(StoreError):
    """No server at any of the addresses answers."""

    code = "unreachable"


class Event(NamedTuple):
    """One SSE event; `retry_ms` 0 means that it brought none."""

    id: str
    name: str
    data: str
    retry_ms: int


class Parser:
    r"""Cut a byte stream into events, as WHATWG HTML, "Server-sent events", has it.

    >>> [e.data for e in Parser().feed(b"id: 1-0\ndata: {}\n\n: hb\n\n")]
    ['{}']
    """

    def __init__(self) -> None:
        """Begin between two events."""
        self._rest = b""
        self._id = ""
        self._name = ""
        self._data: list[str] = []
        self._retry_ms = 0

    def feed(self, piece: bytes) -> list[Event]:
        """Return the events that `piece` completes; one with neither data nor retry is none."""
        lines = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n")
        self._rest = lines.pop()
        found = [event for line in lines if (event := self._line(line.decode())) is not None]
        return [event for event in found if event.data or event.retry_ms]

    def _line(self, line: str) -> Event | None:
        if not line:
            event = Event(self._id, self._name, "\n".join(self._data), self._retry_ms)
            self._name, self._data, self._retry_ms = "", [], 0
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value
        elif name == "event":
            self._name = value
        elif name == "retry" and value.isdecimal():
            self._retry_ms = int(value)
        return None


class Client:
    """One caller at one API, which may be several processes.

    Args:
        base_url: origin, or several of them: when one is lost the next is asked.
        api_key: sent as a bearer; without one `login` brings a cookie.
        clock: for the waits between reconnects.
        ids: for their jitter.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        api_key: str | None = None,
        *,
        clock: Clock | None = None,
        ids: Ids | None = None,
    ) -> None:
        """Keep the addresses; `async with` opens the connections."""
        urls = [base_url] if isinstance(base_url, str) else list(base_url)
        self._urls = [url.rstrip("/") for url in urls]
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._clock = clock or Clock()
        self._ids = ids or Ids()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session."""
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            # Ours may live on an address, and a plain jar keeps no cookies of addresses.
            cookie_jar=aiohttp.CookieJar(unsafe=True),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S, connect=CONNECT_S),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """Return the open session, for what this class has no method for."""
        if self._session is None:
            raise RuntimeError("a client is used inside `async with`")
        return self._session

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
    ) -> Any:  # noqa: ANN401 - what the endpoint answers
        """Ask once at the first address that answers; return the decoded body, None without one.

        Only a GET is asked anew elsewhere after its answer was lost; any method is after its
        connection was refused.

        Raises:
            RequestError: the server said no; the subclass says which no.
            LostError: nobody answers.
        """
        data = None if body is None else _encode(body)
        sent = {**({"Content-Type": "application/json"} if data else {}), **(headers or {})}
        lost: Exception | None = None
        for _ in range(len(self._urls)):
            try:
                async with self.session.request(
                    method, self._urls[0] + path, data=data, headers=sent, params=params
                ) as response:
                    raw = await response.read()
            except _LOST as error:
                lost = error
                self._urls.append(self._urls.pop(0))
                if method != "GET" and not isinstance(error, aiohttp.ClientConnectorError):
                    break
                continue
            if response.status >= 400:  # noqa: PLR2004 - refusals begin here
                raise refusal(response.status, raw, response.headers.get("Retry-After"))
            return _decode(raw) if raw else None
        raise LostError(f"{self._urls[-1]} does not answer ({type(lost).__name__})") from lost

    async def login(self, email: str, password: str) -> dict[str, Any]:
        """Open a session; return who one is."""
        return await self._object("POST", "/api/session", {"email": email, "password": password})

    async def submit(
        self, body: dict[str, Any], idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Submit a job; with a key it may be repeated and makes one job."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        return await self._object("POST", "/api/bulk/send", body, headers)

    async def preflight(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return what would become of a submission."""
        return await self._object("POST", "/api/bulk/preflight", body)

    async def job(self, job_id: str, expand: str = "") -> dict[str, Any]:
        """Return one job."""
        params = {"expand": expand} if expand else None
        return await self._object("GET", f"/api/bulk/jobs/{job_id}", params=params)

    async def jobs(self, **filters: str) -> dict[str, Any]:
        """Return one page of jobs, newest first: `data`, `has_more`, `next_cursor`."""
        return await self._object("GET", "/api/bulk/jobs", params=filters)

    async def control(self, job_id: str, action: str, reason: str | None = None) -> dict[str, Any]:
        """Pause, resume or cancel a job; return it as it is then."""
        body = {"reason": reason} if reason is not None else None
        return await self._object("POST", f"/api/bulk/jobs/{job_id}/{action}", body)

    async def retry(
        self, job_id: str, body: dict[str, Any], idempotency_key: str
    ) -> dict[str, Any]:
        """Send again to those of a job that the body names; return the 202 of the child."""
        headers = {"Idempotency-Key": idempotency_key}
        return await self._object("POST", f"/api/bulk/jobs/{job_id}/retry", body, headers)

    async def export(self, job_id: str, form: str, filters: dict[str, str]) -> AsyncIterator[bytes]:
        """Yield a job's recipients as a file, piece by piece.

        Args:
            job_id: whose.
            form: `csv`, `ndjson` or `xlsx`.
            filters: as of the table of recipients.

        Raises:
            RequestError: the server said no.
            LostError: nobody answers, or not to the end.
        """
        path = f"{self._urls[0]}/api/bulk/jobs/{job_id}/recipients.{form}"
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=TIMEOUT_S)
        try:
            async with self.session.get(path, params=filters, timeout=timeout) as response:
                if response.status >= 400:  # noqa: PLR2004 - refusals begin here
                    raise refusal(response.status, await response.read())
                async for piece in response.content.iter_any():
                    yield piece
        except _LOST as error:
            raise LostError(f"{self._urls[0]} is lost ({type(error).__name__})") from error

    async def stats(self) -> dict[str, Any]:
        """Return the admin's figures."""
        return await self._object("GET", "/api/bulk/stats")

    async def _object(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        answer = await self.ask(method, path, body, headers, params)
        if not isinstance(answer, dict):
            raise LostError(f"{self._urls[0]}{path} answers something that is not Drumbeat's")
        return answer

    async def watch(
        self, job_id: str, last_event_id: str | None = None, *, patience_s: float = 300.0
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield a job's events with their ids, until its `end`, or at once when it is over.

        Reconnects by itself, at the next address, with the id of the last event.

        Args:
            job_id: whom to follow.
            last_event_id: where an earlier call stopped.
            patience_s: how long nobody may answer.

        Raises:
            RequestError: the server will not show it; asking again would not help.
            LostError: nobody has answered for `patience_s`.
        """
        follower = _Follower(self, job_id, last_event_id or "", patience_s)
        while not follower.is_over:
            async for event_id, data in follower.connect():
                yield event_id, data
                if data.get("type") == "end":
                    return

    async def wait(self, delay_s: float) -> None:
        """Wait with up to a quarter of jitter, so that followers do not return as one."""
        await self._clock.sleep(delay_s * (1 + self._ids.jitter() / 4))

    def monotonic(self) -> float:
        """Return the client's clock, seconds."""
        return self._clock.monotonic()

    def next_url(self) -> str:
        """Return the address to ask, and put it behind the others."""
        self._urls.append(self._urls.pop(0))
        return self._urls[-1]


class _Follower:
    """One `watch`: where it is, and when to give up."""

    def __init__(self, client: Client, job_id: str, last_id: str, patience_s: float) -> None:
        self._client = client
        self._job_id = job_id
        self._last_id = last_id
        self._patience_s = patience_s
        self._heard = client.monotonic()
        self._retry_s = RETRY_S
        self.is_over = False

    async def connect(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Follow one connection to its end; wait as long as the next one should."""
        headers = {"Accept": "text/event-stream"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        url = f"{self._client.next_url()}/realtime/bulk/{self._job_id}"
        delay_s = self._retry_s
        try:
            async with self._client.session.get(
                url,
                headers=headers,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S
                ),
            ) as response:
                if response.status == 204:  # noqa: PLR2004 - the stream is over for good
                    self.is_over = True
                    return
                if response.status >= 400:  # noqa: PLR2004 - refusals begin here
                    delay_s = await self._refused(response)
                else:
                    async for pair in self._read(response):
                        yield pair
                    delay_s = self._retry_s
        except _LOST as error:
            self._impatient(error)
        await self._client.wait(delay_s)

    async def _read(
        self, response: aiohttp.ClientResponse
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        parser = Parser()
        async for piece in response.content.iter_any():
            self._heard = self._client.monotonic()
            for event in parser.feed(piece):
                if event.retry_ms:
                    self._retry_s = min(RETRY_MAX_S, event.retry_ms / 1000)
                if event.name == "revoked":
                    raise DeniedError("unauthenticated", "the credential was revoked")
                if event.name == "bye":
                    return
                if not event.data:
                    continue
                self._last_id = event.id or self._last_id
                yield event.id, _decode(event.data)

    async def _refused(self, response: aiohttp.ClientResponse) -> float:
        """Return how long to wait, or raise what waiting does not heal."""
        error = refusal(response.status, await response.read(), response.headers.get("Retry-After"))
        if isinstance(error, TooManyError | UnavailableError):
            self._impatient(error)
            return float(min(RETRY_MAX_S, error.retry_after_s))
        raise error

    def _impatient(self, error: Exception) -> None:
        if self._client.monotonic() - self._heard > self._patience_s:
            raise LostError(f"no stream for {self._patience_s:g} s") from error


def refusal(status: int, raw: bytes, retry_after: str | None = None) -> RequestError:
    """Return a problem+json answer as the exception it was at the server."""
    try:
        body = _decode(raw)
    except msgspec.DecodeError:
        body = None
    said: dict[str, Any] = body if isinstance(body, dict) else {}
    word = str(said.get("code", f"http_{status}"))
    detail = str(said.get("detail", f"the server answered {status}"))
    after_s = int(retry_after) if retry_after and retry_after.isdecimal() else 0
    if status == 404:  # noqa: PLR2004
        return NotFoundError()
    if status in {401, 403}:
        return DeniedError(word, detail)
    if status == 409:  # noqa: PLR2004
        return ConflictError(word, detail, said.get("state"), after_s or None)
    if status == 422:  # noqa: PLR2004
        faults = [
            Fault(row["pointer"], row["code"], row["detail"], row.get("row"))
            for row in said.get("errors", [])
        ]
        return InvalidError(word, detail, faults, said.get("errors_total"))
    if status == 429:  # noqa: PLR2004
        return TooManyError(word, detail, after_s)
    if status >= 500:  # noqa: PLR2004
        return UnavailableError(word, detail, after_s or 5)
    return MalformedError(word, detail)
