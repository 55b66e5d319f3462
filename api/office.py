"""The routes of what people decide, together."""

from __future__ import annotations

from typing import Final

from api import (
    audit_log,
    error_pages,
    keyring,
    reference,
    senders,
    suppressions,
    switching,
    templates,
    users,
)

ROUTES: Final = (
    *switching.ROUTES,
    *users.ROUTES,
    *keyring.ROUTES,
    *senders.ROUTES,
    *suppressions.ROUTES,
    *templates.ROUTES,
    *audit_log.ROUTES,
    *error_pages.ROUTES,
    *reference.ROUTES,
)
