"""Payments and their events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson

from services.kit.db import Database, Transaction
from services.kit.money import Money
from services.payment.domain import Event, EventType, Payment, PaymentKey, State, UnknownOutcome
from services.payment.store.chain import find_chains
from services.payment.trail.chain import GENESIS, event_hash

_AUTHORIZATION = """merchant_id, payment_id, order_id, amount_minor, currency, state, version,
    (extract(epoch FROM created_at) * 1000)::bigint, unknown_outcome, auth_code, processor_reference, decline_reason,
    fraud_score_milli"""
"""The columns that have a say until an authorization has ended; all others have their defaults till then."""
_COLUMNS = f"""{_AUTHORIZATION}, incremented_minor, captured_minor, refunded_minor, settled_minor, fee_minor,
    rest_released, pending_minor, pending_fee_minor, pending_final, expiring,
    coalesce(extract(epoch FROM expires_at) * 1000, 0)::bigint, processor"""
_CHAIN_END = "CASE WHEN hashed_version = version THEN event_hash END"

_STATES = {state.value: state for state in State}
_UNKNOWN = {unknown.value: unknown for unknown in UnknownOutcome}


class Record(NamedTuple):
    """An event as it is stored."""

    merchant_id: str
    payment_id: str
    version: int
    event: Event
    recorded_at_ms: int = 0
    text: str = ""
    """Its data, as they are or will be stored."""
    hash: bytes = b""
    """Over this event and the one before; empty when it was read."""

    def data_json(self) -> str:
        """The event's data as a JSON object."""
        return self.text or orjson.dumps(self.event.data).decode()


def record_of(payment: Payment, event: Event) -> Record:
    """The record of the event that made a payment what it is, chained to the one before it."""
    merchant_id, payment_id, version = payment.merchant_id, payment.payment_id, payment.version
    text = orjson.dumps(event.data).decode()
    previous = payment.event_hash or GENESIS
    hashed = event_hash(previous, merchant_id, payment_id, version, event.type.value, text)
    return Record(merchant_id, payment_id, version, event, 0, text, hashed)


async def insert_payments(
    tx: Transaction, payments: Sequence[Payment], records: Sequence[Record], intent_seconds: float
) -> set[str]:
    """Record intents, whose events are `records`; returns the ids of those whose order has no other live payment. The
    resolver looks at them after `intent_seconds`, unless they have ended by then."""
    # By order, so that two sets that want the same orders wait for each other in one direction only. Of two payments
    # for one order the first of the set wins: sorting keeps their sequence.
    payments = sorted(payments, key=lambda p: (p.merchant_id, p.order_id))
    hash_of = {r.payment_id: r.hash for r in records}
    rows = await tx.fetch(
        """
        INSERT INTO payments (merchant_id, payment_id, order_id, amount_minor, currency, state, version, resolve_at,
                              event_hash, hashed_version, processor)
        SELECT merchant_id, payment_id, order_id, amount_minor, currency, 'AUTHORIZING', 1,
               now() + make_interval(secs => %(seconds)s), hash, 1, processor
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(orders)s::text[], %(amounts)s::bigint[],
                    %(currencies)s::text[], %(hashes)s::bytea[], %(processors)s::text[])
             AS new (merchant_id, payment_id, order_id, amount_minor, currency, hash, processor)
        ON CONFLICT (merchant_id, order_id) WHERE state = 'AUTHORIZING' DO NOTHING
        RETURNING payment_id
        """,
        {
            "seconds": intent_seconds,
            "merchants": [p.merchant_id for p in payments],
            "ids": [p.payment_id for p in payments],
            "orders": [p.order_id for p in payments],
            "amounts": [p.amount.amount_minor for p in payments],
            "currencies": [p.amount.currency for p in payments],
            "hashes": [hash_of[p.payment_id] for p in payments],
            "processors": [p.processor for p in payments],
        },
    )
    return {row[0] for row in rows}


def insert_events(tx: Transaction, records: Sequence[Record]) -> None:
    """Append events."""
    tx.later(
        """
        INSERT INTO payment_events (merchant_id, payment_id, version, type, data, hash)
        SELECT merchant_id, payment_id, version, type, data::json, hash
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(versions)s::int[], %(types)s::text[], %(data)s::text[],
                    %(hashes)s::bytea[]) AS new (merchant_id, payment_id, version, type, data, hash)
        """,
        {
            "merchants": [r.merchant_id for r in records],
            "ids": [r.payment_id for r in records],
            "versions": [r.version for r in records],
            "types": [r.event.type.value for r in records],
            "data": [r.text for r in records],
            "hashes": [r.hash for r in records],
        },
    )


async def lock_payments(tx: Transaction, keys: Iterable[PaymentKey]) -> dict[PaymentKey, Payment]:
    """Lock payments, ascending; unknown ones are missing from the result."""
    return await _lock(tx, keys, _COLUMNS)


async def lock_authorizations(tx: Transaction, keys: Iterable[PaymentKey]) -> dict[PaymentKey, Payment]:
    """Lock payments whose authorization is to be written down. Of one that has moved on, only its state is to be
    trusted: what came after the authorization is not read."""
    return await _lock(tx, keys, _AUTHORIZATION)


async def _lock(tx: Transaction, keys: Iterable[PaymentKey], columns: str) -> dict[PaymentKey, Payment]:
    ordered = sorted(set(keys))
    if not ordered:
        return {}
    rows = await tx.fetch(
        f"""
        SELECT {columns}, {_CHAIN_END} FROM payments
        WHERE (merchant_id, payment_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        ORDER BY merchant_id, payment_id
        FOR NO KEY UPDATE
        """,
        {"merchants": [m for m, _ in ordered], "ids": [p for _, p in ordered]},
    )
    return {payment.key: payment for payment in await _chained(tx, rows)}


async def _chained(tx: Transaction, rows: Sequence[Sequence[Any]]) -> list[Payment]:
    """Locked payments, each with the end of its chain."""
    unknown = [(row[0], row[1]) for row in rows if row[-1] is None]
    chains = await find_chains(tx, unknown) if unknown else {}
    return [_payment(row[:-1], row[-1] or chains[(row[0], row[1])][-1]) for row in rows]


def _ends_of(payments: Sequence[Payment], records: Sequence[Record]) -> list[bytes]:
    """The ends of the payments' chains after one event each: two in one transaction would be chained to the same."""
    assert [(r.payment_id, r.version) for r in records] == [(p.payment_id, p.version) for p in payments]
    assert len({r.payment_id for r in records}) == len(records)
    return [r.hash for r in records]


def save_authorizations(tx: Transaction, payments: Sequence[Payment], records: Sequence[Record]) -> None:
    """Write locked payments as they are after the event that ended their authorization: `records`, in their order."""
    tx.later(
        """
        UPDATE payments AS p
        SET state = n.state, version = n.version, unknown_outcome = n.unknown_outcome, auth_code = n.auth_code,
            processor_reference = n.processor_reference, decline_reason = n.decline_reason,
            fraud_score_milli = n.fraud_score_milli, expires_at = to_timestamp(nullif(n.expires_at_ms, 0) / 1000.0),
            resolve_at = now(), resolve_attempts = 0, event_hash = n.hash, hashed_version = n.version
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(states)s::text[], %(versions)s::int[],
                    %(unknown)s::text[], %(codes)s::text[], %(references)s::text[], %(reasons)s::text[],
                    %(scores)s::int[], %(expiries)s::bigint[], %(hashes)s::bytea[])
             AS n (merchant_id, payment_id, state, version, unknown_outcome, auth_code, processor_reference,
                   decline_reason, fraud_score_milli, expires_at_ms, hash)
        WHERE p.merchant_id = n.merchant_id AND p.payment_id = n.payment_id
        """,
        {
            "merchants": [p.merchant_id for p in payments],
            "ids": [p.payment_id for p in payments],
            "states": [p.state.value for p in payments],
            "versions": [p.version for p in payments],
            "unknown": [p.unknown_outcome.value for p in payments],
            "codes": [p.auth_code for p in payments],
            "references": [p.processor_reference for p in payments],
            "reasons": [p.decline_reason for p in payments],
            "scores": [p.fraud_score_milli for p in payments],
            "expiries": [p.expires_at_ms for p in payments],
            "hashes": _ends_of(payments, records),
        },
    )


def save_payments(
    tx: Transaction, payments: Sequence[Payment], records: Sequence[Record], resolve_seconds: float = 0.0
) -> None:
    """Write locked payments as they are after an event behind their authorization: `records`, in their order. Those
    that wait for the processor are looked at by the resolver after `resolve_seconds`."""
    if not payments:
        return
    tx.later(
        """
        UPDATE payments AS p
        SET state = n.state, version = n.version, unknown_outcome = n.unknown_outcome,
            incremented_minor = n.incremented_minor, captured_minor = n.captured_minor,
            refunded_minor = n.refunded_minor, settled_minor = n.settled_minor, fee_minor = n.fee_minor,
            rest_released = n.rest_released, pending_minor = n.pending_minor,
            pending_fee_minor = n.pending_fee_minor, pending_final = n.pending_final, expiring = n.expiring,
            resolve_at = now() + make_interval(secs => %(seconds)s), resolve_attempts = 0, event_hash = n.hash,
            hashed_version = n.version
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(states)s::text[], %(versions)s::int[],
                    %(unknown)s::text[], %(incremented)s::bigint[], %(captured)s::bigint[], %(refunded)s::bigint[],
                    %(settled)s::bigint[], %(fees)s::bigint[], %(released)s::bool[], %(pending)s::bigint[],
                    %(pending_fees)s::bigint[], %(pending_finals)s::bool[], %(expiring)s::bool[],
                    %(hashes)s::bytea[])
             AS n (merchant_id, payment_id, state, version, unknown_outcome, incremented_minor, captured_minor,
                   refunded_minor, settled_minor, fee_minor, rest_released, pending_minor, pending_fee_minor,
                   pending_final, expiring, hash)
        WHERE p.merchant_id = n.merchant_id AND p.payment_id = n.payment_id
        """,
        {
            "seconds": resolve_seconds,
            "merchants": [p.merchant_id for p in payments],
            "ids": [p.payment_id for p in payments],
            "states": [p.state.value for p in payments],
            "versions": [p.version for p in payments],
            "unknown": [p.unknown_outcome.value for p in payments],
            "incremented": [p.incremented_minor for p in payments],
            "captured": [p.captured_minor for p in payments],
            "refunded": [p.refunded_minor for p in payments],
            "settled": [p.settled_minor for p in payments],
            "fees": [p.fee_minor for p in payments],
            "released": [p.rest_released for p in payments],
            "pending": [p.pending_minor for p in payments],
            "pending_fees": [p.pending_fee_minor for p in payments],
            "pending_finals": [p.pending_final for p in payments],
            "expiring": [p.expiring for p in payments],
            "hashes": _ends_of(payments, records),
        },
    )


def postpone(tx: Transaction, delays: Sequence[tuple[PaymentKey, float]]) -> None:
    """Have the resolver look at payments after so many seconds."""
    tx.later(
        """
        UPDATE payments AS p SET resolve_at = now() + make_interval(secs => d.seconds)
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(seconds)s::float8[])
             AS d (merchant_id, payment_id, seconds)
        WHERE p.merchant_id = d.merchant_id AND p.payment_id = d.payment_id
        """,
        {
            "merchants": [key[0] for key, _ in delays],
            "ids": [key[1] for key, _ in delays],
            "seconds": [seconds for _, seconds in delays],
        },
    )


async def find_next_due_seconds(database: Database) -> float:
    """In how many seconds the next payment that waits for the processor is due; not positive for one that is,
    infinite when none waits."""
    rows = await database.fetch(
        """
        SELECT coalesce(extract(epoch FROM min(resolve_at) - now()), 'Infinity')::float8 FROM payments
        WHERE state IN ('AUTHORIZING', 'VOIDING', 'INCREMENTING', 'CAPTURING', 'REFUNDING')
        """
    )
    return float(rows[0][0])


async def take_unresolved(tx: Transaction, limit: int, lease_seconds: float) -> list[tuple[Payment, int]]:
    """Take payments that wait for the processor and are due, with how often they were taken before. Nobody else gets
    them for `lease_seconds`."""
    rows = await tx.fetch(
        f"""
        WITH due AS MATERIALIZED (
            SELECT merchant_id AS due_merchant_id, payment_id AS due_payment_id FROM payments
            WHERE state IN ('AUTHORIZING', 'VOIDING', 'INCREMENTING', 'CAPTURING', 'REFUNDING') AND resolve_at <= now()
            ORDER BY resolve_at LIMIT %(limit)s
            FOR NO KEY UPDATE SKIP LOCKED
        )
        UPDATE payments SET resolve_at = now() + make_interval(secs => %(lease)s),
                            resolve_attempts = resolve_attempts + 1
        FROM due WHERE merchant_id = due_merchant_id AND payment_id = due_payment_id
        RETURNING {_COLUMNS}, resolve_attempts
        """,
        {"limit": limit, "lease": lease_seconds},
    )
    return [(_payment(row[:-1]), row[-1]) for row in rows]


async def lock_expired(tx: Transaction, limit: int) -> list[Payment]:
    """Lock payments whose authorization has come to its end and that may still hold something. Those that somebody else
    works on are left out."""
    rows = await tx.fetch(
        f"""
        SELECT {_COLUMNS}, {_CHAIN_END} FROM payments
        WHERE state IN ('AUTHORIZED', 'PARTIALLY_CAPTURED') AND expires_at <= now()
        ORDER BY expires_at LIMIT %(limit)s
        FOR NO KEY UPDATE SKIP LOCKED
        """,
        {"limit": limit},
    )
    return await _chained(tx, rows)


async def count_waiting(database: Database) -> tuple[int, float]:
    """How many payments wait for the processor, and for how many seconds the one that has waited longest."""
    ((count, seconds),) = await database.fetch(
        """
        SELECT count(*), coalesce(extract(epoch FROM now() - min(e.recorded_at)), 0)::float8
        FROM payments AS p
        JOIN payment_events AS e
          ON e.merchant_id = p.merchant_id AND e.payment_id = p.payment_id AND e.version = p.version
        WHERE p.state IN ('AUTHORIZING', 'VOIDING', 'INCREMENTING', 'CAPTURING', 'REFUNDING')
        """
    )
    return count, seconds


async def list_events(tx: Transaction, keys: Sequence[PaymentKey]) -> list[Record]:
    """The events of payments, oldest first per payment; without those that were taken away with their month."""
    rows = await tx.fetch(
        """
        SELECT merchant_id, payment_id, version, type, data::text, (extract(epoch FROM recorded_at) * 1000)::bigint
        FROM payment_events
        WHERE (merchant_id, payment_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        ORDER BY merchant_id, payment_id, version
        """,
        {"merchants": [m for m, _ in keys], "ids": [p for _, p in keys]},
    )
    return [
        Record(row[0], row[1], row[2], Event(EventType(row[3]), orjson.loads(row[4])), row[5], row[4])
        for row in rows
    ]


async def find_beginnings(tx: Transaction, keys: Sequence[PaymentKey]) -> dict[PaymentKey, tuple[str, str]]:
    """Who began payments, and under which idempotency keys; without those whose events were taken away."""
    rows = await tx.fetch(
        """
        SELECT merchant_id, payment_id, data->>'caller', data->>'idempotency_key' FROM payment_events
        WHERE (merchant_id, payment_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
          AND version = 1
        """,
        {"merchants": [m for m, _ in keys], "ids": [p for _, p in keys]},
    )
    return {(row[0], row[1]): (row[2], row[3]) for row in rows}


async def find_payment(tx: Transaction, key: PaymentKey) -> Payment | None:
    """One payment."""
    rows = await tx.fetch(
        f"SELECT {_COLUMNS} FROM payments WHERE merchant_id = %(merchant)s AND payment_id = %(id)s",
        {"merchant": key[0], "id": key[1]},
    )
    return _payment(rows[0]) if rows else None


async def list_payments(
    database: Database, merchant_id: str, order_id: str, before_id: str, limit: int
) -> list[Payment]:
    """A merchant's payments, newest first, those older than `before_id` ("" for the newest)."""
    rows = await database.fetch(
        f"""
        SELECT {_COLUMNS} FROM payments
        WHERE merchant_id = %(merchant)s AND (%(order)s = '' OR order_id = %(order)s)
          AND (%(before)s = '' OR payment_id < %(before)s)
        ORDER BY payment_id DESC LIMIT %(limit)s
        """,
        {"merchant": merchant_id, "order": order_id, "before": before_id, "limit": limit},
    )
    return [_payment(row) for row in rows]


def _payment(row: Sequence[Any], chain_end: bytes = b"") -> Payment:
    (
        merchant_id,
        payment_id,
        order_id,
        amount_minor,
        currency,
        state,
        version,
        created_at_ms,
        unknown,
        *rest,
    ) = row
    return Payment(
        merchant_id,
        payment_id,
        order_id,
        Money(amount_minor, currency),
        _STATES[state],
        version,
        created_at_ms,
        _UNKNOWN[unknown],
        *rest,
        event_hash=chain_end,  # type: ignore[misc]  # the columns end before it
    )
