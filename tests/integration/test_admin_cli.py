"""An operator's verbs on a real database; secrets come from standard input alone."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from api import passwords
from api.keyring import shown_id
from shared.archive import Archive, SenderRow
from shared.errors import ArchiveError
from shared.ids import Ids
from shared.office import Act, AuditFilter, Office
from shared.sealing import Sealing
from shared.settings import Settings
from tests.conftest import ROOT
from tests.integration.command import Run, refused

NUMBER = ("--phone-number-id", "1001", "--stdin")


async def test_users_keys_and_senders(settings: Settings, archive: Archive, run: Run) -> None:
    user_id = await run("user", "add", "A@example.com", "--stdin", stdin="hush " * 4)
    row = await archive.user_by_email("a@example.com")
    assert row is not None
    assert row.id == user_id.strip()
    assert await passwords.verify_password(row.password_hash, "hush " * 4)
    why = await refused(run, "user", "add", "b@example.com", "--stdin", stdin="short")
    assert "12 to 128" in why
    await refused(run, "user", "add", "a@example.com", "--stdin", stdin="hush " * 4)
    await run("user", "passwd", "a@example.com", "--stdin", stdin="other words now")
    row = await archive.user_by_email("a@example.com")
    assert row is not None
    assert await passwords.verify_password(row.password_hash, "other words now")

    text = (await run("key", "create", "a@example.com", "--days", "1")).strip()
    match = re.fullmatch(r"drb_([0-9a-z]{10})_[0-9A-Za-z]{43}", text)
    assert match is not None
    key = await archive.key_by_id(match[1])
    assert key is not None
    assert key.sha256 == sha256(text.encode()).digest()
    assert key.scopes == ["read", "send"]
    listed = msgspec.json.decode(await run("key", "list", "--json"))
    assert listed[0]["ends_with"] == text[-4:]
    await run("key", "revoke", match[1])
    await refused(run, "key", "create", "a@example.com", "--scope", "admin")

    await run("sender", "add", "main", *NUMBER, stdin="EAAG-token\n")
    await run("sender", "rate", "main", "12.5")
    sender = await archive.default_sender()
    assert sender is not None
    assert (sender.name, sender.rate) == ("main", 12.5)
    assert Sealing(settings.bulk_secret_key).open(sender.token_sealed) == "EAAG-token"
    await run("sender", "rate", "main", "default")
    await run("sender", "pause", "main")
    await run("sender", "token", "main", "--stdin", stdin="another")
    sender = await archive.default_sender()
    assert sender is not None
    assert (sender.rate, sender.state, sender.why) == (None, "paused", "operator")
    assert Sealing(settings.bulk_secret_key).open(sender.token_sealed) == "another"
    shown = await run("sender", "list")
    assert "main" in shown
    assert "another" not in shown
    await refused(run, "sender", "rate", "nobody", "1")
    await refused(run, "sender", "rate", "main", "-1")


async def test_each_act_of_an_operator_is_one_line_of_the_audit_log(
    archive: Archive, run: Run
) -> None:
    user_id = (await run("user", "add", "a@example.com", "--stdin", stdin="hush " * 4)).strip()
    await run("user", "passwd", "a@example.com", "--stdin", stdin="other words now")
    key = (await run("key", "create", "a@example.com")).strip()[4:14]
    await run("key", "revoke", key)
    sender = (await run("sender", "add", "main", *NUMBER, stdin="EAAG-token")).strip()
    await run("sender", "add", "main", *NUMBER, stdin="EAAG-other")
    await run("sender", "rate", "main", "12.5")
    await run("sender", "token", "main", "--stdin", stdin="another")
    await run("sender", "pause", "main", "--reason", "number review")
    await run("sender", "resume", "main")
    log = await Office(archive._pool).audit(AuditFilter(actor="cli"), 0, 99)
    shown = next(row.object for row in log if row.action == "key.add")
    assert shown.startswith("key_")
    assert shown.endswith(key)
    assert [(row.action, row.object, row.reason) for row in reversed(log)] == [
        ("user.add", user_id, ""), ("user.password", user_id, ""),
        ("key.add", shown, ""), ("key.revoke", shown, ""),
        ("sender.add", sender, ""), ("sender.change", sender, ""), ("sender.rate", sender, ""),
        ("sender.token", sender, ""), ("sender.pause", sender, "number review"),
        ("sender.resume", sender, ""),
    ]  # fmt: skip


async def test_an_act_that_cannot_be_written_down_is_not_done(
    archive: Archive, run: Run, settings: Settings
) -> None:
    await run("sender", "add", "main", *NUMBER, stdin="EAAG-token")
    table = f"{settings.database_schema}.audit_log"
    await archive._pool.execute(
        f"ALTER TABLE {table} ADD CONSTRAINT full_up CHECK (false) NOT VALID"
    )
    try:
        with pytest.raises(ArchiveError):
            await run("user", "add", "a@example.com", "--stdin", stdin="hush " * 4)
        with pytest.raises(ArchiveError):
            await run("sender", "rate", "main", "7")
        with pytest.raises(ArchiveError):
            await run("sender", "pause", "main")
    finally:
        await archive._pool.execute(f"ALTER TABLE {table} DROP CONSTRAINT full_up")
    assert await archive.user_by_email("a@example.com") is None
    sender = await archive.default_sender()
    assert sender is not None
    assert (sender.rate, sender.state) == (None, "active")


async def test_a_key_is_revoked_by_either_of_its_ids_and_ends_when_it_is_told_to(
    archive: Archive, run: Run
) -> None:
    await run("user", "add", "a@example.com", "--stdin", stdin="hush " * 4)
    for days in ("-1", "40000"):
        assert "--days" in await refused(run, "key", "create", "a@example.com", "--days", days)
    assert await archive.list_keys(None) == []
    key = (await run("key", "create", "a@example.com", "--days", "1")).strip()[4:14]
    made = await archive.key_by_id(key)
    assert made is not None
    assert made.expires_at_ms > 0
    await refused(run, "key", "revoke", f"key_{'0' * 16}{key}")
    await run("key", "revoke", shown_id(key))
    revoked = await archive.key_by_id(key)
    assert revoked is not None
    assert revoked.revoked
    await refused(run, "key", "revoke", key)


async def test_what_is_left_out_of_a_second_sender_add_stays(archive: Archive, run: Run) -> None:
    named = ("--number", "+393331234567", "--rate", "20", "--burst", "3", "--waba-id", "77")
    await run("sender", "add", "main", *NUMBER, *named, stdin="EAAG-token")
    await run("sender", "add", "main", *NUMBER, "--rate", "30", stdin="EAAG-other")
    row = await archive.sender_by_name_or_id("main")
    assert row is not None
    assert (row.rate, row.burst, row.waba_id, row.number) == (30, 3, "77", "+393331234567")
    await run("sender", "add", "main", "--phone-number-id", "2", "--stdin", stdin="EAAG-other")
    row = await archive.sender_by_name_or_id("main")
    assert row is not None
    assert (row.phone_number_id, row.number, row.is_default) == ("2", "", True)


@pytest.mark.parametrize(
    ("words", "token", "named"),
    [
        (("Main", *NUMBER), "x", "name"),
        (("a" * 33, *NUMBER), "x", "name"),
        (("main", "--phone-number-id", "1/../2", "--stdin"), "x", "phone_number_id"),
        (("main", *NUMBER), "a b", "access_token"),
        (("main", *NUMBER), "EAAG\nX-Evil: 1", "access_token"),
        (("main", *NUMBER), "\ufeffEAAG", "access_token"),
        (("main", *NUMBER, "--rate", "1001"), "x", "rate"),
        (("main", *NUMBER, "--rate", "10", "--burst", "11"), "x", "burst"),
        (("main", *NUMBER, "--graph-version", "22"), "x", "graph_api_version"),
        (("main", *NUMBER, "--number", "0039333"), "x", "number"),
        (("main", *NUMBER, "--shard", "9"), "x", "--shard"),
    ],
)
async def test_a_sender_is_refused_by_the_field_and_without_the_value(
    archive: Archive, run: Run, words: tuple[str, ...], token: str, named: str
) -> None:
    why = await refused(run, "sender", "add", *words, stdin=token)
    assert named in why
    assert "EAAG" not in why
    assert await archive.senders() == []


async def test_a_file_that_is_none_is_wrong_usage_and_no_fault_of_ours(
    environ: dict[str, str], tmp_path: Path
) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"\xff\xfesecret")
    env = {**environ, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    for words in (
        ("user", "add", "a@example.com", "--file"), ("suppress", "import"),
        ("sender", "add", "main", "--phone-number-id", "1", "--file"),
    ):  # fmt: skip
        for file in (tmp_path / "absent", odd):
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "api.cli", *words, str(file), env=env,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            _, said = await child.communicate()
            assert child.returncode == 2, said
            assert str(file) in said.decode()
            assert b"secret" not in said


async def test_a_new_sender_goes_to_the_emptiest_shard(archive: Archive) -> None:
    office, ids = Office(archive._pool), Ids()
    for name, shard in (("a", None), ("b", None), ("c", 1), ("d", None)):
        row = SenderRow(ids.object_id("snd"), name, "1", b"x")
        await office.add_sender(Act("cli", "sender.add", row.id), row, 3, shard)
    assert {row.name: row.shard for row in await archive.senders()} == {
        "a": 0, "b": 1, "c": 1, "d": 2,
    }  # fmt: skip
