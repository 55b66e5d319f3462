"""Seal and open senders' tokens (AES-GCM, key id in front), and derive keys for other purposes."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.errors import SealError, SettingsError
from shared.settings import Secret

_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = _ID_BYTES + _NONCE_BYTES


class Sealing:
    """Keeps secrets unreadable at rest; keys can be changed without a stop.

    A sealed text is 4 bytes of key id, 12 of nonce, then AES-256-GCM's bytes with the tag.

    Args:
        keys: BULK_SECRET_KEY; the first seals, all open.

    >>> sealing = Sealing((Secret("k" * 32),))
    >>> sealing.open(sealing.seal("token"))
    'token'
    """

    def __init__(self, keys: tuple[Secret, ...]) -> None:
        """Derive one AES key from each.

        Raises:
            SettingsError: there is none.
        """
        if not keys:
            raise SettingsError(
                "BULK_SECRET_KEY is needed, 32 bytes or more: `openssl rand -hex 32`"
            )
        self._first, self._older = keys[0], keys[1:]
        made = [_derive(key, "sealing") for key in keys]
        self._first_id = _id_of(made[0])
        self._by_id = {_id_of(key): AESGCM(key) for key in reversed(made)}

    def seal(self, text: str) -> bytes:
        """Return `text` sealed with the first key."""
        # Not from Ids: a nonce that a seeded test could repeat would give the key away.
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._by_id[self._first_id].encrypt(nonce, text.encode(), self._first_id)
        return self._first_id + nonce + sealed

    def open(self, sealed: bytes) -> str:
        """Return the text that `seal` was given.

        Raises:
            SealError: no key fits, or the bytes were changed.
        """
        key_id, nonce = sealed[:_ID_BYTES], sealed[_ID_BYTES:_HEAD_BYTES]
        cipher = self._by_id.get(key_id)
        if cipher is None:
            raise SealError("sealed with a key that is not in BULK_SECRET_KEY")
        try:
            return cipher.decrypt(nonce, sealed[_HEAD_BYTES:], key_id).decode()
        except (InvalidTag, ValueError) as error:
            raise SealError("the sealed bytes were changed") from error

    def derive(self, purpose: str) -> bytes:
        """Return 32 bytes from the first key, for one purpose such as `opaque`."""
        return _derive(self._first, purpose)

    def derive_older(self, purpose: str) -> tuple[bytes, ...]:
        """Return what `derive` gave while each of the other keys was the first."""
        return tuple(_derive(key, purpose) for key in self._older)


def _derive(key: Secret, purpose: str) -> bytes:
    info = f"drumbeat {purpose}".encode()
    return HKDF(SHA256(), 32, salt=None, info=info).derive(key.reveal().encode())


def _id_of(key: bytes) -> bytes:
    return sha256(b"id" + key).digest()[:_ID_BYTES]
