"""API keys of merchants, and the idempotency keys that they send.

An API key is `pmk.<merchant>.<secret>`: the secret has 256 random bits, so a fast keyed hash is all that has to be
kept of it. The merchant's name stands in the key because it leads every key of the database; it proves nothing.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum

from services.kit.checks import KEY_LENGTH_MAX

PREFIX = "pmk"
SECRET_BYTES = 32
HASH_BYTES = 32
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a merchant may be called: it travels in a header, between dots."""
_KEY_PATTERN = re.compile(rf"{PREFIX}\.([A-Za-z0-9_-]{{1,64}})\.[A-Za-z0-9_-]{{43}}")


class Access(StrEnum):
    """What a key is good for."""

    FULL = "full"
    READ = "read"
    """Looks, and changes nothing."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Who a key belongs to, and what it is good for."""

    merchant_id: str
    key_id: str
    access: Access
    valid_until_ms: int | None = None
    """From then on the key is good for nothing; None as long as nobody has said so."""

    def valid_at(self, at_ms: int) -> bool:
        """Whether the key is good at an instant."""
        return self.valid_until_ms is None or at_ms < self.valid_until_ms


def new_api_key(merchant_id: str) -> str:
    """A key that nobody can guess. It is shown once and never kept."""
    return f"{PREFIX}.{merchant_id}.{secrets.token_urlsafe(SECRET_BYTES)}"


def merchant_in(api_key: str) -> str | None:
    """The merchant that a key says it belongs to; None for what has not the form of a key."""
    found = _KEY_PATTERN.fullmatch(api_key)
    return found[1] if found else None


def hash_of(api_key: str, key_secret: str) -> bytes:
    """What is kept of a key. Without `key_secret`, which is not in the database, a hash cannot even be tried."""
    keyed = hashlib.blake2b(key_secret.encode(), digest_size=HASH_BYTES, person=b"paymesh-keys").digest()
    return hashlib.blake2b(api_key.encode(), key=keyed, digest_size=HASH_BYTES).digest()


def bearer(header: str) -> str | None:
    """The token of an Authorization header; None when it holds none."""
    scheme, _, token = header.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def idempotency_key(header: str) -> str | None:
    """The key in an Idempotency-Key header, a quoted string of RFC 8941 or bare: `"a"` and `a` are the same key. None
    when it is no key: 1 to 255 printable ASCII characters, without a space at either end."""
    value = header.strip(" \t")
    if len(value) >= 2 and value[0] == value[-1] == '"':
        inner = value[1:-1]
        if re.search(r'(?<!\\)(?:\\\\)*"', inner) or re.search(r'(?<!\\)(?:\\\\)*\\(?![\\"])', inner):
            return None
        value = re.sub(r'\\([\\"])', r"\1", inner)
    if not 1 <= len(value) <= KEY_LENGTH_MAX or not all(" " <= c <= "~" for c in value):
        return None
    return value if value == value.strip() else None


def order_of_key(key: str) -> str:
    """The order that a payment without one is for: made from its key, so that a repeat is the same request."""
    return f"key_{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}"
