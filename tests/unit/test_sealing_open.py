"""What is sealed opens with every key of the list, and with nothing else."""

from __future__ import annotations

import pytest

from shared.errors import SealError, SettingsError
from shared.sealing import Sealing
from shared.settings import Secret

OLD, NEW = Secret("o" * 32), Secret("n" * 32)


def test_a_sealed_text_opens_and_never_looks_the_same_twice() -> None:
    sealing = Sealing((NEW,))
    assert sealing.seal("token") != sealing.seal("token")
    assert sealing.open(sealing.seal("tökén")) == "tökén"
    assert b"token" not in sealing.seal("token")


def test_the_first_key_seals_and_all_open() -> None:
    before = Sealing((OLD,)).seal("token")
    both = Sealing((NEW, OLD))
    assert both.open(before) == "token"
    assert Sealing((NEW,)).open(both.seal("token")) == "token"


@pytest.mark.parametrize("broken", [b"", b"abc", b"\0" * 40])
def test_what_was_never_sealed_does_not_open(broken: bytes) -> None:
    with pytest.raises(SealError):
        Sealing((NEW,)).open(broken)


def test_another_key_and_every_changed_byte_are_noticed() -> None:
    sealed = Sealing((OLD,)).seal("token")
    with pytest.raises(SealError):
        Sealing((NEW,)).open(sealed)
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(SealError):
            Sealing((OLD,)).open(bytes(changed))
    for length in range(len(sealed)):
        with pytest.raises(SealError):
            Sealing((OLD,)).open(sealed[:length])


def test_no_keys_is_said_at_once() -> None:
    with pytest.raises(SettingsError, match="BULK_SECRET_KEY"):
        Sealing(())


def test_derived_keys_differ_by_purpose_and_by_key_and_last() -> None:
    sealing = Sealing((NEW, OLD))
    assert sealing.derive("opaque") == Sealing((NEW,)).derive("opaque")
    assert len(sealing.derive("opaque")) == 32
    assert (
        len({sealing.derive("opaque"), sealing.derive("cursor"), Sealing((OLD,)).derive("opaque")})
        == 3
    )
