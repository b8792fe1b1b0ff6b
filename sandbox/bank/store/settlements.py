"""Settlements and payouts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psycopg.errors import SerializationFailure

from sandbox.bank.domain import Identity, Kind, Operation, Payout, PayoutState, Settled, Settlement
from sandbox.bank.store.operations import OPERATION, columns, operation_of
from services.kit.db import Database, Transaction

_PAYOUT = (
    "merchant_id, payout_id, key, fingerprint, reference, amount_minor, currency, state, reason, booked_on, value_on,"
    " created_at"
)


async def lock_operations(tx: Transaction, ids: Iterable[Identity]) -> dict[Identity, Operation]:
    """Lock operations by (merchant, operation id), ascending; unknown ones are missing. Nobody else settles them until
    the transaction ends."""
    rows = await tx.fetch(
        f"""
        SELECT {OPERATION} FROM operations AS o
        WHERE (merchant_id, operation_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        ORDER BY merchant_id, operation_id
        FOR NO KEY UPDATE
        """,
        columns("ids", ids),
    )
    return {(row[0], row[1]): operation_of(row) for row in rows}


async def find_settled(tx: Transaction, ids: Iterable[Identity]) -> set[Identity]:
    """Those of the operations that are in a settlement."""
    rows = await tx.fetch(
        """
        SELECT merchant_id, operation_id FROM settled_operations
        WHERE (merchant_id, operation_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        """,
        columns("ids", ids),
    )
    return {(row[0], row[1]) for row in rows}


async def find_settlements(
    reader: Transaction | Database, keys: Iterable[Identity]
) -> dict[Identity, Settlement]:
    """Settlements by (merchant, key), with their operations; those that have not arrived are missing."""
    rows = await reader.fetch(
        """
        SELECT s.merchant_id, s.batch_id, s.key, s.fingerprint, s.reference, s.currency, s.booked_on, s.value_on,
               s.created_at, so.operation_id, o.kind, so.amount_minor, so.fee_minor
        FROM settlements AS s
        JOIN settled_operations AS so ON so.merchant_id = s.merchant_id AND so.batch_id = s.batch_id
        JOIN operations AS o ON o.merchant_id = so.merchant_id AND o.operation_id = so.operation_id
        WHERE (s.merchant_id, s.key) IN (SELECT * FROM unnest(%(merchants)s::text[], %(keys)s::text[]))
        ORDER BY so.operation_id
        """,
        columns("keys", keys),
    )
    found: dict[Identity, Settlement] = {}
    settled: dict[Identity, list[Settled]] = {}
    for row in rows:
        (
            merchant_id,
            batch_id,
            key,
            fingerprint,
            reference,
            currency,
            booked_on,
            value_on,
            created_at,
            *one,
        ) = row
        identity = (merchant_id, key)
        settled.setdefault(identity, []).append(Settled(one[0], Kind(one[1]), one[2], one[3]))
        found[identity] = Settlement(
            merchant_id, batch_id, key, fingerprint, reference, currency, (), booked_on, value_on, created_at
        )
    return {identity: one._replace(operations=tuple(settled[identity])) for identity, one in found.items()}


async def insert_settlements(tx: Transaction, settlements: Sequence[Settlement]) -> None:
    """Write settlements whose keys were free a moment ago, and whose operations are locked and in none. Raises a
    serialization failure, upon which the transaction starts over, when another call took one of the keys meanwhile."""
    if not settlements:
        return
    ordered = sorted(settlements, key=lambda s: (s.merchant_id, s.key))
    written = await tx.execute(
        """
        INSERT INTO settlements (merchant_id, batch_id, key, fingerprint, reference, currency, captured_minor,
                                 refunded_minor, fee_minor, booked_on, value_on, created_at)
        SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(keys)s::text[], %(fingerprints)s::bytea[],
                             %(references)s::text[], %(currencies)s::text[], %(captured)s::bigint[],
                             %(refunded)s::bigint[], %(fees)s::bigint[], %(booked)s::date[], %(due)s::date[],
                             %(created)s::timestamptz[])
        ON CONFLICT DO NOTHING
        """,
        {
            "merchants": [s.merchant_id for s in ordered],
            "ids": [s.batch_id for s in ordered],
            "keys": [s.key for s in ordered],
            "fingerprints": [s.fingerprint for s in ordered],
            "references": [s.reference for s in ordered],
            "currencies": [s.currency for s in ordered],
            "captured": [s.captured_minor for s in ordered],
            "refunded": [s.refunded_minor for s in ordered],
            "fees": [s.fee_minor for s in ordered],
            "booked": [s.booked_on for s in ordered],
            "due": [s.value_on for s in ordered],
            "created": [s.created_at for s in ordered],
        },
    )
    if written < len(ordered):
        raise SerializationFailure("a key was taken while the set was decided")
    lines = [(s.merchant_id, s.batch_id, one) for s in ordered for one in s.operations]
    tx.later(
        """
        INSERT INTO settled_operations (merchant_id, operation_id, batch_id, amount_minor, fee_minor)
        SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(batches)s::text[], %(amounts)s::bigint[],
                             %(fees)s::bigint[])
        """,
        {
            "merchants": [merchant for merchant, _, _ in lines],
            "ids": [one.operation_id for _, _, one in lines],
            "batches": [batch for _, batch, _ in lines],
            "amounts": [one.amount_minor for _, _, one in lines],
            "fees": [one.fee_minor for _, _, one in lines],
        },
    )


async def insert_payouts(tx: Transaction, payouts: Sequence[Payout]) -> int:
    """Write payouts; one whose key was used before is left out. Returns how many were written."""
    ordered = sorted(payouts, key=lambda p: (p.merchant_id, p.key))
    return await tx.execute(
        f"""
        INSERT INTO payouts ({_PAYOUT})
        SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(keys)s::text[], %(fingerprints)s::bytea[],
                             %(references)s::text[], %(amounts)s::bigint[], %(currencies)s::text[],
                             %(states)s::text[], %(reasons)s::text[], %(booked)s::date[], %(due)s::date[],
                             %(created)s::timestamptz[])
        ON CONFLICT DO NOTHING
        """,
        {
            "merchants": [p.merchant_id for p in ordered],
            "ids": [p.payout_id for p in ordered],
            "keys": [p.key for p in ordered],
            "fingerprints": [p.fingerprint for p in ordered],
            "references": [p.reference for p in ordered],
            "amounts": [p.amount_minor for p in ordered],
            "currencies": [p.currency for p in ordered],
            "states": [p.state.value for p in ordered],
            "reasons": [p.reason for p in ordered],
            "booked": [p.booked_on for p in ordered],
            "due": [p.value_on for p in ordered],
            "created": [p.created_at for p in ordered],
        },
    )


async def find_payouts(reader: Transaction | Database, keys: Iterable[Identity]) -> dict[Identity, Payout]:
    """Payouts by (merchant, key), refused ones too; those that have not arrived are missing."""
    rows = await reader.fetch(
        f"""
        SELECT {_PAYOUT} FROM payouts
        WHERE (merchant_id, key) IN (SELECT * FROM unnest(%(merchants)s::text[], %(keys)s::text[]))
        """,
        columns("keys", keys),
    )
    payouts = {}
    for row in rows:
        merchant_id, payout_id, key, fingerprint, reference, amount_minor, currency, state, reason, *dates = (
            row
        )
        booked_on, value_on, created_at = dates
        payouts[(merchant_id, key)] = Payout(
            merchant_id,
            payout_id,
            key,
            fingerprint,
            reference,
            amount_minor,
            currency,
            PayoutState(state),
            reason,
            booked_on,
            value_on,
            created_at,
        )
    return payouts
