"""Time zones are known where the system has none, as in a slim image."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator
from datetime import datetime

import pytest


@pytest.fixture
def bare_system() -> Iterator[None]:
    zoneinfo.reset_tzpath(to=[])
    yield
    zoneinfo.reset_tzpath()


@pytest.mark.usefixtures("bare_system")
def test_zones_come_with_the_program() -> None:
    rome = zoneinfo.ZoneInfo.no_cache("Europe/Rome")
    assert datetime(2026, 7, 1, 9, tzinfo=rome).isoformat().endswith("+02:00")
    assert datetime(2026, 11, 24, 9, tzinfo=rome).isoformat().endswith("+01:00")
