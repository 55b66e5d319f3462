"""Settings: what is read, what is refused, and that every mistake is named at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.errors import SettingsError
from shared.settings import VARIABLES, Secret, example, load, parse_dotenv, table

GUIDE = """\
GRAPH_API_VERSION=v22.0
BULK_BATCH_SIZE=50              # Messages per batch
BULK_CONCURRENCY=5              # Concurrent sends per batch  \n\
BULK_PAUSE_MS=1000              # Pause between batches (ms)
BULK_MAX_RETRIES=3              # Max retries for failed messages
BULK_RETRY_BASE_MS=500          # Base retry delay (ms)
BULK_HARD_CAP=50000             # Max recipients per job
"""


def faults_of(environ: dict[str, str], dotenv: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(environ, dotenv)
    return str(caught.value).splitlines()


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = load({}, None)
    assert settings.bulk_batch_size == 50
    assert settings.default_rate == 50.0
    assert settings.redis_url is None
    assert not settings.is_sandbox
    assert (settings.api_metrics_port, settings.worker_metrics_port) == (9464, 9465)


def test_a_stated_metrics_port_holds_for_both_processes() -> None:
    settings = load({"METRICS_PORT": "9464"}, None)
    assert (settings.api_metrics_port, settings.worker_metrics_port) == (9464, 9464)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_guides_block_pasted_into_dotenv_is_read(tmp_path: Path, newline: str) -> None:
    file = tmp_path / ".env"
    file.write_bytes(GUIDE.replace("\n", newline).replace("=50 ", "=40 ", 1).encode())
    settings = load({}, file)
    assert (settings.bulk_batch_size, settings.bulk_hard_cap) == (40, 50_000)
    assert settings.warnings == ()


def test_dotenv_knows_quotes_export_comments_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "\ufeff# head\n\nexport API_HOST = 'a b # c' # tail\n"
        'PUBLIC_URL="https://example.org/"\nDRUMBEAT_HOME=x#y\nLOG_LEVEL= # nothing\n',
        encoding="utf-8",
    )
    settings = load({}, file)
    assert settings.api_host == "a b # c"
    assert settings.public_url == "https://example.org"
    assert settings.drumbeat_home == "x#y"
    assert settings.log_level == "info"


def test_dotenv_never_overrides_the_environment(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from-file")
    file = tmp_path / ".env"
    file.write_text("BULK_BATCH_SIZE=10\nBULK_PAUSE_MS=5\nMETRICS_TOKEN=from-dotenv\n")
    environ = {"BULK_BATCH_SIZE": "20", "BULK_PAUSE_MS": "", "METRICS_TOKEN_FILE": str(secret)}
    settings = load(environ, file)
    assert (settings.bulk_batch_size, settings.bulk_pause_ms) == (20, 1000)
    assert settings.metrics_token == Secret("from-file")


def test_a_bad_line_of_dotenv_is_named_without_its_text() -> None:
    faults: list[str] = []
    parse_dotenv("A=1\nhush hush\nB='open\n", faults)
    assert faults == [
        ".env line 2: not of the form NAME=value",
        ".env line 3: not of the form NAME=value",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("yes", True), ("ON", True), ("1", True), ("No", False), ("off", False), ("", False)],
)
def test_booleans_are_read_as_people_write_them(text: str, *, value: bool) -> None:
    assert load({"DISABLE_BULK_MESSAGING": text}, None).disable_bulk_messaging is value


def test_every_mistake_is_named_at_once() -> None:
    faults = faults_of(
        {
            "BULK_BATCH_SIZE": "0",
            "BULK_PAUSE_MS": "fast",
            "BULK_BATCHSIZE": "5",
            "DURABILITY": "maybe",
            "GRAPH_TIMEOUT_S": "nan",
            "DISABLE_BULK_MESSAGING": "perhaps",
            "METRICS_TOKEN_FILE": "/nowhere/at/all",
        }
    )
    named = {fault.split(":")[0] for fault in faults}
    assert named == {
        "BULK_BATCH_SIZE",
        "BULK_PAUSE_MS",
        "BULK_BATCHSIZE",
        "DURABILITY",
        "GRAPH_TIMEOUT_S",
        "DISABLE_BULK_MESSAGING",
        "METRICS_TOKEN_FILE",
    }
    assert "BULK_BATCHSIZE: unknown variable; did you mean BULK_BATCH_SIZE?" in faults


def test_another_name_with_one_of_our_prefixes_is_a_warning() -> None:
    settings = load({"WORKER_SLOT": "5", "HOME": "/root"}, None)
    assert settings.warnings == (
        "WORKER_SLOT is not a variable of ours; the nearest is WORKER_SLOTS",
    )


def test_every_name_may_come_from_a_file_but_not_twice(tmp_path: Path) -> None:
    file = tmp_path / "value"
    file.write_text("redis://:hush@host/0\n")
    assert load({"REDIS_URL_FILE": str(file)}, None).redis_url == "redis://:hush@host/0"
    faults = faults_of({"REDIS_URL_FILE": str(file), "REDIS_URL": "redis://other"})
    assert faults == ["REDIS_URL: given twice, by REDIS_URL and by REDIS_URL_FILE"]


def test_secrets_are_not_shown() -> None:
    environ = {
        "METRICS_TOKEN": "hush-1",
        "BULK_SECRET_KEY": "hush-2" * 6 + "," + "hush-3" * 6,
        "REDIS_URL": "redis://user:hush-4@host/0",
        "DATABASE_URL": "postgresql://user:hush-5@host/base",
    }
    settings = load(environ, None)
    assert "hush" not in repr(settings)
    assert [key.reveal()[:6] for key in settings.bulk_secret_key] == ["hush-2", "hush-3"]


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"WORKER_LEASE_MS": "1900", "WORKER_TICK_MS": "200"}, "WORKER_LEASE_MS"),
        ({"WORKER_GRACE_S": "34"}, "WORKER_GRACE_S"),
        ({"SESSION_MAX_S": "60"}, "SESSION_MAX_S"),
        ({"SESSION_IDLE_S": "60", "SSE_HEARTBEAT_S": "31"}, "SESSION_IDLE_S"),
        ({"WHATSAPP_ACCESS_TOKEN": "x"}, "WHATSAPP_ACCESS_TOKEN"),
        *(
            (
                {"WHATSAPP_ACCESS_TOKEN": odd, "WHATSAPP_PHONE_NUMBER_ID": "1"},
                "WHATSAPP_ACCESS_TOKEN",
            )
            for odd in ("a b", "a\r\nX-Evil: 1", "\ufeffa", "é")
        ),
        ({"PUBLIC_URL": "example.org"}, "PUBLIC_URL"),
        ({"PUBLIC_URL": "https://example.org/path"}, "PUBLIC_URL"),
        ({"GRAPH_BASE_URL": "ftp://x"}, "GRAPH_BASE_URL"),
        ({"REDIS_URL": "http://x"}, "REDIS_URL"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL"),
        ({"BULK_SECRET_KEY": "short"}, "BULK_SECRET_KEY"),
        ({"PUBLIC_URL": "http://example.org"}, "PUBLIC_URL"),
        ({"GRAPH_BASE_URL": "http://graph.example.org"}, "GRAPH_BASE_URL"),
        ({"TRUSTED_PROXIES": "0.0.0.0/0"}, "TRUSTED_PROXIES"),
        ({"TRUSTED_PROXIES": "10.0.0.0/8, nonsense"}, "TRUSTED_PROXIES"),
    ],
)
def test_values_that_disagree_are_refused(environ: dict[str, str], name: str) -> None:
    assert [fault.split(":")[0] for fault in faults_of(environ)] == [name]


def test_any_address_but_metas_is_a_sandbox() -> None:
    assert load({"GRAPH_BASE_URL": "http://sandbox:8080/"}, None).is_sandbox
    assert not load({"GRAPH_BASE_URL": "https://graph.facebook.com/"}, None).is_sandbox


def test_a_pause_of_zero_means_no_limit() -> None:
    assert load({"BULK_PAUSE_MS": "0"}, None).default_rate == 0.0


def test_hosts_follow_the_public_url_unless_they_are_given() -> None:
    assert "example.org" in load({"PUBLIC_URL": "https://example.org"}, None).hosts
    assert load({"ALLOWED_HOSTS": "A.org, b.org"}, None).hosts == {"a.org", "b.org"}


def test_the_table_names_every_variable_with_a_meaning() -> None:
    rows = table().splitlines()[2:]
    assert [row.split(" | ")[0][2:] for row in rows] == list(VARIABLES)
    assert all(row.split(" | ")[3].strip(" |") for row in rows)


def test_the_example_names_every_variable_and_its_lines_are_the_defaults(tmp_path: Path) -> None:
    lines = [line[1:] for line in example().splitlines() if re.match(r"#[A-Z_]+=", line)]
    assert {line.partition("=")[0] for line in lines} == set(VARIABLES)
    file = tmp_path / ".env"
    file.write_text("\n".join(line for line in lines if not line.endswith("=")))
    assert load({}, file) == load({}, None)
    file.write_text(example())
    assert load({}, file) == load({}, None)
