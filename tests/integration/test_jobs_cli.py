"""`drumbeat jobs retry`, `export`, and `send --map`: over HTTP, as a caller would."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from api.cli.jobs import USAGE, send
from api.cli.main import app
from shared.errors import ConflictError, NotFoundError
from shared.ids import Ids
from shared.models import State
from tests.integration.desk import NUMBERS, Api, come_to, end


@pytest.fixture
def asker(api: Api, monkeypatch: pytest.MonkeyPatch) -> Api:
    server = api.client.server
    monkeypatch.setenv("DRUMBEAT_URL", f"http://{server.host}:{server.port}")
    monkeypatch.setenv("DRUMBEAT_API_KEY", api.tokens["ann"])
    return api


async def ran(*words: str) -> object:
    return await asyncio.to_thread(app, list(words))


async def test_those_that_failed_are_sent_to_again(
    asker: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    job = (await (await asker.send()).json())["jobId"]
    with pytest.raises(ConflictError):
        await ran("jobs", "retry", job)
    await come_to(asker, job, (0, State.SENT, None), (1, State.FAILED, 131000),
                  (2, State.FAILED, 131026))  # fmt: skip
    await end(asker, job)
    capsys.readouterr()
    assert await ran("jobs", "retry", job, "--key", "k1") == 0
    first = capsys.readouterr()
    made = [line for line in first.out.splitlines() if line.startswith("job_")]
    child = await asker.made.archive.job(made[0], None)
    assert child is not None
    assert (child.parent, child.recipients) == (job, 1)
    assert "1 left out: 131026\n" in first.err
    assert await ran("jobs", "retry", job, "--key", "k1", "--quiet") == 0
    assert made[0] in capsys.readouterr().out.splitlines()
    assert await ran("jobs", "retry", job, "--scope", "unknown") == 1
    assert "confirm_duplicates" in capsys.readouterr().err
    with pytest.raises(NotFoundError):
        await ran("jobs", "retry", Ids().job_id(0))


async def test_recipients_are_written_to_a_file_whole_or_not_at_all(
    asker: Api, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    job = (await (await asker.send()).json())["jobId"]
    await come_to(asker, job, (1, State.FAILED, 131026))
    file = tmp_path / "out.csv"
    assert await ran("jobs", "export", job, "--output", str(file)) == 0
    lines = file.read_text().splitlines()
    assert len(lines) == 1 + len(NUMBERS)
    assert await ran("jobs", "export", job, "--outcome", "failed", "--format", "ndjson") == 0
    out = capfdbinary.readouterr().out
    assert out.count(b"131026") == 1
    with pytest.raises(NotFoundError):
        await ran("jobs", "export", Ids().job_id(0), "--output", str(tmp_path / "none.csv"))
    assert [each.name for each in tmp_path.iterdir()] == ["out.csv"]


async def test_columns_fill_the_parameters_of_a_template(asker: Api, tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    file.write_text(f"Phone,First name,Code\n{NUMBERS[0]},Ann,7\n")
    words = ("--template", "spring_sale:de", "--map", "2=code", "--map", "1=First name", "--yes")
    assert await ran("send", str(file), *words) == 0
    page = await (await asker.ask("ann", "GET", "/api/bulk/jobs")).json()
    row = await asker.made.archive.job(page["data"][0]["jobId"], None)
    assert row is not None
    assert row.vars == ["first_name", "code"]
    assert row.template_language == "de"
    assert send(str(file), text="Hi", maps=("1=code",)) == USAGE
    assert send(str(file), template="a", maps=("code",)) == USAGE


async def test_a_dry_run_says_what_would_become_of_it_and_sends_nothing(
    asker: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "people.csv"
    file.write_text("\n".join(NUMBERS))
    assert await ran("send", str(file), "--template", "offer:en", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "valid 3" in out
    assert "template not checked: the sender has no waba_id" in out
    assert "it would be accepted" in out
    file.write_text("\n".join([*NUMBERS, "nobody"]))
    words = ("--text", "Hi", "--phone-column", "x")
    assert await ran("send", str(file), *words, "--dry-run") == USAGE
    file.write_text("phone\n" + "\n".join([*NUMBERS, "nobody"]))
    assert await ran("send", str(file), "--text", "Hi", "--dry-run", "--json") == 1
    assert await ran("send", str(file), "--text", "Hi", "--dry-run") == 1
    captured = capsys.readouterr()
    assert "it would be refused" in captured.out
    assert "/recipients/3" in captured.err
    page = await (await asker.ask("ann", "GET", "/api/bulk/jobs")).json()
    assert page["data"] == []


async def test_a_job_may_be_given_its_time(asker: Api, tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    file.write_text(NUMBERS[0])
    times = ("--at", "2099-12-01T09:00:00+01:00", "--expires", "2099-12-02T09:00:00+01:00")
    assert await ran("send", str(file), "--text", "Hi", "--yes", *times) == 0
    page = await (await asker.ask("ann", "GET", "/api/bulk/jobs")).json()
    assert page["data"][0]["state"] == "scheduled"
    assert page["data"][0]["expires_at"] == "2099-12-02T08:00:00.000Z"
