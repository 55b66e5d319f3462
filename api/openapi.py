"""GET /openapi.json: OpenAPI 3.1, made from the routes and the very structs that validate. Pure.

What a route takes and gives stands in `OPERATIONS`; the rest (who may, path, errors) is read from
the route itself. Examples are checked against the structs by a test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from inspect import cleandoc
from typing import Any, Final, NamedTuple

import msgspec

from api import papers, wire
from api.campaigns import Campaign
from api.changes import JobPatch
from api.examples import EXAMPLES
from api.history import HistoryList
from api.preflight import Preflight
from api.problems import CODES
from api.progress import Event
from api.recipients import CODES_MAX, OUTCOMES, RecipientList
from api.retry import Retried, Retry
from api.router import Route
from api.templates import TemplateList, TemplatePreview, TemplateRow, TemplateSync
from api.uploads import TYPES, Upload, UploadPatch
from shared.models import JOB_STATES
from shared.results import RECEIPTS

JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"
_REF: Final = "#/components/schemas/{name}"
_PAGE: Final = ("limit", "cursor")
_TABLE: Final = ("outcome", "receipt", "code", "q")
_XLSX: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
_METHOD: Final = re.compile(r"^(?:GET|POST|PATCH|DELETE) \S+?[.:]\s*")
_FIELD: Final = re.compile(r"^ +(\w+(?:, \w+)*): (.+)$")


class Operation(NamedTuple):
    """What a route takes and gives.

    Attributes:
        summary: a sentence; '' = the first of the handler's docstring.
        gives: struct of the answer; None = no JSON.
        takes: struct of the body; None = no JSON.
        status: of success.
        query: names of parameters.
        media: types of an answer that is no JSON.
        raw: types of a body that is no JSON.
        conflicts: 409 is possible.
        again: status of success where it was so already; 0 = `status`.
        must: names of parameters that cannot be left out.
    """

    summary: str = ""
    gives: type | None = None
    takes: type | None = None
    status: int = 200
    query: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    raw: tuple[str, ...] = ()
    conflicts: bool = False
    again: int = 0
    must: tuple[str, ...] = ()


_JOB: Final = "/api/bulk/jobs/{job_id}"
_SENDER: Final = "/api/senders/{sender_id}"
_UPLOAD: Final = "/api/bulk/uploads/{upload_id}"
_HUB: Final = ("hub.mode", "hub.verify_token", "hub.challenge")
_LIST: Final = ("state", "sender", "campaignId", "q", "from", "to", "userId", "metadata")
OPERATIONS: Final[dict[str, Operation]] = {
    "POST /api/bulk/send": Operation(
        "Accept a job with all its recipients, or nothing.", wire.Submitted, wire.SendRequest, 202,
        conflicts=True),
    "GET /api/bulk/jobs": Operation(
        "List one's own jobs, newest first.", wire.JobList, query=(*_PAGE, *_LIST)),
    f"GET {_JOB}": Operation("Show a job.", wire.Job, query=("expand",)),
    f"PATCH {_JOB}": Operation("Change a job that has not ended.", wire.Job, JobPatch,
                                 conflicts=True),
    f"POST {_JOB}/pause": Operation(
        "Stop a job; nobody else starts within 1.5 s.", wire.Job, wire.Reason, conflicts=True),
    f"POST {_JOB}/resume": Operation(
        "Let a paused job go on.", wire.Job, wire.Reason, conflicts=True),
    f"POST {_JOB}/cancel": Operation(
        "End a job; who has not been written to is not.", wire.Job, wire.Reason, conflicts=True),
    f"POST {_JOB}/retry": Operation(
        "Send again to those of a job that failed: a child job.", Retried, Retry, 202,
        conflicts=True),
    f"GET {_JOB}/recipients": Operation(
        "List a job's recipients and what they came to.", RecipientList, query=(*_TABLE, *_PAGE)),
    f"GET {_JOB}/recipients.csv": Operation(
        "Export a job's recipients as CSV.", query=_TABLE, media=("text/csv",)),
    f"GET {_JOB}/recipients.ndjson": Operation(
        "Export a job's recipients, one JSON object a line.", query=_TABLE,
        media=("application/x-ndjson",)),
    f"GET {_JOB}/recipients.xlsx": Operation(
        "Export a job's recipients as a spreadsheet.", query=_TABLE, media=(_XLSX,)),
    "GET /api/bulk/recipients": Operation(
        "List what one person was sent, newest job first.", HistoryList, query=("to", *_PAGE),
        must=("to",)),
    "GET /api/bulk/campaigns/{campaign_id}": Operation("Show a label's numbers.", Campaign),
    "POST /api/bulk/preflight": Operation(
        "Look at a submission as a send would; store nothing.", Preflight, wire.SendRequest),
    "POST /api/bulk/uploads": Operation(
        "Upload a file of recipients.", Upload, status=201,
        query=("filename", "phone_column", "default_region"),
        raw=tuple(TYPES), conflicts=True),
    f"GET {_UPLOAD}": Operation("Show an upload.", Upload),
    f"PATCH {_UPLOAD}": Operation("Read an upload in another way.", Upload, UploadPatch),
    f"DELETE {_UPLOAD}": Operation("Forget an upload.", status=204),
    f"GET {_UPLOAD}/problems.csv": Operation(
        "List the rows of an upload that cannot be sent to.", media=("text/csv",)),
    "GET /api/bulk/stats": Operation("Show the whole pool's figures.", wire.Stats),
    "POST /api/bulk/disable": Operation("", papers.Switched, wire.Reason),
    "POST /api/bulk/enable": Operation("", papers.Switched, wire.Reason),
    "GET /realtime/bulk/{jobId}": Operation(
        "Follow a job: unnamed events, each a whole snapshot.", query=("lastEventId", "receipts"),
        media=(_EVENTS,)),
    "GET /realtime/bulk": Operation(
        "Follow several jobs.", query=("jobs", "lastEventId"), media=(_EVENTS,),
        must=("jobs",)),
    "GET /webhooks/whatsapp": Operation(
        "Answer Meta's check of this address.",
        query=_HUB, media=("text/plain",), must=_HUB),
    "POST /webhooks/whatsapp": Operation(
        "Take a webhook that Meta has signed.", raw=(JSON,), media=(JSON,)),
    "POST /api/session": Operation("Log in; the cookie is the session.", wire.Me, wire.Login),
    "GET /api/session": Operation("Show who is asking.", wire.Me),
    "DELETE /api/session": Operation("Log out.", status=204),
    "POST /api/session/password": Operation("", takes=papers.PasswordChange, status=204),
    "GET /api/users": Operation("", papers.UserList, query=_PAGE),
    "POST /api/users": Operation("", papers.User, papers.NewUser, 201, conflicts=True),
    "PATCH /api/users/{user_id}": Operation("", papers.User, papers.UserPatch, conflicts=True),
    "GET /api/keys": Operation("", papers.KeyList, query=_PAGE),
    "POST /api/keys": Operation("", papers.MadeKey, papers.NewKey, 201),
    "DELETE /api/keys/{key_id}": Operation("", status=204),
    "GET /api/senders": Operation("", papers.SenderList, query=_PAGE),
    "POST /api/senders": Operation("", papers.Sender, papers.NewSender, 201, conflicts=True),
    f"GET {_SENDER}": Operation("", papers.Sender),
    f"PATCH {_SENDER}": Operation("", papers.Sender, papers.SenderPatch, conflicts=True),
    f"POST {_SENDER}/pause": Operation("", papers.Sender, wire.Reason),
    f"POST {_SENDER}/resume": Operation("", papers.Sender, wire.Reason),
    "GET /api/suppressions": Operation("", papers.SuppressionList, query=(*_PAGE, "scope")),
    "POST /api/suppressions": Operation(
        "", papers.Suppression, papers.NewSuppression, 201, again=200),
    "DELETE /api/suppressions/{suppression_id}": Operation("", status=204),
    "GET /api/templates": Operation("", TemplateList, query=(*_PAGE, "sender")),
    "POST /api/templates/sync": Operation("", TemplateSync, status=202, query=("sender",)),
    "POST /api/templates/{name}/preview": Operation("", TemplatePreview, TemplateRow),
    "GET /api/audit": Operation(
        "", papers.AuditList, query=(*_PAGE, "actor", "action", "object", "from", "to")),
}  # fmt: skip


def comma_list(words: Iterable[str], most: int) -> str:
    """Return the pattern of one to `most` words with commas between.

    >>> comma_list(("a", "b"), 3)
    '^(?:a|b)(?:,(?:a|b)){0,2}$'
    """
    word = f"(?:{'|'.join(words)})"
    return f"^{word}(?:,{word}){{0,{most - 1}}}$"


def _words(words: tuple[str, ...]) -> dict[str, str]:
    return {"type": "string", "pattern": comma_list(words, len(words))}


PARAMETERS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "limit": ({"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "rows of a page"),
    "cursor": ({"type": "string", "maxLength": 256}, "`next_cursor` of the page before"),
    "state": (_words(JOB_STATES), "comma list of states"),
    "sender": ({"type": "string", "maxLength": 64}, "name of a sender"),
    "campaignId": ({"type": "string", "maxLength": 128}, "the caller's label"),
    "q": ({"type": "string", "maxLength": 200}, "part of a name, id or label; of a number"),
    "from": ({"type": "string", "format": "date-time"}, "not before"),
    "to": ({"type": "string"}, "before; of a history the number asked about"),
    "userId": ({"type": "string", "format": "uuid"}, "an admin's: whose"),
    "metadata": ({"type": "string"}, "a name, a colon and a value"),
    "expand": (_words(("errors", "timeline")), "comma list of errors, timeline"),
    "outcome": (_words(OUTCOMES), "comma list; `pending` = without one"),
    "receipt": (_words(RECEIPTS), "comma list of none, held, failed, delivered, read"),
    "code": (
        {"type": "string", "pattern": comma_list(("[0-9]{1,9}",), CODES_MAX)},
        "comma list of Graph's codes",
    ),
    "filename": ({"type": "string", "maxLength": 255}, "as people know the file"),
    "phone_column": ({"type": "string", "maxLength": 256}, "which column has the numbers"),
    "default_region": ({"type": "string", "minLength": 2, "maxLength": 2}, "ISO 3166, such as DE"),
    "lastEventId": ({"type": "string"}, "where an earlier connection stopped"),
    "receipts": ({"type": "string"}, "1 = go on after the end with receipts"),
    "jobs": ({"type": "string"}, "comma list of job ids"),
    "hub.mode": ({"type": "string", "const": "subscribe"}, "what Meta wants"),
    "hub.verify_token": ({"type": "string"}, "WHATSAPP_VERIFY_TOKEN"),
    "hub.challenge": ({"type": "string", "maxLength": 128}, "comes back as it is"),
    "actor": ({"type": "string", "maxLength": 64}, "user id, `cli` or `system`"),
    "action": ({"type": "string", "maxLength": 64}, "such as `job.pause`"),
    "object": ({"type": "string", "maxLength": 64}, "an id"),
    "scope": ({"type": "string", "enum": ["all", "marketing"]}, "of the entry"),
}


class Problem(msgspec.Struct, frozen=True):
    """What is wrong (RFC 9457); `errors` names up to 100 places, `errors_total` counts all."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    instance: str
    request_id: str
    errors: list[wire.Row]
    errors_total: int


def document(routes: Iterable[Route], version: str, public_url: str) -> dict[str, Any]:
    """Return the OpenAPI document.

    Args:
        routes: of the application; those without an entry in `OPERATIONS` are pages, left out.
        version: of Drumbeat.
        public_url: origin of this site.
    """
    kinds: dict[type, None] = {Problem: None, wire.Row: None, Event: None}
    for operation in OPERATIONS.values():
        kinds |= dict.fromkeys(kind for kind in (operation.takes, operation.gives) if kind)
    schemas, components = msgspec.json.schema_components(list(kinds), ref_template=_REF)
    refs = dict(zip(kinds, schemas, strict=True))
    for kind in kinds:
        name = refs[kind]["$ref"].rpartition("/")[2]
        if kind in EXAMPLES:
            components[name]["examples"] = [EXAMPLES[kind]]
    for schema in components.values():
        describe(schema)
    _open_rows(components)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        known = OPERATIONS.get(f"{route.method} {route.path}")
        if known is not None:
            made = _operation(route, known, refs)
            paths.setdefault(route.path, {})[route.method.lower()] = made
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Drumbeat",
            "version": version,
            "description": "Bulk WhatsApp messages: submit, follow, control, account for each.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": public_url}],
        "security": [{"bearer": []}, {"session": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "drb_…"},
                "session": {"type": "apiKey", "in": "cookie", "name": _cookie(public_url)},
            },
            "responses": {
                str(status): {
                    "description": f"{_titles()[status]}: {', '.join(_codes(status))}.",
                    "content": {"application/problem+json": {"schema": refs[Problem]}},
                }
                for status in sorted(_titles())
            },
        },
    }


def _cookie(public_url: str) -> str:
    return "__Host-drumbeat" if public_url.startswith("https://") else "drumbeat"


def _titles() -> dict[int, str]:
    return dict(CODES.values())


def _codes(status: int) -> list[str]:
    return [code for code, (given, _) in CODES.items() if given == status]


def _operation(route: Route, known: Operation, refs: dict[type, dict[str, Any]]) -> dict[str, Any]:
    access = route.access
    assert access is not None  # noqa: S101 - `install` refuses such a route
    doc = _METHOD.sub("", (route.handler.__doc__ or "").strip().split("\n")[0])
    done = [str(status) for status in (known.status, known.again) if status]
    made: dict[str, Any] = {
        "operationId": f"{route.handler.__module__.rpartition('.')[2]}_{route.handler.__name__}",
        "summary": known.summary or doc,
        "tags": [tag_of(route.path)],
        "parameters": [*_path_parameters(route.path), *_query_parameters(known)],
        "responses": {
            **dict.fromkeys(done, _success(known, refs)),
            **{
                str(status): {"$ref": f"#/components/responses/{status}"}
                for status in statuses_of(route, known)
            },
        },
    }
    if access.is_open:
        made["security"] = []
    elif access.is_session:
        made["security"] = [{"session": []}]
    if access.is_admin:
        made["description"] = "For admins; a key needs the scope admin."
    elif access.scope:
        made["description"] = f"A key needs the scope {access.scope}."
    if known.takes is not None:
        made["requestBody"] = {
            "required": not route.is_body_optional,
            "content": {JSON: {"schema": refs[known.takes]}},
        }
    elif known.raw:
        binary = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
        made["requestBody"] = {"required": True, "content": dict.fromkeys(known.raw, binary)}
    return made


def _success(known: Operation, refs: dict[type, dict[str, Any]]) -> dict[str, Any]:
    if known.gives is not None:
        return {"description": "Done.", "content": {JSON: {"schema": refs[known.gives]}}}
    if known.media:
        if _EVENTS in known.media:
            # No schema: readers disagree whether it would be the whole text's or an event's.
            told = "Events without a name; the data of each is one JSON object, an `Event`."
            return {"description": told, "content": {_EVENTS: {}}}
        text = {"schema": {"type": "string"}}
        return {"description": "As it is made.", "content": dict.fromkeys(known.media, text)}
    return {"description": "Done; nothing to say."}


def statuses_of(route: Route, known: Operation) -> list[int]:
    """Return the statuses of an operation's refusals."""
    access = route.access
    found = {400, 405, 421, 422, 429, 500, 503}
    if access is not None and not access.is_open:
        found |= {401, 403}
    if route.path == "/api/session":
        found |= {401, 403}
    if route.path.startswith("/webhooks/"):
        found |= {404, 401 if known.raw else 403}
    if "{" in route.path or route.path.startswith("/realtime"):
        found |= {404}
    if route.is_stream:
        found |= {406}
        found -= set() if known.must else {422}
    if known.takes is not None or known.raw:
        found |= {413, 415, 417}
    if known.conflicts:
        found |= {409}
    return sorted(found)


def tag_of(path: str) -> str:
    """Return the noun that a path is about.

    >>> tag_of("/api/bulk/jobs/{job_id}/pause"), tag_of("/realtime/bulk"), tag_of("/api/keys")
    ('bulk', 'realtime', 'keys')
    """
    parts = path.strip("/").split("/")
    return parts[1] if parts[0] == "api" else parts[0]


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _query_parameters(known: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "schema": schema, "description": text}
        | ({"required": True} if name in known.must else {})
        for name in known.query
        for schema, text in (PARAMETERS[name],)
    ]


def describe(schema: dict[str, Any]) -> None:
    """Give the fields of a schema what its docstring says of them; patterns in ECMA's spelling."""
    text = cleandoc(schema.get("description", ""))
    head, _, tail = text.partition("Attributes:")
    if head:
        schema["description"] = head.strip()
    properties = schema.get("properties", {})
    for line in tail.splitlines():
        found = _FIELD.match(line)
        for name in found[1].split(", ") if found else ():
            if found and name in properties and "$ref" not in properties[name]:
                properties[name].setdefault("description", found[2])
    _respell(schema)


def _respell(value: Any) -> None:  # noqa: ANN401 - any part of a schema
    if isinstance(value, dict):
        if isinstance(value.get("pattern"), str):
            value["pattern"] = value["pattern"].replace(r"\A", "^").replace(r"\Z", "$")
        for inner in value.values():
            _respell(inner)
    elif isinstance(value, list):
        for inner in value:
            _respell(inner)


def _open_rows(components: dict[str, Any]) -> None:
    """Say what a row of `recipients` is: `api.intake` looks at each, no struct does."""
    rows = components["SendRequest"]["properties"]["recipients"]
    number = {"type": "string", "description": "E.164", "examples": ["+15550000001"]}
    rows["items"] = {
        "oneOf": [
            number,
            {
                "type": "object",
                "required": ["to"],
                "additionalProperties": False,
                "properties": {
                    "to": number,
                    "ref": {"type": ["string", "null"], "maxLength": 64},
                    "vars": {
                        "type": ["object", "null"],
                        "maxProperties": 20,
                        "additionalProperties": {"type": "string", "maxLength": 1024},
                    },
                },
            },
        ]
    }
