"""Routes about jobs beyond submit, show, list and control, in one place."""

from __future__ import annotations

from typing import Final

from api import changes, exports, preflight, recipients, retry

ROUTES: Final = (
    *recipients.ROUTES,
    *exports.ROUTES,
    *changes.ROUTES,
    *retry.ROUTES,
    *preflight.ROUTES,
)
