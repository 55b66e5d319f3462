"""`drumbeat config`: what it prints, and that every fault is named at once."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from api.cli.main import app, main
from shared.errors import SettingsError
from shared.settings import example, table


def test_the_table_and_the_example_are_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    app(["config", "docs"])
    assert capsys.readouterr().out == table()
    app(["config", "example"])
    assert capsys.readouterr().out == example()


def test_check_names_every_fault_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("BULK_BATCH_SIZE=none\nBULK_PAUSE_MS=-1\n")
    with pytest.raises(SettingsError) as caught:
        app(["config", "check"])
    for name in ("BULK_BATCH_SIZE", "BULK_PAUSE_MS"):
        assert name in str(caught.value)
    (tmp_path / ".env").write_text(example())
    app(["config", "check"])
    assert capsys.readouterr().out == "the settings are complete\n"


def test_the_list_of_all_verbs_says_what_each_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["drumbeat", "--help"])
    assert main() == 0
    shown = capsys.readouterr().out
    for words in ("health       Ask the management port", "suppress     People who are not"):
        assert words in shown


def test_the_version_is_that_of_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    app(["--version"])
    assert capsys.readouterr().out == f"{version('drumbeat')}\n"
