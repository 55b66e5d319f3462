"""The page obeys the policy it is served under: no inline script or style, files by their hash."""

from __future__ import annotations

import re

from api.web import pages


def test_the_page_names_its_files_by_their_content() -> None:
    named = set(re.findall(rb'/static/([^"]+)"', pages._PAGE))
    assert named == {name.encode() for name in pages._ASSETS}
    assert all(re.fullmatch(rb"app-[0-9a-f]{12}\.(css|js)", name) for name in named)


def test_nothing_in_the_page_is_inline_or_from_elsewhere() -> None:
    page = pages._PAGE.decode()
    assert re.findall(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=", page) == []
    assert re.findall(r"https?://", page) == []


def test_what_the_server_says_is_never_markup() -> None:
    script = next(body for body, kind in pages._ASSETS.values() if kind == "text/javascript")
    assert not re.search(
        rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", script
    )


def test_every_page_is_open_to_all_and_a_file_may_be_kept_for_ever() -> None:
    assert all(route.access is not None and route.access.is_open for route in pages.ROUTES)
    assert "immutable" in pages.FOREVER
