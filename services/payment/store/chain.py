"""Hashes of events that do not stand in the rows: made from the rows before them."""

from __future__ import annotations

from collections.abc import Sequence

from services.kit.db import Transaction
from services.payment.domain import PaymentKey
from services.payment.trail.chain import GENESIS, event_hash


async def find_chains(tx: Transaction, keys: Sequence[PaymentKey]) -> dict[PaymentKey, list[bytes]]:
    """The hash of each event of payments. For payments whose rows do not tell it: those from before there was a chain,
    or that an older process has moved on since."""
    rows = await tx.fetch(
        """
        SELECT merchant_id, payment_id, version, type, data::text FROM payment_events
        WHERE (merchant_id, payment_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        ORDER BY merchant_id, payment_id, version
        """,
        {"merchants": [m for m, _ in keys], "ids": [p for _, p in keys]},
    )
    chains: dict[PaymentKey, list[bytes]] = {}
    for merchant_id, payment_id, version, type_, data_json in rows:
        chain = chains.setdefault((merchant_id, payment_id), [])
        previous = chain[-1] if chain else GENESIS
        chain.append(event_hash(previous, merchant_id, payment_id, version, type_, data_json))
    return chains
