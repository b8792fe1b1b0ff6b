"""The chain of a payment's events. Pure."""

from __future__ import annotations

from hashlib import sha256

GENESIS = sha256(b"paymesh payment events 1").digest()
"""What the first event of every payment is chained to. Names the form of the hash: another form has another genesis."""


def event_hash(
    previous: bytes, merchant_id: str, payment_id: str, version: int, type_: str, data_json: str
) -> bytes:
    """The hash of an event: SHA-256 over the hash before it and all that it says. `data_json` is the text as it is
    stored, to the last character; the column keeps it so.

    No part can run into the next one: the first is always 32 bytes, and no text in PostgreSQL has a NUL. When the
    event was recorded is not in it, for the database says that; a checkpoint seals it.
    """
    told = f"{merchant_id}\0{payment_id}\0{version}\0{type_}\0{data_json}"
    return sha256(previous + told.encode()).digest()
