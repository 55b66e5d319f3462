"""Generated pages say what the code says; run this file with Python to write them anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared import settings
from shared.keys import FAMILIES

ROOT = Path(__file__).parents[2]


def settings_page() -> str:
    return (
        "# Settings\n\nWritten from `shared/settings.py`; every name may also be given as "
        "`NAME_FILE`.\n\n" + settings.table()
    )


def protocol_page() -> str:
    rows = "".join(f"| `{f.pattern}` | {f.type} | {f.lifetime} | {f.writer} |\n" for f in FAMILIES)
    return (
        "# Redis keys\n\nWritten from `shared/keys.py`; `P` is the shard's tag, `{s0}:` for shard "
        "0.\n\n| key | type | lifetime | written by |\n|---|---|---|---|\n" + rows
    )


PAGES = {"docs/settings.md": settings_page, "docs/protocol.md": protocol_page}


@pytest.mark.parametrize("page", PAGES)
def test_a_generated_page_is_in_step_with_the_code(page: str) -> None:
    assert (ROOT / page).read_text(encoding="utf-8") == PAGES[page]()


def test_every_key_of_visitors_has_its_row() -> None:
    code = [*ROOT.glob("api/**/*.py"), *ROOT.glob("shared/**/*.lua"), ROOT / "shared/queue.py"]
    used = {
        found
        for path in code
        for found in re.findall(r"\{?\{v\}\}?:([a-z]+)", path.read_text(encoding="utf-8"))
    }
    rows = {family.pattern.split(":")[1] for family in FAMILIES if family.pattern[:3] == "{v}"}
    assert used == rows


def test_the_readme_is_short_and_names_real_variables() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    rows = [line for line in text.splitlines() if line.startswith(("| BULK", "| DIS", "| REDIS"))]
    named = {name.strip() for row in rows for name in row.split("|")[1].split(",")}
    assert len(named) >= 8
    assert named <= set(settings.VARIABLES)


if __name__ == "__main__":
    for name, written in PAGES.items():
        (ROOT / name).write_text(written(), encoding="utf-8")
