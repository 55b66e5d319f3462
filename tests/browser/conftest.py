"""A whole system and a browser, for tests that need both."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.browser.chromium import Page, opened
from tests.integration.test_up_and_demo import folder

__all__ = ["folder", "page"]


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    with tempfile.TemporaryDirectory(prefix="drumbeat-browser-", ignore_cleanup_errors=True) as at:
        async with opened(Path(at)) as made:
            yield made
