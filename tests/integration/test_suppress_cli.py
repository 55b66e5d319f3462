"""`drumbeat suppress`: one by one, from a file, off again; and users who lose what they may."""

from __future__ import annotations

from pathlib import Path

import msgspec

from api.cli.suppress import read_numbers
from shared.archive import Archive
from shared.ids import Ids
from shared.office import AuditFilter, Office
from shared.settings import Settings
from tests.integration.command import Run, refused
from tests.integration.desk import Api, session_of

ANN, BEN = "+15550000001", "+15550000002"


def test_a_file_is_read_whatever_stands_around_its_numbers() -> None:
    text = ["phone;name\n", f"{ANN};Ann\n", "\n", f'"{BEN}",Ben\n', ANN, "x\n", "(555) 000-0003\n"]
    read = read_numbers(text, None)
    assert read.phones == [15550000001, 15550000002]
    assert [number for number, _ in read.wrong] == [6, 7]
    assert read_numbers(text, "US").phones[2:] == [15550000003]
    assert "000-0003" not in str(read.wrong)


async def test_entries_are_added_listed_and_taken_off(
    run: Run, settings: Settings, archive: Archive
) -> None:
    assert settings.bulk_secret_key
    entry = (await run("suppress", "add", ANN, "--reason", "by letter")).strip()
    again = await run("suppress", "add", "(555) 000-0001", "--region", "US")
    assert again.strip() == entry
    await run("suppress", "add", ANN, "--scope", "marketing")
    await refused(run, "suppress", "add", "5550000001")
    await refused(run, "suppress", "add", ANN, "--region", "XX")
    rows = msgspec.json.decode(await run("suppress", "list", "--json"))
    assert [(row["phone"], row["scope"], row["by"]) for row in rows] == [
        (ANN, "marketing", "cli"), (ANN, "all", "cli"),
    ]  # fmt: skip
    assert rows[1]["reason"] == "by letter"
    assert len(msgspec.json.decode(await run("suppress", "list", "--limit", "1", "--json"))) == 1
    await run("suppress", "remove", entry)
    await refused(run, "suppress", "remove", entry)
    await refused(run, "suppress", "remove", Ids().object_id("sup"))
    await run("suppress", "add", ANN)
    await run("suppress", "remove", ANN)
    await refused(run, "suppress", "remove", ANN)
    assert msgspec.json.decode(await run("suppress", "list", "--json")) == []
    log = await Office(archive._pool).audit(AuditFilter(actor="cli"), 0, 99)
    assert "5550000001" not in str(log)
    assert [row.action for row in log].count("suppression.lift") == 3


async def test_a_file_is_taken_whole_or_not_at_all(
    run: Run, settings: Settings, archive: Archive, tmp_path: Path
) -> None:
    assert settings.bulk_secret_key
    file = tmp_path / "numbers.csv"
    file.write_text("\n".join(f"+1555{n:07}" for n in range(12_000)))
    await run("suppress", "add", "+15550000007")
    printed = await run("suppress", "import", str(file), "--reason", "2026 list")
    assert printed == "11999 added, 1 were on the list, 0 invalid\n"
    assert len((await run("suppress", "list", "--limit", "0", "--json")).split('"id"')) == 12_001
    changes = [change.change for change in await archive.suppressions(0, 20_000)]
    assert len(set(changes)) == 12_000
    assert "1 lines" in await refused(run, "suppress", "import", "-", stdin=f"{BEN}\nx\n")
    words = ("suppress", "import", "-", "--skip-invalid", "--scope", "marketing")
    assert await run(*words, stdin=f"{BEN}\nx\n") == "1 added, 0 were on the list, 1 invalid\n"


async def test_a_user_changes_his_role_and_is_locked_out_at_once(run: Run, api: Api) -> None:
    await run("user", "role", "Ann@example.com", "admin")
    row = await api.made.archive.user(api.ann)
    assert row is not None
    assert row.role == "admin"
    await run("user", "role", "ann@example.com", "user")
    cookie = await session_of(api, "ann")
    assert (await api.client.get("/api/session", headers=cookie)).status == 200
    await run("user", "disable", "ann@example.com")
    assert (await api.client.get("/api/session", headers=cookie)).status == 401
    login = {"email": "ann@example.com", "password": "correct horse battery"}
    assert (await api.client.post("/api/session", json=login)).status == 401
    await run("user", "enable", "ann@example.com")
    await session_of(api, "ann")
    # Somebody must be left who may make admins.
    assert "last admin" in await refused(run, "user", "disable", "root@example.com")
    assert "last admin" in await refused(run, "user", "role", "root@example.com", "user")
    await refused(run, "user", "disable", "nobody@example.com")
    log = await api.made.office.audit(AuditFilter(object=api.ann), 0, 9)
    assert [line.action for line in log if line.actor == "cli"] == [
        "user.enable", "user.disable", "user.role", "user.role",
    ]  # fmt: skip
