"""Every code that the source can say has a page, and every problem's `type` leads to one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.error_pages import PAGES, page
from api.problems import CODES

ROOT = Path(__file__).parents[2]
# Which argument of a call is the code; of an error it is the first.
PLACES = {"refuse": 2, "problem": 0, "Fault": 1, "_wrong": 1, "Row": 2}
# Not of the API: why a stream ended, and what `drumbeat` says on a terminal.
OTHERS = {"bye", "client", "end", "revoked", "slow", "unreachable"}


def words(path: Path) -> Iterator[str]:
    """Yield each string that a call of `path` gives as a code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        place: ast.expr | None = None
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            name = node.func.attr if isinstance(node.func, ast.Attribute) else name
            at = PLACES.get(name, 0 if name.endswith("Error") else len(node.args))
            place = node.args[at] if at < len(node.args) else None
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            # `why_not` and `text_fault` return a code and a sentence.
            place = node.value.elts[0] if path.name in {"phone.py", "message.py"} else None
        text = place.value if isinstance(place, ast.Constant) else None
        if isinstance(text, str) and text.replace("_", "").isalpha() and text.islower():
            yield text


def test_every_code_that_the_source_can_say_has_a_page() -> None:
    said = {
        word: path.name
        for folder in ("api", "shared")
        for path in (ROOT / folder).rglob("*.py")
        for word in words(path)
    }
    assert len(said) > 50
    assert {word: where for word, where in said.items() if word not in PAGES} == {
        word: where for word, where in said.items() if word in OTHERS
    }


def test_every_problem_has_a_page_and_no_page_is_about_nothing() -> None:
    assert not CODES.keys() - PAGES.keys()
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("api", "shared")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "error_pages.py"
    )
    unsaid = {code for code in PAGES if code not in text}
    assert not unsaid


@pytest.mark.parametrize("code", PAGES)
def test_a_page_says_what_it_means_and_what_to_do(code: str) -> None:
    html = page(code)
    found = PAGES[code]
    assert found.meaning.endswith(".")
    assert found.remedy.endswith(".")
    assert code in html
    assert "<script" not in html
    assert "style=" not in html
