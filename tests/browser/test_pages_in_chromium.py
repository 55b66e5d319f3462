"""Our own pages in a real browser: log in, submit, follow; on a phone too; nothing refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Page
from tests.browser.test_original_snippets import log_in
from tests.integration.test_up_and_demo import Folder

pytestmark = pytest.mark.browser
Eventually = Callable[..., Awaitable[Any]]
WINDOWS = {"wide": (1200, 900), "phone": (360, 780)}


async def looked_at(page: Page, name: str, shots: Path) -> None:
    """Keep screenshots of a page, light and dark, and hold that nothing hangs over its edge."""
    for window, (width, height) in WINDOWS.items():
        for is_dark in (False, True):
            await page.resize(width, height, is_dark=is_dark)
            wide = await page.type("document.documentElement.scrollWidth")
            assert wide <= width, f"{name} is {wide} wide on {width}"
            shade = "dark" if is_dark else "light"
            await page.screenshot(shots / f"{name}-{window}-{shade}.png")


async def text_of(page: Page, selector: str) -> str:
    return str(await page.type(f"document.querySelector('{selector}').textContent"))


async def test_somebody_logs_in_submits_and_follows_to_the_end(
    page: Page, folder: Folder, tmp_path: Path, eventually: Eventually
) -> None:
    up = await folder.up(eventually, BULK_BATCH_SIZE="5")
    await page.goto(f"{up.origin}/login")
    await eventually(lambda: page.is_shown("#login-form"))
    await looked_at(page, "login", tmp_path)
    await page.fill("[name=email]", "admin@localhost")
    await page.fill("[name=password]", "not the password")
    await page.click("#login-form button")
    await eventually(lambda: page.is_shown("#login-form .error"))
    await looked_at(page, "refused", tmp_path)
    await log_in(page, up, eventually)
    await looked_at(page, "submit", tmp_path)
    # 8026 is refused by Graph for good; a number nobody can have is refused by us.
    numbers = ["+15550008026", *(f"+1555000{n:04d}" for n in range(10, 30))]
    await page.fill("[name=recipients]", "\n".join(["12", *numbers]))
    await page.fill("[name=body]", "Hello <b>you</b> & all")
    await page.fill("#send-form [name=name]", "Spring <i>sale</i>")
    await page.click("#send-form > button")
    await eventually(lambda: page.is_shown("#send-form .error"))
    assert "/recipients/0" in await text_of(page, "#send-form .error")
    await page.type("document.querySelector('[name=recipients]').select()")
    await page.fill("[name=recipients]", "\n".join(numbers))
    await page.click("#send-form > button")
    await eventually(lambda: page.is_shown("#job"))
    assert await text_of(page, "#job-name") == "Spring <i>sale</i>"

    async def has(selector: str, text: str) -> bool:
        return text in await text_of(page, selector)

    await eventually(lambda: has("#state", "running"))
    await eventually(lambda: has("#link", "live"))
    await looked_at(page, "follow", tmp_path)
    await page.click("#pause")
    await eventually(lambda: has("#state", "paused"))
    await eventually(lambda: page.is_shown("#resume"))
    await eventually(lambda: has("#jobs a span:last-child", "paused"))
    await looked_at(page, "paused", tmp_path)
    await page.click("#resume")
    await eventually(lambda: has("#link", "finished"), within_s=30)
    assert await has("#state", "completed")
    assert await has("#pace", "21 of 21 (100 %)")
    assert await has("#codes", "Graph 131026")
    await looked_at(page, "finished", tmp_path)
    # A second one, to see what a cancelled one looks like.
    await page.type("confirm = () => true")
    await page.fill("[name=recipients]", "\n".join(numbers))
    await page.click("#send-form > button")
    await eventually(lambda: has("#state", "running"))
    await page.click("#cancel")
    await eventually(lambda: has("#link", "finished"), within_s=30)
    assert await has("#state", "cancelled")
    shade = await page.type("getComputedStyle(document.querySelector('#state')).backgroundColor")
    assert shade == "rgba(0, 0, 0, 0)", "the word would be red on grey"
    await looked_at(page, "cancelled", tmp_path)
    assert page.faults == []
