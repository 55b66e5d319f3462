"""GET /errors/{code}: what a problem means and what to do about it, for whoever follows `type`."""

from __future__ import annotations

from html import escape
from typing import Final, NamedTuple

from aiohttp import web

from api.auth import OPEN
from api.problems import CODES
from api.router import Route, query_of
from api.web.pages import path_of


class Page(NamedTuple):
    """What a code means, and what the caller does now."""

    meaning: str
    remedy: str


PAGES: Final[dict[str, Page]] = {
    "empty_body": Page("A JSON object was expected and the body is empty.",
                       "Send a body, with Content-Type: application/json."),
    "bad_json": Page("The body is not one JSON document (RFC 8259).",
                     "Look for NaN, Infinity, a trailing comma or bytes behind the document."),
    "bad_encoding": Page("The body is not UTF-8 without a byte order mark.",
                         "Encode it as UTF-8; a lone surrogate is not a character."),
    "too_deep": Page("The JSON is nested more deeply than any request of ours.",
                     "Send what this endpoint takes; nothing here needs more than a few levels."),
    "bad_request": Page("The request is not valid HTTP/1.1, or its body did not come whole.",
                        "Send one Host and one Authorization header, and all of the body in time."),
    "bad_idempotency_key": Page("The Idempotency-Key is not 1 to 255 printable ASCII characters.",
                                "Send it once; a UUID is a good one."),
    "unauthenticated": Page("There is no credential, or it is unknown, ended or revoked.",
                            "Log in at POST /api/session, or send Authorization: Bearer drb_…."),
    "bad_credentials": Page("This address and password do not go together.",
                            "Try again, or ask an admin for a new password."),
    "bad_signature": Page("The webhook's signature does not fit its body.",
                          "Check WHATSAPP_APP_SECRET; the signature is made over the raw bytes."),
    "forbidden": Page("Your role, or this kind of credential, may not do this.",
                      "Ask an admin; keys are managed with a log-in, not with a key."),
    "scope_missing": Page("The API key lacks the scope that this endpoint needs.",
                          "Make a key with that scope at POST /api/keys."),
    "user_mismatch": Page("The userId is somebody else's.",
                          "Leave it out, or take your own from GET /api/session."),
    "csrf": Page("A page of another site made the browser send this.",
                 "Send it from this site, or with an API key."),
    "not_found": Page("There is nothing here that you may see.",
                      "Check the id; what belongs to somebody else looks the same as absent."),
    "method_not_allowed": Page("This path has other methods.", "They stand in the Allow header."),
    "not_acceptable": Page("A stream is text/event-stream, and Accept excludes it.",
                           "Accept text/event-stream, or leave the header out."),
    "state_conflict": Page("The object's state does not allow it; `state` says which it is.",
                           "Look at the object, then decide again."),
    "idempotency_in_progress": Page("The first request with this Idempotency-Key still runs.",
                                    "Ask again after Retry-After seconds; you get its answer."),
    "name_taken": Page("Another one has this name or address.", "Choose another."),
    "body_too_large": Page("The body is larger than this endpoint takes.",
                           "Send fewer recipients, or an upload; the limit stands in the detail."),
    "unsupported_media_type": Page("The body does not say that it is of the expected type.",
                                   "Send Content-Type: application/json."),
    "encoding_unsupported": Page("The body has a Content-Encoding.", "Send it uncompressed."),
    "expectation_failed": Page("Only 100-continue may be expected.", "Drop the Expect header."),
    "wrong_host": Page("This host name is not served here.",
                       "Set PUBLIC_URL to this site's origin, or name it in ALLOWED_HOSTS."),
    "not_object": Page("The body is JSON, but no object.", "Send an object: { … }."),
    "unknown_field": Page("The body has a field that is not offered here.",
                          "Its pointer is in `errors`; check the spelling."),
    "unknown_parameter": Page("The query has a parameter that is not offered, or one twice.",
                              "Those offered stand in `errors`."),
    "validation_failed": Page("A field is not what this endpoint takes.",
                              "Each place and what is wrong with it is in `errors`."),
    "control_char": Page("A string holds a control character.",
                         "Remove it; only a text's body may have line breaks and tabs."),
    "empty_recipients": Page("There is nobody to send to.",
                             "Give at least one recipient that passes; see `errors`."),
    "too_many_recipients": Page("A job has at most BULK_HARD_CAP recipients.",
                                "Send several jobs; the limit stands in the detail."),
    "invalid_recipients": Page("Some recipients cannot be sent to; nothing was stored.",
                               "Correct the rows in `errors`, or send with on_invalid: skip."),
    "bad_template": Page("The template's name, language or components cannot be right.",
                         "Take name and language as WhatsApp Manager shows them."),
    "bad_media_url": Page("A link is no public https address.",
                          "Use https and a host name; no literal addresses, at most 2,048 signs."),
    "bad_time": Page("A time is not RFC 3339, has no offset, or lies where it must not.",
                     "Write it like 2026-11-24T09:00:00Z, or give a timezone."),
    "bad_cursor": Page("This cursor is not one of this list and this filter.",
                       "Begin again without a cursor."),
    "bad_filter": Page("A filter has a value that it does not take.",
                       "The values stand in `errors`."),
    "unknown_user": Page("There is no such user.", "Take an id from GET /api/users."),
    "no_sender": Page("There is no such sender, or it is paused until somebody resumes it.",
                      "See GET /api/senders."),
    "upload_gone": Page("There is no such upload of yours, or its time is over.",
                        "Upload the file again."),
    "unreadable_file": Page("The file cannot be read as what its type says.",
                            "Save it as CSV in UTF-8, or as .xlsx."),
    "idempotency_mismatch": Page("This Idempotency-Key came with another body before.",
                                 "Use a new key for a new request."),
    "weak_password": Page("The password is too short, too long, or one that everybody tries.",
                          "Use 12 characters or more; a few words are good."),
    "rate_limited": Page("Too many requests or submissions in the window.",
                         "Wait Retry-After seconds; RateLimit shows what is left."),
    "login_throttled": Page("Too many failed log-ins for this account or address.",
                            "Wait Retry-After seconds."),
    "too_many_streams": Page("You have as many streams open as you may.",
                             "Close some, or watch several jobs on one: /realtime/bulk?jobs=a,b."),
    "internal": Page("Something went wrong on our side.",
                     "Repeat with the same Idempotency-Key; report the request_id."),
    "bulk_disabled": Page("Sending is switched off for everybody.",
                          "An admin's POST /api/bulk/enable, or DISABLE_BULK_MESSAGING, ends it."),
    "sender_moving": Page("The sender is being moved to another shard; nothing happened.",
                          "Repeat after Retry-After seconds, with the same key."),
    "storage_unavailable": Page("Redis or PostgreSQL cannot be reached now; nothing happened.",
                                "Repeat after Retry-After seconds, with the same key."),
    "storage_full": Page("Redis has no room left; nothing happened.",
                         "Repeat later; an operator must give Redis more memory."),
    "draining": Page("This process is about to stop.", "Ask again: another one answers."),
    # Of single rows: they stand in `errors`, never as a problem's own code.
    "not_string": Page("A number, name or value is not a string.", 'Write it in quotes: "+1…".'),
    "bad_format": Page("Not a number in E.164, such as +15550000001.",
                       "Write + and 7 to 15 digits, or give a default_region."),
    "no_country_code": Page("The number has no + and country code, and there is no default_region.",
                            "Add either."),
    "not_possible": Page("No country has numbers of this form.", "Check for lost digits."),
    "not_valid": Page("The number is not in use in its country.", "Check it with its owner."),
    "region_not_allowed": Page("The sender may not write to this number's region.",
                               "Use another sender, or let an admin change allowed_regions."),
    "missing_variable": Page("A placeholder of the message has no value in this row.",
                             "Give every row a value in vars."),
    "param_whitespace": Page("A template's parameter has a newline, a tab or five blanks in a row.",
                             "WhatsApp refuses those; remove them."),
    "too_long": Page("A value is longer than WhatsApp or this API takes.", "Shorten it."),
}  # fmt: skip

_HTML: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{code} · Drumbeat</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="{css}"></head>
<body><header><a class="brand" href="/">Drumbeat</a></header>
<main class="narrow"><section class="card"><h1>{code}</h1>
<p class="faint">{kind}</p><p>{meaning}</p><p>{remedy}</p>
<p class="faint"><a href="/docs">API documentation</a></p></section></main></body></html>
"""


def page(code: str) -> str:
    """Return the page of a code as HTML."""
    found = PAGES[code]
    status, title = CODES.get(code, (0, "One row of a request"))
    return _HTML.format(
        code=escape(code),
        css=path_of("app.css"),
        kind=escape(f"{status} {title}" if status else title),
        meaning=escape(found.meaning),
        remedy=escape(found.remedy),
    )


async def show(request: web.Request) -> web.Response:
    """Show what a problem's code means."""
    query_of(request)
    code = request.match_info["code"]
    if code not in PAGES:
        raise web.HTTPNotFound
    return web.Response(text=page(code), content_type="text/html")


ROUTES: Final = (Route("GET", "/errors/{code}", show, OPEN, "page"),)
