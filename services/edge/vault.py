"""Seals card numbers, and the secrets of webhooks: AES-256-GCM, in an envelope.

Every text has a data key of its own, and that is sealed with the vault's key, whose id stands beside it. So the vault's
key can be replaced without touching a text, and a text that was copied into another row, or to another merchant, does
not open there: the merchant, and the card or secret whose text it is, are authenticated with it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.kit.errors import Bug

KEY_BYTES = 32
NONCE_BYTES = 12
"""What AES-GCM is specified for. A data key seals once, the vault's key so seldom that random ones do not repeat."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A text that nobody can read."""

    text: bytes
    """Nonce and ciphertext, under the data key."""
    key: bytes
    """Nonce and ciphertext of the data key, under the vault's key."""
    vault_key_id: str


class Vault:
    """Seals with the current key, opens with any that it was given. Secrets are texts of 32 characters or more."""

    def __init__(self, secret: str, old_secrets: tuple[str, ...] = ()) -> None:
        self._keys = {_id_of(key): AESGCM(key) for key in (_key_of(s) for s in (*old_secrets, secret))}
        self._current = _id_of(_key_of(secret))

    def seal(self, text: str, merchant_id: str, owner_id: str) -> Sealed:
        """Seal the text of a card (card_…) or of a secret (whs_…)."""
        bound_to = f"{merchant_id}\0{owner_id}".encode()
        data_key = AESGCM.generate_key(8 * KEY_BYTES)
        return Sealed(
            _seal(AESGCM(data_key), text.encode(), bound_to),
            _seal(self._keys[self._current], data_key, bound_to),
            self._current,
        )

    def open(self, sealed: Sealed, merchant_id: str, owner_id: str) -> str:
        """The text. Raises Bug when it was not sealed for this owner, or by no key that is known here."""
        bound_to = f"{merchant_id}\0{owner_id}".encode()
        vault_key = self._keys.get(sealed.vault_key_id)
        if vault_key is None:
            raise Bug("VAULT_KEY_UNKNOWN", f"{owner_id} was sealed with the vault key {sealed.vault_key_id}")
        try:
            data_key = _open(vault_key, sealed.key, bound_to)
            return _open(AESGCM(data_key), sealed.text, bound_to).decode()
        except InvalidTag:
            raise Bug("VAULT_BROKEN", f"{owner_id} does not open: it was changed or moved") from None


def _key_of(secret: str) -> bytes:
    return hashlib.blake2b(secret.encode(), digest_size=KEY_BYTES, person=b"paymesh-vault").digest()


def _id_of(key: bytes) -> str:
    """Names a key without telling it."""
    return hashlib.blake2b(key, digest_size=6, person=b"paymesh-vaultid").hexdigest()


def _seal(key: AESGCM, text: bytes, bound_to: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + key.encrypt(nonce, text, bound_to)


def _open(key: AESGCM, sealed: bytes, bound_to: bytes) -> bytes:
    return key.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound_to)
