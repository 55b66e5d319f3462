"""E.164: check, normalise, mask. Pure.

A number is kept as an integer without `+`; on the wire it always has the `+` (pitfalls N5).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

import phonenumbers
from phonenumbers import PhoneMetadata

DIGITS_MIN: Final = 7
DIGITS_MAX: Final = 15
_MASKED_TAIL: Final = 4
# What people write around digits; every other sign is refused, never read as a digit.
_DECORATION: Final = re.compile(
    "[\\s()./\u00a0\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\u2010-\u2015-]"
)
_PLAIN: Final = re.compile(r"\A\+?[0-9]{1,30}\Z")
_TEL: Final = "tel:"
# Mexico dropped the 1 after its calling code in 2019; Argentina's 9 is right (pitfalls N4).
_OLD_MEXICO: Final = re.compile(r"\A\+521([0-9]{10})\Z")


def e164(text: str) -> int:
    r"""Return a strict E.164 number (`\A\+[1-9][0-9]{6,14}\Z`) as an integer, 0 for all else.

    No pattern: 50,000 numbers are looked at in one request (pitfalls M9).

    >>> e164("+15550000001"), e164("+15550000001\n"), e164("+0123456789")
    (15550000001, 0, 0)
    """
    digits = text[1:]
    if (
        text[:1] == "+"
        and DIGITS_MIN <= len(digits) <= DIGITS_MAX
        and digits.isascii()
        and digits.isdigit()
        and digits[0] != "0"
    ):
        return int(digits)
    return 0


def why_not(text: str) -> tuple[str, str]:
    """Return the code and sentence of why `text` is not E.164; never echoes it."""
    if len(text) <= 64:  # noqa: PLR2004 - longer ones are not looked at at all
        bare = _DECORATION.sub("", text)
        if bare[:1] != "+" and bare.isascii() and bare.isdigit():
            return "no_country_code", "no leading +, no default_region"
        if bare == text and text[:1] == "+":
            digits = text[1:]
            if not digits or not (digits.isascii() and digits.isdigit()):
                return "bad_format", "only digits may follow the +"
            if digits[0] == "0":
                return "bad_format", "no country's code begins with 0"
            few = len(digits) < DIGITS_MIN
            return "bad_format", "fewer than 7 digits" if few else "more than 15 digits"
    return "bad_format", "not E.164, such as +15550000001"


def regions() -> frozenset[str]:
    """Return the regions that `normalise` knows, ISO 3166 alpha-2."""
    return frozenset(phonenumbers.SUPPORTED_REGIONS)


def normalise(text: str, region: str) -> int:
    """Return the number that `text` means when dialled in `region`, 0 when there is none.

    Taken: a strict number as it is; else digits with punctuation, spaces, direction marks,
    `tel:` and the region's own prefixes, if the library finds the result possible. Costs about
    20 µs (pitfalls N3).

    >>> normalise("(555) 000-0001", "US")
    15550000001
    """
    if len(text) > 64:  # noqa: PLR2004 - longer than any spelling of 15 digits
        return 0
    bare = _DECORATION.sub("", text)
    if bare[:4].lower() == _TEL:
        bare = bare[4:]
    old = _OLD_MEXICO.match(bare)
    if old is not None:
        return int("52" + old[1])
    strict = e164(bare)
    if strict:
        return strict
    if not _PLAIN.match(bare):
        return 0
    try:
        number = phonenumbers.parse(bare, region)
    except phonenumbers.NumberParseException:
        return 0
    if not phonenumbers.is_possible_number(number):
        return 0
    return e164(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


def is_valid(phone: int) -> bool:
    """Tell whether the library finds the number assigned; about 20 µs."""
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(f"+{phone}"))
    except phonenumbers.NumberParseException:
        return False


class PossibleLengths:
    """Which lengths are possible behind each calling code: 0.3 µs a number instead of 15.

    Built from the library's metadata; takes some tenths of a second once a process.
    """

    def __init__(self) -> None:
        """Read the metadata of each calling code's main region."""
        self._lengths: dict[str, frozenset[int]] = {}
        for code, names in phonenumbers.COUNTRY_CODE_TO_REGION_CODE.items():
            meta = (
                PhoneMetadata.metadata_for_nongeo_region(code, None)
                if names[0] == "001"
                else PhoneMetadata.metadata_for_region(names[0], None)
            )
            if meta is None or meta.general_desc is None:
                continue
            desc = meta.general_desc
            self._lengths[str(code)] = frozenset(
                (*desc.possible_length, *desc.possible_length_local_only)
            )

    def __contains__(self, phone: int) -> bool:
        """Tell whether `phone` has a length that its country uses.

        >>> 15550000001 in PossibleLengths(), 1234567890 in PossibleLengths()
        (True, False)
        """
        digits = str(phone)
        lengths = self._lengths
        for width in (1, 2, 3):
            found = lengths.get(digits[:width])
            if found is not None:
                return len(digits) - width in found
        return False


def is_in(phone: int, allowed: frozenset[str]) -> bool:
    """Tell whether a number belongs to one of these regions, ISO 3166 alpha-2.

    Where regions share a calling code the number decides; one that is not assigned counts for
    the code's main region. Costs 1 µs, about 20 where only some of a code's regions are allowed.

    >>> is_in(15550000001, frozenset({"US"})), is_in(15550000001, frozenset({"CA", "IT"}))
    (True, False)
    """
    digits = str(phone)
    for width in (1, 2, 3):
        names = phonenumbers.COUNTRY_CODE_TO_REGION_CODE.get(int(digits[:width]))
        if names is None:
            continue
        shared = allowed.intersection(names)
        if not shared or len(shared) == len(names):
            return bool(shared)
        number = phonenumbers.parse(f"+{phone}")
        return (phonenumbers.region_code_for_number(number) or names[0]) in allowed
    return False


def home_of(phone: int) -> str | None:
    """Return the main region of a number's calling code, ISO 3166; None where there is none.

    >>> home_of(15550000001), home_of(4915112345678)
    ('US', 'DE')
    """
    try:
        code = phonenumbers.parse(f"+{phone}").country_code or 0
    except phonenumbers.NumberParseException:
        return None
    region = phonenumbers.region_code_for_country_code(code)
    return region if region in regions() else None


def mark(phone: int, secret: bytes) -> str:
    """Return what stands for a number where no number may: a keyed hash, the same for the same.

    >>> mark(15550000001, b"k")
    'p_86c202f1'
    """
    return f"p_{hmac.new(secret, str(phone).encode(), hashlib.sha256).hexdigest()[:8]}"


def mask(phone: int | str) -> str:
    """Return a number as it may be shown to those who need not know it.

    >>> mask(15550000001)
    '+•••0001'
    """
    digits = str(phone).lstrip("+")
    return f"+•••{digits[-_MASKED_TAIL:]}" if len(digits) > DIGITS_MIN else "+•••"
