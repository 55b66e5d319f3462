"""`drumbeat trigger`: a running sandbox says what became of messages, as Meta would."""

from __future__ import annotations

import http.client
import json
from typing import Annotated, Any, Final

import cyclopts

from api.cli.acts import print_line
from api.cli.ask import ask, connection_to
from shared import settings
from shared.errors import InvalidError, RequestError
from shared.ids import is_job_id
from shared.settings import Settings

WORDS: Final = ("sent", "delivered", "read", "failed", "stop", "resume")
UNDELIVERABLE: Final = 131026
_ASK_S: Final = 60.0  # a large ledger is read through
_GOOD: Final = 200
Place = Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=0))]
Code = Annotated[
    int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1, lte=999_999_999))
]


def trigger(
    event: str,
    /,
    *,
    job: str | None = None,
    position: Place | None = None,
    code: Code = UNDELIVERABLE,
    value: str | None = None,
    waba: str = "0",
) -> None:
    """Let the sandbox post a signed webhook: of a job's messages, or any other of Meta's.

    GRAPH_BASE_URL says where the sandbox is, and SANDBOX_ADMIN_TOKEN opens it where it is set;
    `. .demo/env` sets what `drumbeat up` has chosen. Nothing is ever asked of Meta.

    Args:
        event: sent, delivered, read, failed; stop, resume (no marketing any more, or again); or
            with --value a field such as message_template_status_update.
        job: whose messages.
        position: of this recipient alone.
        code: with failed, Meta's code.
        value: of the field, a JSON object.
        waba: with --value, the WhatsApp business account it is about.
    """
    given = settings.load()
    path, body = asked_of(event, job, position, code, value, waba)
    if not given.is_sandbox:
        raise InvalidError(
            "validation_failed",
            "GRAPH_BASE_URL is Meta's own, which posts webhooks by itself; set it to a sandbox's, "
            "such as the one in .demo/env of `drumbeat up`.",
        )
    said = _ask(given, path, body)
    if value is not None:
        print_line(f"{event} is posted")
        return
    if not said["messages"]:
        text = "The sandbox has accepted no message of this job, or not of this recipient."
        raise RequestError("not_found", text)
    print_line(f"{event} is posted for {said['messages']} messages")


def asked_of(
    event: str, job: str | None, position: int | None, code: int, value: str | None, waba: str
) -> tuple[str, dict[str, Any]]:
    """Return the sandbox's admin path, and the body it takes. Pure.

    Raises:
        InvalidError: names what is missing or wrong.

    >>> job = "job_01m86db0v300hd99fdtgj8yepfzx"
    >>> asked_of("failed", job, 7, 131026, None, "0")[1]["position"]
    7
    """
    if value is not None:
        if job is not None or position is not None:
            raise InvalidError("validation_failed", "--value is about no job: leave --job out.")
        try:
            decoded = json.loads(value)
        except ValueError:
            decoded = None
        if not isinstance(decoded, dict):
            raise InvalidError("bad_format", "--value takes a JSON object.")
        return "event", {"field": event, "value": decoded, "waba": waba}
    if event not in WORDS:
        words = ", ".join(WORDS)
        text = f"An event is one of {words}; any other field of Meta's needs --value."
        raise InvalidError("validation_failed", text)
    if job is None or not is_job_id(job):
        raise InvalidError("bad_format", "--job takes the id of a job, job_ and 28 characters.")
    return "statuses", {"job": job, "word": event, "position": position, "code": code}


def refusal_of(status: int, body: Any) -> str:  # noqa: ANN401 - any JSON
    """Return what to do about an answer that is none of a willing sandbox; '' = it is. Pure."""
    is_object = isinstance(body, dict)
    if status == _GOOD and is_object and ("messages" in body or "field" in body):
        return ""
    if status == http.client.UNAUTHORIZED and is_object and body.get("error") == "admin token":
        return "The sandbox asks for its token: set SANDBOX_ADMIN_TOKEN as it has it."
    if status == http.client.BAD_REQUEST and is_object and isinstance(body.get("error"), str):
        return f"The sandbox refuses: {body['error']}."
    return f"What answers at GRAPH_BASE_URL is no sandbox of this version (HTTP {status})."


def _ask(given: Settings, path: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {}
    if given.sandbox_admin_token is not None:
        headers["Authorization"] = f"Bearer {given.sandbox_admin_token.reveal()}"
    try:
        connection = connection_to(given.graph_base_url, _ASK_S)
        status, said = ask(connection, f"/_sandbox/{path}", headers, body)
    except (OSError, http.client.HTTPException) as error:
        text = f"GRAPH_BASE_URL: no sandbox answers at {given.graph_base_url}"
        raise ConnectionError(f"{text} ({type(error).__name__})") from error
    refusal = refusal_of(status, said)
    if refusal:
        raise RequestError("forbidden", refusal)
    return dict(said)
