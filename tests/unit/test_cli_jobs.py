"""Files become recipients; a job is one line."""

from __future__ import annotations

import pytest

from api.cli import jobs


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("+15550000001\n+15550000002\n", ["+15550000001", "+15550000002"]),
        ("phone\r\n+15550000001\r\n\r\n", ["+15550000001"]),
        ("a,Phone\n,+15550000001\n", [{"to": "+15550000001", "vars": {"a": ""}}]),
        ("To;Name\n+1555;Ann\n", [{"to": "+1555", "vars": {"name": "Ann"}}]),
        ('to,name\n+1555,"a, b"\n', [{"to": "+1555", "vars": {"name": "a, b"}}]),
        ("Ann,+1555\nBob,+1556\n", ["+1555", "+1556"]),
    ],
)
def test_the_column_of_numbers_is_found(content: str, expected: list[object]) -> None:
    assert jobs.rows_of(content) == expected


def test_a_column_may_be_named() -> None:
    assert jobs.rows_of("Cell no\n+1555\n", "cell no") == ["+1555"]


@pytest.mark.parametrize("content", ["", "\n\n", "name\nAnn\n"])
def test_a_file_without_numbers_is_refused(content: str) -> None:
    with pytest.raises(ValueError, match=r"row|column"):
        jobs.rows_of(content)


def test_exactly_one_kind_of_message_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.send("-") == jobs.USAGE
    assert "--text" in capsys.readouterr().err


def test_a_template_without_language_is_american() -> None:
    made = jobs._message(None, "order_update")
    assert made["template"] == {"name": "order_update", "language_code": "en_US"}
