"""Routes about jobs beyond submit, show, list and control, in one place."""

from __future__ import annotations

from typing import Final

from api import campaigns, changes, exports, history, preflight, recipients, retry, uploads

ROUTES: Final = (
    *recipients.ROUTES,
    *exports.ROUTES,
    *changes.ROUTES,
    *retry.ROUTES,
    *preflight.ROUTES,
    *history.ROUTES,
    *campaigns.ROUTES,
    *uploads.ROUTES,
)
