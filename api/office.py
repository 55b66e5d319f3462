"""The routes of what people decide, together."""

from __future__ import annotations

from typing import Final

from api import switching

ROUTES: Final = (*switching.ROUTES,)
