"""The two live streams: who may watch, where it goes on, and one loop that writes frames.

Ownership is asked of PostgreSQL, which also has the end of jobs whose keys have gone from Redis.
After the first byte nothing here raises: a stream ends with its jobs, with the process, with its
credential or with its client.
"""

from __future__ import annotations

import asyncio
from typing import Final, Literal

import msgspec
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from api import progress, wire
from api.auth import READ, Credentials, Principal, principal
from api.guard import address_of, headers_of
from api.hub import Frame, Subscription
from api.owned import note_foreign
from api.resources import Resources, resources
from api.router import REQUEST_ID, Route
from api.views import job_of
from shared import ids, keys
from shared.archive import JobRow
from shared.errors import (
    DeniedError,
    Fault,
    InvalidError,
    NotFoundError,
    QueueError,
    RequestError,
    StoreError,
)
from shared.models import JobStatus

RETRY_FIRST_S: Final = 1.0
RECEIPTS_MS: Final = 86_400_000  # so long after its end a job's receipts are told
BYE_MS: Final = (500, 3000)
# Rows of credentials are kept for a second: many streams of one user ask once.
CREDENTIALS: Final = Credentials()
_HEARTBEAT: Final = b": hb\n\n"
_MEDIA: Final = frozenset({"text/event-stream", "text/*", "*/*"})

Ending = Literal["client", "slow", "end", "bye", "revoked"]


class _EndedError(Exception):
    """The stream is over; the loop's only way out."""

    def __init__(self, reason: Ending) -> None:
        super().__init__(reason)
        self.reason: Ending = reason


class Response(EventSourceResponse):
    """aiohttp-sse's response, written as bytes that many connections share (pitfalls E1 to E4)."""

    def __init__(self, made: Resources, request_id: str) -> None:
        """Take the headers of every answer, and those that make proxies pass a stream on."""
        settings = made.settings
        super().__init__(
            headers={**headers_of(settings), "X-Request-Id": request_id},
            send_timeout=settings.sse_send_timeout_s,
            ping_interval=settings.sse_heartbeat_s,
        )
        self.headers["Cache-Control"] = "no-store, no-transform"

    async def _ping(self) -> None:
        # The loop below writes the heartbeats: two writers must not meet in one socket.
        await asyncio.Event().wait()

    async def put(self, data: bytes) -> None:
        """Write bytes and wait until the socket's buffer has room again.

        Raises:
            _EndedError: the client left, or took longer than SSE_SEND_TIMEOUT_S: aborted.
        """
        try:
            async with asyncio.timeout(self._send_timeout):
                await self.write(data)
                if self._payload_writer is not None:
                    await self._payload_writer.drain()
        except TimeoutError as error:
            self._abort_transport()
            raise _EndedError("slow") from error
        except (ConnectionError, RuntimeError) as error:
            raise _EndedError("client") from error


async def follow_one(request: web.Request) -> web.StreamResponse:
    """GET /realtime/bulk/{jobId}."""
    return await _follow(request, [request.match_info["jobId"]], can_resume=True)


async def follow_many(request: web.Request) -> web.StreamResponse:
    """GET /realtime/bulk?jobs=a,b,…."""
    most = resources(request).settings.sse_jobs_max
    wanted = sorted({word for word in request.query.get("jobs", "").split(",") if word})
    if not 1 <= len(wanted) <= most:
        detail = f"jobs takes 1 to {most} job ids with commas between."
        fault = Fault("", "validation_failed", detail)
        raise InvalidError("validation_failed", detail, [fault])
    return await _follow(request, wanted, can_resume=False)


ROUTES: Final = (
    Route("GET", "/realtime/bulk/{jobId}", follow_one, READ, "stream", is_stream=True),
    Route("GET", "/realtime/bulk", follow_many, READ, "streams", is_stream=True),
)


def _end_event(row: JobRow) -> str | None:
    """Return the id of a job's end; None while PostgreSQL lacks outcomes that Redis has."""
    return row.end_event if row.has_ended else None


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _check_accept(request: web.Request) -> None:
    header = request.headers.get("Accept", "*/*")
    for part in header.split(","):
        media, *parameters = (word.strip().lower() for word in part.split(";"))
        weights = [p[2:] for p in parameters if p.startswith("q=")]
        if media in _MEDIA and not any(w.strip("0.") == "" for w in weights):
            return
    raise RequestError("not_acceptable", "This is a stream of text/event-stream.")


async def _rows(made: Resources, asker: Principal, job_ids: list[str]) -> dict[str, JobRow]:
    rows: dict[str, JobRow] = {}
    for job_id in job_ids:
        if not ids.is_job_id(job_id) or keys.shard_of(job_id) >= made.queue.shards:
            raise NotFoundError
        row = await made.archive.job(job_id, asker.owner)
        if row is None:
            raise NotFoundError
        rows[job_id] = row
    return rows


async def _follow(
    request: web.Request, job_ids: list[str], *, can_resume: bool
) -> web.StreamResponse:
    made, asker = resources(request), principal(request)
    _check_accept(request)
    rows = await _rows(made, asker, job_ids)
    given = request.headers.get("Last-Event-ID", request.query.get("lastEventId")) or None
    with made.hub.seat(asker.user_id, address_of(request, made.settings)):
        # Watching begins before anything is read, so that no change can fall between.
        subscription = made.hub.subscribe(job_ids, lambda: _is_gone(request))
        reason: Ending = "client"
        try:
            stays = can_resume and request.query.get("receipts") == "1"
            stream = _Stream(request, made, rows, subscription, stays=stays)
            await stream.look()
            resume = await stream.resume(given, can_resume=can_resume)
            if resume == "stop":
                reason = "end"
                return web.Response(status=204)
            for row in rows.values():
                await note_foreign(request, made, asker, row)
            response = Response(made, request[REQUEST_ID])
            try:
                await response.prepare(request)
            except (AssertionError, ConnectionError):
                return response  # gone before the first byte (pitfalls E9)
            async with response:
                try:
                    await stream.run(response, resume)
                except _EndedError as ended:
                    reason = ended.reason
            return response
        finally:
            made.hub.unsubscribe(subscription, reason)


class _Stream:
    """One connection: what it still has to tell, and the loop that tells it."""

    def __init__(
        self,
        request: web.Request,
        made: Resources,
        rows: dict[str, JobRow],
        subscription: Subscription,
        *,
        stays: bool,
    ) -> None:
        self._request = request
        self._made = made
        self._owner = principal(request).owner
        self._rows = rows
        self._subscription = subscription
        self._left = list(rows)
        self._statuses: dict[str, JobStatus | None] = {}
        self._is_read = False
        self._next_beat = 0.0
        self._stays = stays
        # What was told last after the end: its id, and the numbers that receipts move.
        self._last = ""
        self._told: tuple[int, ...] | None = None

    async def look(self) -> bool:
        """Read what Redis has of jobs that PostgreSQL has not ended; False when it is away."""
        wanted = [job for job, row in self._rows.items() if _end_event(row) is None]
        try:
            found = await self._made.hub.snapshots(wanted)
        except QueueError:
            return False
        self._statuses = dict(zip(wanted, found, strict=True))
        self._is_read = True
        return True

    async def resume(self, given: str | None, *, can_resume: bool) -> progress.Resume:
        """Decide what comes first; see `progress.decide_resume`."""
        if given is None:
            return "snapshot"
        ends = [self._end_of(job_id) for job_id in self._left]
        end = None if None in ends else max((e for e in ends if e), key=progress.order_or_zero)
        if not can_resume and end is None:
            return "snapshot"
        job_id = self._left[0]
        try:
            last = await self._made.queue.last_event(keys.shard_of(job_id))
        except QueueError:
            last = progress.NO_EVENT
        status = self._statuses.get(job_id)
        newest = end or (status.event if status is not None else progress.NO_EVENT)
        if not self._is_read and end is None:
            return "snapshot"
        if self._stays and end is not None and progress.is_past(given, end):
            return self._go_on(job_id, given)
        answer = progress.decide_resume(given, newest, end, last)
        if not can_resume:
            return "stop" if answer == "stop" else "snapshot"
        word = "nothing_missed" if answer in {"nothing", "stop"} else answer
        self._made.metrics.sse_resumes_total.labels(word).inc()
        if answer == "nothing":
            self._subscription.skip_to(job_id, given)
        return answer

    def _go_on(self, job_id: str, given: str) -> progress.Resume:
        """Leave the end out for a client that has it: what he misses are receipts."""
        if self._is_too_late(self._rows[job_id]):
            return "stop"
        self._left.remove(job_id)
        self._last, self._told = given, ()
        return "nothing"

    def _is_too_late(self, row: JobRow) -> bool:
        ended_ms = row.finished_ms or self._made.clock.now_ms()
        return self._made.clock.now_ms() > ended_ms + RECEIPTS_MS

    def _end_of(self, job_id: str) -> str | None:
        status = self._statuses.get(job_id)
        return _end_event(self._rows[job_id]) or (
            status.event if status is not None and status.is_ended else None
        )

    def _place(self, job_id: str) -> tuple[int, int]:
        status = self._statuses.get(job_id)
        event = status.event if status is not None else _end_event(self._rows[job_id])
        return progress.order_or_zero(event or "")

    async def run(self, response: Response, resume: progress.Resume) -> None:
        """Write until the end.

        Raises:
            _EndedError: always.
        """
        settings, clock = self._made.settings, self._made.clock
        await response.put(b"retry: %d\n: ok\n\n" % settings.sse_retry_ms)
        self._next_beat = clock.monotonic() + settings.sse_heartbeat_s
        is_told = resume == "nothing"
        while True:
            if not is_told and (self._is_read or await self.look()):
                await self._tell_all(response, is_reset=resume == "reset")
                is_told = True
            for frame in self._subscription.take():
                await self._write(response, frame)
            if self._subscription.is_gone():
                raise _EndedError("client")
            if self._subscription.is_closing:
                low, high = BYE_MS
                retry = low + int(self._made.ids.jitter() * (high - low))
                await response.put(b"event: bye\nretry: %d\ndata: {}\n\n" % retry)
                raise _EndedError("bye")
            if self._subscription.is_lost:
                await self._tell_lost(response)
            if not self._left:
                await self._tell_receipts(response)
            await self._wait(response, is_told=is_told and bool(self._left))

    async def _wait(self, response: Response, *, is_told: bool) -> None:
        left = self._next_beat - self._made.clock.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left if is_told else min(left, RETRY_FIRST_S))):
                await self._subscription.ready.wait()
        except TimeoutError:
            if self._made.clock.monotonic() < self._next_beat:
                return
            # From now on: a process that stood still for long has no beats to make up for.
            self._next_beat = self._made.clock.monotonic() + self._made.settings.sse_heartbeat_s
            await response.put(_HEARTBEAT)
            await self._check_credential(response)

    async def _tell_all(self, response: Response, *, is_reset: bool) -> None:
        # Lowest event id first: the reader must be left with the largest, or it would come back
        # after the last end for ever.
        for job_id in sorted(self._left, key=self._place):
            status = self._statuses.get(job_id)
            if status is None:
                await self._tell_row(response, self._rows[job_id], is_reset=is_reset)
                continue
            frame = self._made.hub.frame(status, "snapshot", is_reset=is_reset)
            if self._subscription.accept(frame):
                await self._write(response, frame)

    async def _tell_row(
        self, response: Response, row: JobRow, *, is_reset: bool, event_id: str = ""
    ) -> None:
        """Tell a job as PostgreSQL has it: ended, or on its way to Redis.

        Args:
            response: where it is written.
            row: of the job.
            is_reset: the id may go back.
            event_id: of what is told after the end.
        """
        now_ms = self._made.clock.now_ms()
        job = job_of(row, None, now_ms)
        numbers, end = job.progress, _end_event(row)
        is_end = end is not None
        if is_end:
            try:
                reasons = await self._made.archive.reason_counts(row.id)
            except StoreError:
                reasons = {}
            by_code, by_reason = progress.named(reasons)
            numbers = msgspec.structs.replace(numbers, by_code=by_code, by_reason=by_reason)
        event = progress.Event(
            type="receipts" if event_id else "end" if is_end else "snapshot",
            job_id=row.id,
            state=job.state,
            wait=job.wait,
            at=wire.time_text(now_ms),
            reset=is_reset,
            progress=numbers,
        )
        if event_id:
            data = progress.encode(event_id, event)
            await response.put(data)
            self._made.hub.sent(Frame(row.id, event_id, now_ms, is_end, is_reset, data))
            return
        data = progress.encode(end or "", event)
        await self._write(response, Frame(row.id, end or "", now_ms, is_end, is_reset, data))

    async def _tell_receipts(self, response: Response) -> None:
        """Tell what receipts have moved since the end, as PostgreSQL adds them up.

        Raises:
            _EndedError: a day is over.
        """
        [job_id] = self._rows
        try:
            row = await self._made.archive.job(job_id, self._owner)
        except StoreError:
            return
        if row is None or _end_event(row) is None:
            return  # what is not written yet would look like a step back
        if self._is_too_late(row):
            raise _EndedError("end")
        now = (row.receipts_version, row.unknown)
        is_news = self._told is not None or row.receipts_version > 0
        if now != self._told and is_news:
            self._last = progress.after(self._last, self._made.clock.now_ms())
            await self._tell_row(response, row, is_reset=False, event_id=self._last)
        self._told = now

    async def _tell_lost(self, response: Response) -> None:
        """A watched job has gone from Redis: PostgreSQL may have its end."""
        self._subscription.is_lost = False
        for job_id in list(self._left):
            try:
                row = await self._made.archive.job(job_id, self._owner)
            except StoreError:
                return
            if row is not None and _end_event(row) is not None:
                await self._tell_row(response, row, is_reset=False)

    async def _write(self, response: Response, frame: Frame) -> None:
        if frame.job not in self._left:
            return
        await response.put(frame.data)
        self._made.hub.sent(frame)
        if frame.is_end:
            self._left.remove(frame.job)
            self._last = frame.event
            if not self._left and not self._stays:
                raise _EndedError("end")

    async def _check_credential(self, response: Response) -> None:
        try:
            owner = (await CREDENTIALS.principal_of(self._request)).owner
            if owner is not None and any(row.owner != owner for row in self._rows.values()):
                # An admin's role was taken while he watched somebody else's job.
                raise DeniedError("forbidden", "Only an admin may watch this.")
        except StoreError:
            return
        except RequestError as error:
            if isinstance(error, DeniedError):
                await response.put(b"event: revoked\ndata: {}\n\n")
                raise _EndedError("revoked") from error
            raise _EndedError("client") from error
