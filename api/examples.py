"""One example of each body, as the documentation shows it; a test holds them to the structs."""

from __future__ import annotations

from typing import Any, Final

from api import papers, wire
from api.campaigns import Campaign
from api.changes import JobPatch
from api.history import HistoryList
from api.preflight import Preflight
from api.progress import Event
from api.recipients import RecipientList
from api.retry import Retried, Retry
from api.templates import TemplateList, TemplatePreview, TemplateRow, TemplateSync
from api.uploads import Upload, UploadPatch

_JOB: Final = "job_01m86db0v300hd99fdtgj8yepfzx"
_USER: Final = "01a20cd5-8363-7781-a340-0e3b42650644"
_AT: Final = "2026-11-24T09:14:09.123Z"
_TEXT: Final[dict[str, Any]] = {
    "kind": "text",
    "text": {"body": "Hello from Prime SMS!", "preview_url": False},
}
_ROW: Final[dict[str, Any]] = {
    "pointer": "/recipients/17", "row": 17, "code": "bad_format", "detail": "fewer than 7 digits",
}  # fmt: skip
_INTAKE: Final[dict[str, Any]] = {
    "submitted": 50000, "accepted": 49873, "duplicates": 12, "invalid": 115, "changed": 3,
    "suspect": 2, "problems": [_ROW],
}  # fmt: skip
_LINKS: Final[dict[str, Any]] = {
    "self": f"/api/bulk/jobs/{_JOB}", "stream": f"/realtime/bulk/{_JOB}",
    "recipients": f"/api/bulk/jobs/{_JOB}/recipients", "page": f"/jobs/{_JOB}",
}  # fmt: skip
_PROGRESS: Final[dict[str, Any]] = {
    "total": 49873, "queued": 31098, "in_flight": 64, "retrying": 8, "sent": 18627, "failed": 61,
    "skipped": 12, "cancelled": 0, "unknown": 3, "done": 18703, "delivered": 15020, "read": 2904,
    "undelivered": 11, "rate": 49.6, "eta_s": 629, "by_code": {"131026": 49, "131049": 12},
    "by_reason": {"suppressed": 12},
}  # fmt: skip
_WAIT: Final[dict[str, Any]] = {
    "reason": "sender_rate", "detail": "number limit 50/s, 3 jobs share it", "until": None,
    "by": None,
}  # fmt: skip
_SUBMITTED: Final[dict[str, Any]] = {
    "jobId": _JOB, "state": "queued", "wait": None, "userId": _USER, "campaignId": None,
    "intake": _INTAKE, "estimate": {"rate": 50.0, "duration_s": 998}, "parent": None,
    "links": _LINKS, "sandbox": False,
}  # fmt: skip
_SHOWN_JOB: Final[dict[str, Any]] = {
    "jobId": _JOB, "userId": _USER, "campaignId": "autumn", "name": "Spring sale",
    "state": "running", "wait": _WAIT, "sender": "main", "kind": "template",
    "template": {"name": "order_update", "language_code": "en_US"}, "rate": None,
    "priority": "normal", "on_unknown": "hold", "parent": None, "created_at": _AT,
    "scheduled_at": None, "started_at": _AT, "finished_at": None, "expires_at": None,
    "intake": _INTAKE, "progress": _PROGRESS, "links": _LINKS, "sandbox": False,
}  # fmt: skip
_SENDER: Final[dict[str, Any]] = {
    "id": "snd_01m86db0v3x9xnxdb1mggp6rv9", "name": "main", "number": "+•••0001",
    "phone_number_id": "100000000000001", "waba_id": None, "graph_api_version": "v22.0",
    "state": "active", "why": None, "until": None, "rate": 50.0, "rate_now": 50.0, "burst": 12.5,
    "allowed_regions": [], "default": True, "jobs": 3,
    "access_token": {"set": True, "last4": "k2Pf", "set_at": "2026-11-01T08:00:00.000Z"},
}  # fmt: skip
_ENTRY: Final[dict[str, Any]] = {
    "id": "sup_01m86db0v3m0qqjpwjktd9n07x", "phone": "+15550000001", "scope": "all",
    "reason": "asked by letter", "source": "api", "by": _USER, "created_at": _AT,
}  # fmt: skip
_SHOWN_USER: Final[dict[str, Any]] = {
    "userId": _USER, "email": "ana@example.com", "role": "user", "disabled": False,
    "created_at": _AT,
}  # fmt: skip
_KEY: Final[dict[str, Any]] = {
    "id": "key_01m86db0v3kc411hkzv6ab5e7x", "name": "crm", "scopes": ["send"], "last4": "x9Qz",
    "last_used_at": None, "expires_at": None,
}  # fmt: skip


def _page(row: dict[str, Any]) -> dict[str, Any]:
    return {"data": [row], "has_more": False, "next_cursor": None}


EXAMPLES: Final[dict[type, dict[str, Any]]] = {
    wire.SendRequest: {
        "recipients": ["+15550000001", {"to": "+15550000002", "ref": "crm-9"}],
        "message": _TEXT, "campaignId": "autumn", "name": "Spring sale",
    },
    wire.Submitted: _SUBMITTED,
    Retried: {**_SUBMITTED, "parent": _JOB,
              "excluded": [{"code": "131049", "count": 12, "not_before": _AT}]},
    Retry: {"scope": "failed", "codes": ["131026"]},
    wire.Job: _SHOWN_JOB,
    wire.JobList: _page(_SHOWN_JOB),
    JobPatch: {"rate": 20, "priority": "high"},
    wire.Reason: {"reason": "wrong template"},
    Event: {"type": "progress", "jobId": _JOB, "state": "running", "wait": None, "at": _AT,
            "reset": False, "progress": _PROGRESS},
    wire.Row: _ROW,
    RecipientList: {**_page({
        "position": 17, "to": "+15550000001", "ref": "crm-9", "outcome": "failed",
        "reason": "graph", "code": 131026, "error": "Message undeliverable", "attempts": 1,
        "wamid": None, "sent_at": None, "receipt": None, "receipt_at": None}), "as_of": _AT},
    HistoryList: _page({
        "jobId": _JOB, "campaignId": None, "kind": "text", "template": None, "sender": "main",
        "position": 17, "to": "+15550000001", "outcome": "sent", "reason": None, "code": None,
        "error": None, "attempts": 1, "wamid": "wamid.HBgL", "at": _AT, "receipt": "delivered",
        "receipt_at": _AT}),
    Campaign: {"campaignId": "autumn", "jobs": {"completed": 2, "running": 1}, "progress": {
        "total": 300, "pending": 40, "done": 260, "sent": 255, "failed": 5, "skipped": 0,
        "cancelled": 0, "unknown": 0, "delivered": 250, "read": 90, "undelivered": 2},
        "first_at": _AT, "last_at": _AT},
    Preflight: {
        "ok": False, "rows": {"total": 50000, "valid": 49870, "invalid": 115, "duplicates": 15,
                              "changed": 3, "suspect": 2, "suppressed": 812},
        "problems": [_ROW], "template": None,
        "preview": [{"row": 0, "text": "Hi Ann, your order 7 left."}],
        "estimate": {"rate": 50.0, "duration_s": 998},
        "sender": {"name": "main", "state": "active"}},
    Upload: {
        "id": "upl_01m86db0v3m0qqjpwjktd9n07x", "filename": "people.csv", "format": "csv",
        "rows": 50000, "columns": [{"name": "Phone", "guess": "to"}], "phone_column": "Phone",
        "default_region": None, "valid": 49870, "invalid": 115, "duplicates": 15, "changed": 3,
        "suspect": 2, "problems": [_ROW], "note": None, "expires_at": _AT},
    UploadPatch: {"phone_column": "Mobile", "default_region": "DE"},
    wire.Stats: {
        "at": _AT, "jobs": {"scheduled": 1, "queued": 2, "running": 3, "paused": 1},
        "messages": {"last_minute": 2976, "last_hour": 121400, "today": 1190211},
        "outcomes_today": {"sent": 1178300, "failed": 11400, "unknown": 41},
        "backlog": {"queued": 211590, "in_flight": 190, "retrying": 23},
        "demand": {"messages_per_second": 150.0, "wanted_workers": 1, "workers": 2, "slots": 128,
                   "busy_slots": 17},
        "streams": {"connections": 37, "users": 9, "events_last_minute": 4410},
        "senders": [{"name": "main", "rate": 50.0, "rate_now": 50.0, "state": "active",
                     "jobs": 3}],
        "redis": {"up": True, "version": "7.2.4", "used_bytes": 44040192,
                  "max_bytes": 2147483648, "aof": True, "policy": "noeviction"},
        "postgres": {"up": True, "version": "18.6", "pool_busy": 4, "pool_size": 10},
        "archive_lag_s": 0.3, "webhook_lag_s": 0.8, "disabled": False, "sandbox": False},
    wire.Login: {"email": "ana@example.com", "password": "correct horse battery"},
    wire.Me: {"userId": _USER, "email": "ana@example.com", "role": "user",
              "scopes": ["read", "send"], "expires_at": "2026-11-24T21:14:09.123Z"},
    papers.Switched: {"disabled": True, "reason": "wrong template", "by": _USER, "since": _AT},
    papers.NewUser: {"email": "ana@example.com", "password": "correct horse battery",
                     "role": "user"},
    papers.UserPatch: {"disabled": True},
    papers.User: _SHOWN_USER,
    papers.UserList: _page(_SHOWN_USER),
    papers.PasswordChange: {"current": "correct horse battery", "new": "a much better one"},
    papers.NewKey: {"name": "crm", "scopes": ["send"], "expires_at": None},
    papers.MadeKey: {**_KEY, "key": "drb_kzv6ab5e7x_…"},
    papers.KeyList: _page(_KEY),
    papers.NewSender: {"name": "main", "phone_number_id": "100000000000001",
                       "access_token": "EAAGx", "rate": 50,
                       "allowed_regions": ["IT", "DE"]},
    papers.SenderPatch: {"rate": 20, "burst": 5},
    papers.Sender: _SENDER,
    papers.SenderList: _page(_SENDER),
    papers.NewSuppression: {"phone": "+15550000001", "scope": "all", "reason": "asked by letter"},
    papers.Suppression: _ENTRY,
    papers.SuppressionList: _page(_ENTRY),
    TemplateList: {**_page({
        "name": "order_update", "language_code": "en_US", "category": "UTILITY",
        "status": "APPROVED", "format": "NAMED", "params": ["first_name"], "quality": "GREEN",
        "synced_at": _AT}), "synced_at": _AT, "why": None},
    TemplateSync: {"sender": "main", "asked_at": _AT},
    TemplateRow: {
        "language_code": "en_US", "vars": {"first_name": "Ann"},
        "components": [{"type": "body", "parameters": [
            {"type": "text", "parameter_name": "first_name", "text": "{{first_name}}"}]}]},
    TemplatePreview: {
        "text": "Hi Ann, your order has left.", "missing_params": [], "problems": []},
    papers.AuditList: _page({
        "at": _AT, "actor": _USER, "action": "job.submit", "object": _JOB, "address": "a_5f1c09d2",
        "result": "ok", "reason": None, "request_id": "req_01m86db0v3tsjeha2jkw1nxyh5"}),
}  # fmt: skip
