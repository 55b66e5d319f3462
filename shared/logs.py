"""One JSON line an event, ids bound, phone numbers masked."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from shared.clock import Clock
from shared.settings import Settings

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# A run of 7 to 15 digits that no letter, digit, dot or dash touches: numbers as people and Graph
# write them; ids of ours and of streams hold letters or dashes, figures are not text.
_PHONE: Final = re.compile(r"(?<![\w.-])\+?\d{7,15}(?![\w-]|\.\d)")
_KEEP: Final = 2
_AS_THEY_ARE: Final = frozenset({"ts", "level", "logger", "version", "process", "jobId"})
_MINUTE_MS: Final = 60_000


def mask_phone(text: str) -> str:
    """Return `text` with every phone number cut down to its last two digits.

    >>> mask_phone("to +15550000042 and 15550000042, job_01m86db0v300hd99fdtgj8yepfzx, 130429")
    'to +…42 and …42, job_01m86db0v300hd99fdtgj8yepfzx, 130429'
    """
    return _PHONE.sub(
        lambda match: ("+" if match[0][0] == "+" else "") + "…" + match[0][-_KEEP:], text
    )


def mask(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask the numbers in all values of an event, nested ones too; a structlog processor."""
    return {
        key: value if key in _AS_THEY_ARE else _masked(value, key) for key, value in event.items()
    }


def _masked(value: object, key: str = "") -> object:
    if isinstance(value, str):
        return mask_phone(value)
    if isinstance(value, int) and key in {"phone", "to", "number", "recipient"}:
        return mask_phone(str(value))
    if isinstance(value, dict):
        return {mask_phone(str(name)): _masked(part, str(name)) for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(part, key) for part in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return mask_phone(repr(value))


def setup(
    settings: Settings, process: str, *, version: str = "", stream: TextIO | None = None
) -> None:
    """Send this process's log to standard output, ours and the libraries'.

    Args:
        settings: level, format, and the warnings that reading them gave.
        process: the word that every line carries: `api`, `worker`, `sandbox`, `cli`.
        version: ours, on every line.
        stream: where to write; None is standard output.
    """
    out = stream or sys.stdout
    level = _LEVELS[settings.log_level]
    console = settings.log_format == "console" or (settings.log_format == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        _stamp(process, version),
        structlog.processors.format_exc_info,
        mask,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.dev.ConsoleRenderer(colors=out.isatty())
                if console
                else structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Its lines hold query strings and addresses; `http.request` is our own.
    logging.getLogger("aiohttp.access").setLevel(logging.ERROR)
    for sentence in settings.warnings:
        get("settings").warning("settings.warning", detail=sentence)


def get(name: str) -> Any:  # noqa: ANN401 - structlog's proxy: a BoundLogger once it is used
    """Return the logger of a module."""
    return structlog.get_logger(name)


def _stamp(process: str, version: str) -> Processor:
    def stamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        event["version"] = version
        return event

    return stamp


class Refusals:
    """Says `send.refused` once per code, job and minute, however many there are.

    Args:
        logger: where the line goes.
        clock: tells minutes apart.
        keep: how many groups are held at most; the rest is said at once.
    """

    def __init__(self, logger: Any, clock: Clock, keep: int = 1000) -> None:  # noqa: ANN401
        """Begin with nothing counted."""
        self._logger = logger
        self._clock = clock
        self._keep = keep
        self._counts: dict[tuple[str, int | None, int, str], int] = {}
        self._minute = clock.now_ms() // _MINUTE_MS

    def add(self, job_id: str, code: int | None, http_status: int, action: str) -> None:
        """Count one refusal; say the last minute's first when it is over."""
        self.flush_if_due()
        key = (job_id, code, http_status, action)
        self._counts[key] = self._counts.get(key, 0) + 1
        if len(self._counts) > self._keep:
            self.flush()

    def flush_if_due(self) -> None:
        """Say what was counted when its minute is over; call it now and then."""
        minute = self._clock.now_ms() // _MINUTE_MS
        if minute != self._minute:
            self.flush()
            self._minute = minute

    def flush(self) -> None:
        """Say what was counted; at the end of a process too."""
        counts, self._counts = self._counts, {}
        for (job_id, code, http_status, action), count in counts.items():
            self._logger.warning(
                "send.refused",
                jobId=job_id,
                code=code,
                http_status=http_status,
                action=action,
                count=count,
            )
