"""Numbers: strict by default, normalised only on request, possible by our own table."""

from __future__ import annotations

import random

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.phone import PossibleLengths, e164, is_in, is_valid, mask, normalise, why_not

LENGTHS = PossibleLengths()


@pytest.mark.parametrize(
    ("phone", "allowed", "expected"),
    [
        (393331234567, "IT", True),
        (393331234567, "DE AT", False),
        (14165550123, "US", False),
        (14165550123, "CA", True),
        (15550000001, "US", True),  # assigned to nobody: the code's main region counts
        (15550000001, "CA", False),
        (447781123456, "GG", True),
        (999123456789, "DE", False),
        (882_1312_3456, "DE", False),  # no country's code at all
    ],
)
def test_a_number_belongs_to_its_region(phone: int, allowed: str, *, expected: bool) -> None:
    assert is_in(phone, frozenset(allowed.split())) is expected


@given(st.integers(1_000_000, 999_999_999_999_999), st.sets(st.sampled_from(["US", "CA", "DE"])))
def test_any_number_is_in_a_region_or_not(phone: int, allowed: set[str]) -> None:
    assert is_in(phone, frozenset(allowed)) in {True, False}


@given(st.integers(1_000_000, 999_999_999_999_999))
def test_every_e164_number_is_read(number: int) -> None:
    assert e164(f"+{number}") == number


@pytest.mark.parametrize(
    "text",
    ["", "+", "+1", "15550000001", "+0155500001", "+123456", "+1234567890123456", "+15550000001\n",
     " +15550000001", "+1555000000\u0661", "+\uff11\uff15\uff15\uff15\uff10\uff10\uff10\uff10",
     "+1_555_000", "+1555-000-0001", "++15550000001"],
)  # fmt: skip
def test_nothing_else_is(text: str) -> None:
    assert e164(text) == 0
    code, _ = why_not(text)
    assert code in {"bad_format", "no_country_code"}


@pytest.mark.parametrize(
    "text",
    ["+15550000001\n", " +15550000001", "\u00a0+15550000001", "+1555\u200b0000001",
     "\u200f+15550000001", "+1 (555) 000-0001", "tel:+1-555-000-0001", "555.000.0001",
     "1 555 000 0001", "+1/555/0000001"],
)  # fmt: skip
def test_a_region_reads_what_people_write(text: str) -> None:
    assert normalise(text, "US") == 15550000001


def test_prefixes_are_the_regions_own() -> None:
    assert normalise("0151 23456789", "DE") == 4915123456789
    assert normalise("0044 20 7946 0958", "DE") == 442079460958
    assert normalise("+521 55 1234 5678", "US") == 525512345678
    assert normalise("+549 11 2345 6789", "US") == 5491123456789


@pytest.mark.parametrize("text", ["+1-800-FLOWERS", "whatsapp:+15550000001", "ext 5", "", "x" * 99])
def test_a_letter_is_never_a_digit(text: str) -> None:
    assert normalise(text, "US") == 0


def test_the_table_says_what_the_library_says() -> None:
    draw = random.Random(7)  # noqa: S311 - numbers to try, no secret
    codes = list(phonenumbers.COUNTRY_CODE_TO_REGION_CODE)
    for _ in range(3000):
        code = draw.choice(codes)
        rest = "".join(
            draw.choice("123456789") for _ in range(draw.randint(3, 14 - len(str(code))))
        )
        number = phonenumbers.PhoneNumber(country_code=code, national_number=int(rest))
        full = int(f"{code}{rest}")
        if full < 10**6:
            continue
        assert (full in LENGTHS) == phonenumbers.is_possible_number(number), full


def test_the_guides_numbers() -> None:
    assert 15550000001 in LENGTHS
    assert 1234567890 not in LENGTHS
    assert not is_valid(15550000001)
    assert is_valid(16502530000)


def test_a_masked_number_shows_four_digits() -> None:
    assert mask("+15550000001") == "+•••0001"
    assert mask(1234567) == "+•••"
