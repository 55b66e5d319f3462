"""`drumbeat health`: is the process on this machine well? For containers and scripts."""

from __future__ import annotations

import http.client
import sys
from typing import Annotated, Any, Final

import cyclopts

from api.cli.ask import ask
from shared import settings
from shared.errors import SettingsError

# A container's runtime gives a check 5 s; ours says why before that.
_ASK_S: Final = 4.0
_GOOD: Final = 200
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
Port = Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1, lte=65_535))]


def health(*, ready: bool = False, port: Port | None = None) -> int:
    """Ask the management port of a process on this machine whether it lives; 0 or 1.

    Args:
        ready: whether it can do its work: are its stores there, and is it not about to stop?
        port: METRICS_PORT; 9464, the API's own, where that is not set.
    """
    path = "/readyz" if ready else "/livez"
    try:
        given = settings.load()
    except SettingsError as error:
        # Not 2, which container runtimes keep for themselves.
        return _said(str(error))
    asked = given.api_metrics_port if port is None else port
    if asked == 0:
        return _said("METRICS_PORT is 0, so there is no port to ask; set it, or give --port")
    problem = problem_of(path, asked, *_ask(near(given.metrics_host), asked, path))
    if problem:
        return _said(problem)
    sys.stdout.write("ready\n" if ready else "alive\n")
    return 0


def near(host: str) -> str:
    """Return where this machine reaches a process that listens on `host`. Pure.

    >>> near("0.0.0.0"), near("::"), near("10.0.0.7")
    ('127.0.0.1', '::1', '10.0.0.7')
    """
    return _ANY.get(host, host)


def problem_of(path: str, port: int, status: int, body: Any) -> str:  # noqa: ANN401 - any JSON
    """Return what an answer of the management port says is wrong; '' = nothing. Pure.

    Args:
        path: what was asked for.
        port: who was asked.
        status: of the answer; 0 = none came.
        body: of the answer, decoded; None = no JSON.

    >>> problem_of("/readyz", 9464, 503, {"status": "failed", "failed": ["redis"]})
    'not well: redis'
    """
    if not status:
        return (
            f"nobody answers on port {port}: is the process up, and is its METRICS_PORT {port}? "
            "A worker's own is 9465: --port 9465"
        )
    if not isinstance(body, dict) or "status" not in body:
        return f"who answers on port {port} is none of ours (HTTP {status}); see METRICS_PORT"
    if status != _GOOD:
        names = ", ".join(map(str, body.get("failed") or [path.removeprefix("/")]))
        return f"not well: {names}"
    return ""


def _ask(host: str, port: int, path: str) -> tuple[int, Any]:
    try:
        return ask(http.client.HTTPConnection(host, port, timeout=_ASK_S), path)
    except (OSError, http.client.HTTPException):
        return 0, None


def _said(problem: str) -> int:
    sys.stderr.write(f"drumbeat: {problem}\n")
    return 1
