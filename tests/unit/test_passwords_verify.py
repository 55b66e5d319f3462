"""Passwords are hashed with the stated profile, and an unknown user costs what a known one does."""

from __future__ import annotations

import asyncio

import pytest

from api import passwords
from shared.errors import TooManyError


async def test_only_the_right_password_fits() -> None:
    hashed = await passwords.hash_password("correct horse battery")
    assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.verify_password(hashed, "correct horse battery")
    assert not await passwords.verify_password(hashed, "correct horse batterz")
    assert not passwords.needs_rehash(hashed)


async def test_one_letter_written_in_two_ways_is_one_letter() -> None:
    hashed = await passwords.hash_password("cafe\u0301 au lait")
    assert await passwords.verify_password(hashed, "caf\u00e9 au lait")


@pytest.mark.parametrize("hashed", [None, "", "not a hash"])
async def test_no_such_user_is_no(hashed: str | None) -> None:
    assert not await passwords.verify_password(hashed, "anything")


async def test_the_dummy_is_a_hash_that_is_really_computed() -> None:
    assert not passwords.needs_rehash(passwords._DUMMY)
    assert not passwords._check(passwords._DUMMY, "")


async def test_a_crowd_is_turned_away_and_the_next_one_is_not() -> None:
    tries = [passwords.verify_password(None, "x") for _ in range(60)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(r, TooManyError) for r in results) == 10
    assert not await passwords.verify_password(None, "x")
