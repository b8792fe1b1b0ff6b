"""What an archive says of itself, signed. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from audit.archive.month import Month, read_month
from audit.report import AuditError
from services.payment.trail.checkpoint import key_id_of

FORMAT = "paymesh archive 1"


class Manifest(NamedTuple):
    """The list of an archive."""

    month: str
    payments: int
    events: int
    entries: int
    checkpoints: list[int]
    """Numbers of those that sealed its events, ascending."""
    files: dict[str, str]
    """SHA-256 of every file, in hexadecimal, by its path in the archive."""
    exported_ms: int
    key_id: str
    """Of the key that it is signed with."""
    signature: str = ""

    @property
    def of(self) -> Month:
        """The month it is about."""
        return read_month(self.month)

    def text(self) -> bytes:
        """As it stands in its file."""
        return orjson.dumps({"format": FORMAT, **self._asdict()}, option=orjson.OPT_INDENT_2) + b"\n"

    def _signed(self) -> bytes:
        return orjson.dumps({"format": FORMAT, **self._replace(signature="")._asdict()})

    def sign(self, key: Ed25519PrivateKey) -> Manifest:
        """The same, signed."""
        named = self._replace(key_id=key_id_of(key.public_key()))
        return named._replace(signature=base64.b64encode(key.sign(named._signed())).decode())

    def faults(self, keys: Mapping[str, Ed25519PublicKey]) -> Iterable[str]:
        """What is wrong with its signature, as rest of sentences."""
        key = keys.get(self.key_id)
        if key is None:
            yield f"is signed with the key {self.key_id}, which is none of those that were given"
            return
        try:
            key.verify(base64.b64decode(self.signature), self._signed())
        except (InvalidSignature, ValueError):
            yield "has a signature that is wrong: it was changed, or was never signed by that key"


def read_manifest(text: bytes, where: str) -> Manifest:
    """From its file. Says nothing about whether it is true. Raises AuditError."""
    try:
        told: Any = orjson.loads(text)
        if told.pop("format") != FORMAT:
            raise AuditError(f"{where} is the list of no {FORMAT}")
        return Manifest(**told)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AuditError(f"{where} cannot be read: {error}") from error
