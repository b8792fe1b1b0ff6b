"""A checkpoint: events of all payments, sealed. Pure.

A checkpoint is lines of JSON. The first, its header, says what is sealed and is signed; each of the others is an entry,
one event: merchant, payment, version, when it was recorded and its hash in the chain. The header has the root of the
tree over the entries, and the hash of the header before it, so that checkpoints are a chain themselves.

The entries stand in the checkpoint because a root alone can tell that something is wrong and never what: with them,
an event that is gone without a trace from the database can still be named.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.payment.trail.merkle import leaf_hash, root_of

FORMAT = "paymesh checkpoint 1"
ENTRIES_MAX = 20_000
"""Entries of one checkpoint: 3 MB, a tenth of a second of work, and some 40 MB of memory while it is made."""


class NoCheckpoint(Exception):
    """These bytes are no checkpoint; the text says why, as the rest of a sentence."""


class Entry(NamedTuple):
    """One event as it is sealed. Entries sort as they are sealed: by time, then by key."""

    recorded_us: int
    """When it was recorded, in microseconds since 1970."""
    merchant_id: str
    payment_id: str
    version: int
    hash_hex: str
    """Its hash in the chain of its payment."""

    def line(self) -> bytes:
        """As it stands in the checkpoint and is hashed into the tree."""
        return orjson.dumps(tuple(self))


class Header(NamedTuple):
    """The first line of a checkpoint."""

    number: int
    """From 1, without a gap."""
    previous: str
    """Hash of the header before it, signature and all, in hexadecimal; empty for the first."""
    events: int
    root: str
    """Of the tree over the entries, in hexadecimal."""
    since_us: int
    """When the oldest of its events was recorded."""
    through: tuple[int, str, str, int]
    """The newest event that is sealed in this checkpoint or in one before it: time, merchant, payment, version."""
    sealed_ms: int
    key_id: str
    """Of the key that it is signed with."""
    signature: bytes = b""

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return orjson.dumps({"format": FORMAT, **self._asdict(), "signature": None})

    def line(self) -> bytes:
        """As it stands in the checkpoint."""
        signature = base64.b64encode(self.signature).decode()
        return orjson.dumps({"format": FORMAT, **self._asdict(), "signature": signature})

    def hash_hex(self) -> str:
        """What the next header names as `previous`."""
        return sha256(self.line()).hexdigest()


def make(
    entries: Sequence[Entry], before: Header | None, sealed_ms: int, key: Ed25519PrivateKey
) -> tuple[Header, list[bytes]]:
    """Seal entries, sorted and at least one, behind a checkpoint. Returns the header and the entries' lines."""
    lines = [entry.line() for entry in entries]
    newest = entries[-1]
    through = (newest.recorded_us, newest.merchant_id, newest.payment_id, newest.version)
    header = Header(
        number=before.number + 1 if before else 1,
        previous=before.hash_hex() if before else "",
        events=len(lines),
        root=root_of([leaf_hash(line) for line in lines]).hex(),
        since_us=entries[0].recorded_us,
        # Entries that came late may all be older than what was sealed before.
        through=max(through, before.through) if before else through,
        sealed_ms=sealed_ms,
        key_id=key_id_of(key.public_key()),
    )
    return header._replace(signature=key.sign(header.signed_bytes())), lines


def read_header(line: bytes) -> Header:
    """The header in a line. Says nothing about whether it is true. Raises NoCheckpoint."""
    try:
        told = orjson.loads(line)
        if not isinstance(told, dict) or told.pop("format", None) != FORMAT:
            raise NoCheckpoint(f"does not begin with the header of a {FORMAT}")
        told["signature"] = base64.b64decode(told["signature"], validate=True)
        told["through"] = tuple(told["through"])
        header = Header(**told)
        if header.line() != line:
            raise NoCheckpoint("has a header that was not written by paymesh")
    except (ValueError, TypeError, KeyError) as error:
        raise NoCheckpoint(f"has a header that cannot be read: {error}") from error
    return header


def read_entry(line: bytes) -> Entry:
    """The entry in a line. Raises NoCheckpoint."""
    try:
        return Entry(*orjson.loads(line))
    except (ValueError, TypeError) as error:
        raise NoCheckpoint(f"has a line that is no entry: {error}") from error


def faults_of(header: Header, before: Header | None, keys: Mapping[str, Ed25519PublicKey]) -> Iterable[str]:
    """What is wrong with a header, as rest of sentences. `before` is the one before it; None for the first, and for one
    whose neighbour is not known."""
    key = keys.get(header.key_id)
    if key is None:
        yield f"is signed with the key {header.key_id}, which is none of those that were given"
    else:
        try:
            key.verify(header.signature, header.signed_bytes())
        except InvalidSignature:
            yield "has a signature that is wrong: its header was changed, or was never signed by that key"
    if before is not None and header.previous != before.hash_hex():
        yield f"is not chained to checkpoint {before.number} as it stands"
    if before is None and header.number == 1 and header.previous:
        yield "is the first and says that there was one before it"


def key_id_of(key: Ed25519PublicKey) -> str:
    """Short name of a key."""
    return sha256(_raw(key)).hexdigest()[:16]


def read_private_key(pem: bytes) -> Ed25519PrivateKey:
    """The key to sign with. Raises ValueError."""
    key: Any = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("is not an Ed25519 key")  # noqa: TRY004 - a wrong file, no wrong type
    return key


def read_public_key(pem: bytes) -> Ed25519PublicKey:
    """The key to verify with, from a public or a private key's PEM. Raises ValueError."""
    if b"PRIVATE KEY" in pem:
        return read_private_key(pem).public_key()
    key: Any = serialization.load_pem_public_key(pem)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("is not an Ed25519 key")  # noqa: TRY004 - a wrong file, no wrong type
    return key


def new_private_key() -> bytes:
    """A new key to sign with, as PEM."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: Ed25519PublicKey) -> bytes:
    """The public key as PEM, to be kept by whoever verifies."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
