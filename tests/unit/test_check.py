"""What `drumbeat check` makes of what it found: each fault has a remedy."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from api.cli import check as looked
from api.cli.main import app
from api.cli.pool import sentence
from shared import settings
from shared.models import ServerInfo

GOOD = ServerInfo("9.1.2", "r", 1, 1 << 30, is_aof=True, policy="noeviction",
                  is_persistence_ok=True)  # fmt: skip


def levels(found: list[looked.Finding]) -> list[str]:
    assert all(each.remedy for each in found if each.level == "fail")
    return [each.level for each in found]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"version": "6.2.14"}, "version"),
        ({"policy": "allkeys-lru"}, "maxmemory-policy"),
        ({"is_aof": False}, "append-only"),
        ({"is_persistence_ok": False}, "last write"),
        ({"max_bytes": 0}, "maxmemory"),
    ],
)
def test_a_redis_that_may_forget_is_a_fault(changes: dict[str, object], word: str) -> None:
    fields = {name: getattr(GOOD, name) for name in ServerInfo.__struct_fields__}
    found = looked.of_redis(ServerInfo(**{**fields, **changes}))
    assert levels(found) == ["fail"]
    assert word in found[0].found
    assert levels(looked.of_redis(GOOD)) == ["ok"]


def test_postgres_needs_its_version_schema_and_rights() -> None:
    assert levels(looked.of_postgres("18.6", [], [])) == ["ok"]
    found = looked.of_postgres("13.2 (Debian 1)", ["0006"], ["UPDATE senders"])
    assert levels(found) == ["fail", "fail", "fail"]
    assert "drumbeat migrate" in found[1].remedy
    assert "UPDATE senders" in found[2].found


@pytest.mark.parametrize(
    ("status", "code", "word"),
    [
        (401, 190, "refuses the token"),
        (400, 190, "refuses the token"),
        (401, None, "refuses the token"),
        (400, 100, "does not show the number"),
        (404, None, "does not show the number"),
        (302, None, "does not show the number"),
        (0, None, "does not answer"),
    ],
)
def test_graph_says_what_is_wrong_with_a_sender(status: int, code: int | None, word: str) -> None:
    found = looked.of_graph("main", status, code)
    assert levels([found]) == ["fail"]
    assert word in found.found
    assert looked.of_graph("main", 200, None).level == "ok"


def test_clock_files_and_settings() -> None:
    assert looked.of_clock(-1.9).level == "ok"
    assert looked.of_clock(2.1).level == "fail"
    assert looked.of_files(1024).level == "fail"
    assert looked.of_files(65_536).level == "ok"
    bare = settings.load({}, None)
    assert levels(looked.of_settings(bare)) == ["fail", "fail"]
    live = {"BULK_SECRET_KEY": "k" * 32, "PUBLIC_URL": "https://example.org"}
    assert levels(looked.of_settings(settings.load(live, None))) == ["ok"]
    tried = {**live, "GRAPH_BASE_URL": "http://sandbox:8080", "ALLOW_VOLATILE": "1"}
    assert levels(looked.of_settings(settings.load(tried, None))) == ["note", "fail"]
    alone = {"BULK_SECRET_KEY": "k" * 32, "GRAPH_BASE_URL": "http://sandbox:8080"}
    assert levels(looked.of_settings(settings.load(alone, None))) == ["note", "note"]


def test_the_switch_is_a_sentence() -> None:
    found = {"disabled": True, "reason": "x", "by": "u", "since": "2026-11-24T09:14:09.123Z"}
    assert sentence(found) == "sending is off since 2026-11-24T09:14:09.123Z, by u: x"


def test_each_command_of_the_page_about_going_live_is_one() -> None:
    text = (Path(__file__).parents[2] / "docs/going-live.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    found = re.findall(r"(?:^|\| )(drumbeat [^|&>\n]+)", "\n".join(blocks), re.MULTILINE)
    assert len(found) >= 10
    for command in found:
        words = shlex.split(command)[1:]
        # The server processes replace this one: only their names are looked at.
        if words[0] in {"api", "worker", "migrate"}:
            assert words[0] in app
            continue
        app.parse_args(words, exit_on_error=False, print_error=False)
