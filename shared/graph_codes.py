"""What each Graph error code means for a send. A table and look-ups; pure."""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from shared.models import Reason

Action = Literal[
    "retry",
    "backoff",
    "slow",
    "park",
    "pair",
    "defer",
    "fail",
    "suppress",
    "trip",
    "pause",
    "ignore",
]
Scope = Literal[
    "recipient",
    "pair",
    "job",
    "template",
    "sender",
    "token",
    "waba",
    "app",
    "portfolio",
    "management",
    "endpoint",
    "none",
]

# A row of `ROWS` and its place give the reason number that states and counters keep.
FIRST_REASON: Final = Reason.OTHER + 1


class CodeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One code, or one answer without a code, and what follows from it.

    Attributes:
        code: Graph's `error.code`; the first one of a range; None for answers without a code.
        last: the last code of a range; the same as `code` otherwise.
        action: what to do with the recipient and its scope.
        scope: whom `slow`, `park` and `pause` concern.
        max: retries for this code; None = BULK_MAX_RETRIES.
        then: what follows when the retries are used up.
        hold_s: how long `park` and `defer` wait.
        hold_max_s: up to where a repeated `park` doubles; 0 = it does not.
        resend: whether a retry job takes the recipient: no, yes, after `hold_s`, or after a fix.
        meaning: for people.
        http: statuses it has been seen with; for the sandbox and for reading logs only.
        where: in the reply (s), in a failed webhook (a), or either (b).
        suppress_scope: what an entry on the suppression list covers.
        source: page of Meta's documentation, as keyed below.
    """

    code: int | None
    last: int | None = None
    action: Action
    scope: Scope
    max: int | None = None
    then: Literal["fail", "trip"] = "fail"
    hold_s: int = 0
    hold_max_s: int = 0
    resend: Literal["no", "yes", "after", "fix"] = "yes"
    meaning: str = ""
    http: tuple[int, ...] = ()
    where: Literal["s", "a", "b"] = "s"
    suppress_scope: Literal["all", "marketing"] | None = None
    source: str = ""


# Columns: code, HTTP (`?` = assumed), where, action, scope, resend, source, exceptions; then the
# meaning. Append only, whatever the order of the codes: a row's place is kept in stored jobs.
#
# Sources, under developers.facebook.com/documentation/business-messaging/whatsapp/:
#   error-codes        support/error-codes, read 2026-09-11; HTTP follows an older edition of it
#   per-user-limits    templates/marketing-templates/per-user-limits, read 2026-04-29
#   portfolio-pacing   templates/portfolio-pacing, read 2025-12-08
#   template-pacing    a third party's digest of templates/template-pacing, read 2026-08
#   throughput         throughput, read 2025-11-21
#   bsuid              business-scoped-user-ids, edition of 2026-06-29
#   direct-send        direct-send, beta, read 2026-06
#   groups             groups/groups-messaging
#   phone-numbers      business-phone-numbers/phone-numbers, identity change check
#   graph-reference    Graph API reference, whats-app-business-account/message_templates
#   older-list         MarcosNicolau/whatsapp-business-sdk:src/types/error.ts
#   seen, secondary    many public issue threads; tables of partners
_TABLE: Final = """\
0       401      s pause    token      fix   error-codes
    App user not authenticated: token expired, invalidated or revoked
1       400      s retry    recipient  yes   error-codes max=2 then=trip
    Invalid request or possible server error: ambiguous
2       503      s backoff  recipient  yes   error-codes
    Temporary: downtime or overload
3       500      s pause    token      fix   error-codes
    Capability or permission issue
4       400/429  s park     app        yes   error-codes hold_s=60 hold_max_s=900
    App reached its Graph call rate limit
10      403      s pause    token      fix   error-codes
    Permission missing or removed, or account not eligible for the endpoint
33      400      s pause    sender     fix   error-codes
    Phone number id wrong or deleted, or not visible to the token
100     400      s trip     job        fix   error-codes
    Parameter unsupported, misspelled or too long; also: object id does not exist
104     400/401  s pause    token      fix   error-codes
    No access token (some endpoints answer 190 or 200 instead)
190     401      s pause    token      fix   error-codes
    Access token expired or invalid
200-299 403      s pause    token      fix   error-codes
    Permission not granted or removed (200 also: no token at all)
368     403      b pause    waba       fix   error-codes
    Account restricted or disabled for a policy violation
80007   400/429  s park     waba       yes   error-codes hold_s=60 hold_max_s=900
    WABA reached its rate limit
80008   400      s park     management no    graph-reference hold_s=60 hold_max_s=900
    Too many management calls to this WABA (template list and the like); sending is not
    affected
130403  400?     b suppress recipient  no    error-codes suppress_scope=all
    This business has blocked the recipient: do not retry
130429  400/429  b slow     sender     yes   error-codes
    Throughput of the phone number reached
130472  400      a fail     recipient  no    error-codes
    User is in a Meta experiment group
130497  403?     b trip     job        no    error-codes
    This account may not message users in that country
130501  400?     s trip     job        fix   groups
    Message type not supported (group sends)
131000  500      b retry    recipient  yes   error-codes
    Unknown error: try again
131005  403      s pause    token      fix   error-codes
    Access denied: permission missing or removed
131008  400      s trip     job        fix   error-codes
    Required parameter missing
131009  400      s trip     job        fix   error-codes
    Parameter value invalid (on the Marketing Messages endpoint also: template sync
    incomplete, wait 10 min)
131016  500/503  s backoff  recipient  yes   error-codes
    Service temporarily unavailable
131021  400      s fail     recipient  no    error-codes
    Recipient equals sender
131026  400      b fail     recipient  no    error-codes
    Undeliverable: not on WhatsApp, terms not accepted, client too old
131030  400      s trip     job        fix   seen
    Recipient not in the test number's allow-list (5 numbers)
131031  403      b pause    waba       fix   error-codes
    Account locked for policy, or data could not be verified
131037  400?     s pause    sender     fix   error-codes
    555 number without an approved display name
131042  400      b pause    waba       fix   error-codes
    Payment method problem (credit line, currency, time zone ...)
131043  -        a fail     recipient  yes   older-list
    Message expired before delivery
131045  500      s pause    sender     fix   error-codes
    Phone number registration error
131047  400      b fail     recipient  no    error-codes
    Outside the 24 h service window: needs a template
131048  400      b pause    sender     fix   error-codes
    Number restricted: too many messages blocked or flagged as spam
131049  400?     b defer    recipient  after error-codes+per-user-limits hold_s=86400
    Not delivered to maintain healthy ecosystem engagement (per-user marketing cap; US
    numbers)
131050  400?     a suppress recipient  no    error-codes suppress_scope=marketing
    User stopped marketing messages from this business: do not retry
131051  400      s trip     job        fix   error-codes
    Unsupported message type
131052  400      a ignore   none       no    error-codes
    Inbound media could not be downloaded (not an error of a send)
131053  400      b trip     job        fix   error-codes
    Media could not be uploaded (type, size, link)
131055  400      s pause    job        fix   error-codes
    Marketing Messages endpoint got something else than a marketing template
131056  400/429  b pair     pair       yes   error-codes max=5
    Too many messages from this sender to this recipient
131057  500      s park     sender     yes   error-codes+throughput hold_s=60 hold_max_s=300
    Account in maintenance, e.g. the throughput upgrade (at most 1 min)
131062  400?     s fail     recipient  no    bsuid
    BSUID recipient not supported for this message (authentication templates)
131063  400?     s pause    job        fix   error-codes
    Marketing templates are disabled on /messages for this WABA
131064  400?     b pause    waba       fix   error-codes
    Messaging limit reached through template classification violations; lifted after the
    enforcement period
132000  400      s trip     job        fix   error-codes
    Number of parameters differs from the template's
132001  404      s pause    template   fix   error-codes
    Template does not exist in that language, or is not approved
132005  400      s fail     recipient  no    error-codes
    Filled-in text too long (depends on this recipient's values)
132007  400      s pause    template   fix   error-codes
    Template content violates a policy
132008  400?     s trip     job        fix   secondary
    Parameter values formatted incorrectly
132012  400      s trip     job        fix   error-codes
    Parameter format differs from the template's (currency, date, media, text)
132015  400      b pause    template   fix   error-codes+template-pacing
    Template is paused for low quality; asynchronous: a held message was dropped
132016  400      s pause    template   fix   error-codes
    Template is disabled
132018  400      s trip     job        fix   error-codes
    Template parameters invalid: newline, tab or more than 4 spaces in a row
132068  400      s pause    template   fix   error-codes
    Flow is blocked
132069  400      s pause    template   fix   error-codes
    Flow is throttled (10 messages an hour already sent)
133000  500      s pause    sender     fix   error-codes
    A deregistration failed earlier (registration code)
133004  503      s backoff  recipient  yes   error-codes
    Server temporarily unavailable
133005  400      s pause    sender     fix   error-codes
    Two-step PIN incorrect (registration code)
133006  400      s pause    sender     fix   error-codes
    Phone number needs verification (registration code)
133008  400      s pause    sender     fix   error-codes
    Too many PIN guesses (registration code)
133009  400      s pause    sender     fix   error-codes
    PIN entered too quickly (registration code)
133010  400      s pause    sender     fix   error-codes
    Phone number not registered on the platform
133015  400      s pause    sender     fix   error-codes
    Number recently deleted, wait 5 min (registration code)
133016  400      s pause    sender     fix   error-codes
    Too many registration attempts (registration code)
134011  400?     s pause    job        fix   error-codes
    WhatsApp Payments terms not accepted
134100  400      s pause    job        fix   error-codes
    Marketing Messages endpoint: template category is not MARKETING
134102  500      s pause    template   fix   error-codes
    Marketing Messages endpoint: template unavailable or account not onboarded
135000  400      b trip     job        fix   error-codes+portfolio-pacing
    Unknown error with the request parameters; asynchronous: a held message was dropped by
    portfolio pacing
137000  -        a fail     recipient  no    phone-numbers
    recipient_identity_key_hash does not match (re-send without the hash is an operator's
    decision)
139200  400?     s pause    job        fix   direct-send
    Direct Send access blocked
"""


def _parse(table: str) -> tuple[CodeRow, ...]:
    """Read `_TABLE`: a row begins at the margin, its meaning follows indented."""
    rows = []
    for text in re.split(r"\n(?=\S)", table.strip()):
        head, *meaning = text.splitlines()
        codes, http, where, action, scope, resend, source, *exceptions = head.split()
        first, _, last = codes.partition("-")
        fields: dict[str, object] = {
            "code": first,
            "last": last or first,
            "http": [] if http == "-" else http.rstrip("?").split("/"),
            "where": where,
            "action": action,
            "scope": scope,
            "resend": resend,
            "source": source.replace("+", ", "),
            "meaning": " ".join(map(str.strip, meaning)),
        }
        for exception in exceptions:
            name, _, value = exception.partition("=")
            fields[name] = value
        rows.append(msgspec.convert(fields, CodeRow, strict=False))
    return tuple(rows)


ROWS: Final = _parse(_TABLE)
# Codes that a job's breaker counts.
TRIPS: Final = frozenset(row.code for row in ROWS if row.action == "trip" and row.code is not None)
_PLACE: Final = {
    code: place
    for place, row in enumerate(ROWS)
    if row.code is not None and row.last is not None
    for code in range(row.code, row.last + 1)
}

UNLISTED_RETRY: Final = CodeRow(
    code=None, action="retry", scope="recipient", meaning="Unlisted, transient or HTTP 5xx"
)
UNLISTED: Final = CodeRow(code=None, action="trip", scope="job", resend="fix", meaning="Unlisted")
_BARE_TOKEN: Final = CodeRow(
    code=None, action="pause", scope="token", resend="fix", meaning="401 or 403 without a code"
)
_BARE_RETRY: Final = CodeRow(
    code=None, action="retry", scope="recipient", meaning="408 or 425 without a code"
)
_BARE: Final = {
    401: _BARE_TOKEN,
    403: _BARE_TOKEN,
    408: _BARE_RETRY,
    413: CodeRow(
        code=None, action="pause", scope="job", resend="fix", meaning="413 without a code"
    ),
    425: _BARE_RETRY,
    429: CodeRow(code=None, action="slow", scope="sender", meaning="429 without a code"),
}
_NOT_GRAPH: Final = CodeRow(
    code=None,
    action="pause",
    scope="sender",
    resend="fix",
    meaning="Not talking to Graph: check GRAPH_BASE_URL",
)

HTTP_SERVER_ERROR: Final = 500


def row_of(code: int | None, http: int, *, transient: bool = False) -> CodeRow:
    """Return what to do about a definite refusal.

    Args:
        code: `error.code`, or None when the answer had no Graph body.
        http: the HTTP status; decides only when `code` is None or not listed.
        transient: Graph's `is_transient`; decides only when `code` is not listed.

    >>> row_of(130429, 400).action, row_of(250, 403).scope, row_of(None, 302).action
    ('slow', 'token', 'pause')
    """
    if code is None:
        return _BARE.get(http, _NOT_GRAPH)
    place = _PLACE.get(code)
    if place is not None:
        return ROWS[place]
    return UNLISTED_RETRY if transient or http >= HTTP_SERVER_ERROR else UNLISTED


def reason_of(code: int | None) -> int:
    """Return the reason number of a code: 16 + its row's place, or `Reason.OTHER`.

    >>> reason_of(0), reason_of(999_999)
    (16, <Reason.OTHER: 15>)
    """
    place = _PLACE.get(code) if code is not None else None
    return Reason.OTHER if place is None else FIRST_REASON + place


def code_of_reason(reason: int) -> int | None:
    """Return the code, or the first code of the range, that a reason number stands for.

    >>> code_of_reason(reason_of(131026))
    131026
    """
    place = reason - FIRST_REASON
    return ROWS[place].code if 0 <= place < len(ROWS) else None
