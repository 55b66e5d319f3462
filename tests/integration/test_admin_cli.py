"""An operator's verbs on a real database; secrets come from standard input alone."""

from __future__ import annotations

import re
from hashlib import sha256

import msgspec

from api import passwords
from shared.archive import Archive
from shared.sealing import Sealing
from shared.settings import Settings
from tests.integration.command import Run, refused


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

    words = ("--phone-number-id", "1001", "--stdin")
    await run("sender", "add", "main", *words, stdin="EAAG-token\n")
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
