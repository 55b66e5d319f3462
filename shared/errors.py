"""Every exception this program raises on purpose."""

from __future__ import annotations

from typing import ClassVar


class DrumbeatError(Exception):
    """The root: the only thing the edge of a process catches.

    `code` is the stable word that problem+json, logs and exit messages carry.
    """

    code: ClassVar[str] = "internal"


class SettingsError(DrumbeatError):
    """A variable is unknown, does not parse or is out of range: the process must not start.

    The message names every such variable, one a line.
    """

    code = "bad_settings"


class Fault:
    """One thing wrong with one place of a request.

    Attributes:
        pointer: JSON pointer (RFC 6901) of the place, such as `/recipients/17`.
        code: a word of interfaces' tables, such as `bad_format`.
        detail: our own sentence; never holds the offending value.
        row: index in `recipients`, counted from 0; None when the place is not a row.
    """

    __slots__ = ("code", "detail", "pointer", "row")

    def __init__(self, pointer: str, code: str, detail: str, row: int | None = None) -> None:
        """Keep the four parts as they are."""
        self.pointer = pointer
        self.code = code
        self.detail = detail
        self.row = row

    def __repr__(self) -> str:
        """Show pointer and code; the detail is for people."""
        return f"Fault({self.pointer!r}, {self.code!r})"


class RequestError(DrumbeatError):
    """Somebody asked for something that cannot be done; the caller must change the request.

    Attributes:
        word: the problem's `code`; also decides the status (`api.problems`).
        detail: a sentence for the caller; never echoes what was sent.
    """

    def __init__(self, word: str, detail: str) -> None:
        """Keep the word and the sentence."""
        super().__init__(detail)
        self.word = word
        self.detail = detail


class MalformedError(RequestError):
    """Not JSON, wrong encoding, wrong media type or too big: 400, 413, 415."""


class InvalidError(RequestError):
    """JSON that says the wrong thing: 422, all rows at once.

    Attributes:
        faults: at most 100 of them, in the order of the request.
        total: how many there were in all.
    """

    def __init__(
        self, word: str, detail: str, faults: list[Fault] | None = None, total: int | None = None
    ) -> None:
        """Keep the first 100 faults and the count of all."""
        super().__init__(word, detail)
        self.faults = (faults or [])[:100]
        self.total = len(faults or []) if total is None else total


class DeniedError(RequestError):
    """Nobody is asking (401), or somebody who may not (403)."""


class NotFoundError(RequestError):
    """Absent, or another's: the same answer, 404."""

    def __init__(self) -> None:
        """Take no argument: what is absent and what is foreign must look alike."""
        super().__init__("not_found", "There is nothing here that you may see.")


class ConflictError(RequestError):
    """The state does not allow it, or a key is still in use: 409.

    Attributes:
        state: the job's state, when that is the reason.
        retry_after_s: when asking again makes sense; None when it never does.
    """

    def __init__(
        self, word: str, detail: str, state: str | None = None, retry_after_s: int | None = None
    ) -> None:
        """Keep the state the caller collided with."""
        super().__init__(word, detail)
        self.state = state
        self.retry_after_s = retry_after_s


class TooManyError(RequestError):
    """Over a limit: 429.

    Attributes:
        retry_after_s: seconds until it makes sense to ask again, at least 1.
    """

    def __init__(self, word: str, detail: str, retry_after_s: int) -> None:
        """Keep when to come back."""
        super().__init__(word, detail)
        self.retry_after_s = max(1, retry_after_s)


class UnavailableError(RequestError):
    """The service cannot do it now: 503, always with Retry-After.

    Attributes:
        retry_after_s: seconds until it makes sense to ask again.
    """

    def __init__(self, word: str, detail: str, retry_after_s: int = 5) -> None:
        """Keep when to come back."""
        super().__init__(word, detail)
        self.retry_after_s = retry_after_s


class StoreError(DrumbeatError):
    """A store refused or was lost: 503 at the API, "try again, facts in hand" in a worker."""

    code = "storage_unavailable"


class QueueError(StoreError):
    """Redis refused, or was lost.

    Attributes:
        refused: True when nothing can have happened: no connection was made, or Redis itself
            answered a refusal (OOM, READONLY, LOADING, MISCONF). False when the answer was lost
            and nobody can know.
        full: True when the refusal was OOM: the problem's code is `storage_full`.
    """

    def __init__(self, message: str, *, refused: bool, full: bool = False) -> None:
        """Keep what is known about the effect."""
        super().__init__(message)
        self.refused = refused
        self.full = full


class ArchiveError(StoreError):
    """PostgreSQL refused, or was lost.

    Attributes:
        hopeless: what was to be written can never be: it is wrong in itself, not the server.
    """

    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        """Keep whether trying again can help."""
        super().__init__(message)
        self.hopeless = hopeless


class SealError(DrumbeatError):
    """A token cannot be opened with the keys in BULK_SECRET_KEY: its sender pauses."""

    code = "token_sealed"
