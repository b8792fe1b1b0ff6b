"""Captures and refunds as items of settlements: made from their events, gathered, and told to their payments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import NamedTuple

from services.kit.db import Database, Transaction
from services.kit.statements import Row
from services.payment.domain.settlement import Item, ItemKind, Sums
from services.payment.store.checkpoints import Place

SWEEP_EVENTS = 2_000
"""Events that one statement looks at: some ten milliseconds."""

_US = "(extract(epoch FROM {column}) * 1000000)::bigint"
_TIME = "timestamptz 'epoch' + %({name})s::bigint * interval '1 microsecond'"
_KINDS = {kind.value: kind for kind in ItemKind}


class Portion(NamedTuple):
    """What a settlement has of one payment that does not know it yet."""

    payment_id: str
    captured_minor: int
    refunded_minor: int


async def find_swept(database: Database) -> int:
    """The moment, in microseconds since 1970, before which no event is without its item."""
    ((swept_us,),) = await database.fetch(f"SELECT {_US.format(column='swept_until')} FROM settlement_sweep")
    return int(swept_us)


async def sweep_items(tx: Transaction, after: Place, horizon_us: int) -> tuple[int, Place]:
    """Make the items of the next SWEEP_EVENTS events behind a place, in the order of time. Returns how many events were
    looked at and the place of the last. What lies before both it and the horizon is swept."""
    us, merchant_id, payment_id, version = after
    # As in list_unsealed: on a table that has grown since it was analyzed the planner would rather sort all of it.
    tx.later("SET LOCAL enable_sort = off")
    rows = await tx.fetch(
        f"""
        WITH page AS MATERIALIZED (
            SELECT merchant_id, payment_id, version, type, data, recorded_at FROM payment_events
            WHERE recorded_at >= {_TIME.format(name="us")}
              AND (recorded_at, merchant_id COLLATE "C", payment_id COLLATE "C", version)
                > ({_TIME.format(name="us")}, %(merchant)s, %(payment)s, %(version)s::int)
            ORDER BY recorded_at, merchant_id COLLATE "C", payment_id COLLATE "C", version LIMIT %(limit)s
        ), made AS (
            INSERT INTO settlement_items (merchant_id, payment_id, version, currency, kind, amount_minor, fee_minor,
                                          operation_key, bank_reference, recorded_at)
            SELECT e.merchant_id, e.payment_id, e.version, p.currency, kind, (e.data->>'amount_minor')::bigint,
                   coalesce((e.data->>'fee_minor')::bigint, 0),
                   e.payment_id || '/' || lower(kind) || '/' || intent.version, e.data->>'processor_reference',
                   e.recorded_at
            FROM (
                SELECT *, CASE type WHEN 'PaymentCaptured' THEN 'CAPTURE' ELSE 'REFUND' END AS kind FROM page
                WHERE type IN ('PaymentCaptured', 'PaymentRefunded')
            ) AS e
            -- Others than the bank settle by themselves.
            JOIN payments AS p ON p.merchant_id = e.merchant_id AND p.payment_id = e.payment_id AND p.processor = 'bank'
            CROSS JOIN LATERAL (
                -- Nothing but the mark of an unknown outcome stands between an intent and its end.
                SELECT max(i.version) AS version FROM payment_events AS i
                WHERE i.merchant_id = e.merchant_id AND i.payment_id = e.payment_id
                  AND i.version BETWEEN e.version - 2 AND e.version - 1
                  AND i.type IN ('PaymentCaptureRequested', 'PaymentRefundRequested')
            ) AS intent
            ON CONFLICT DO NOTHING
        )
        SELECT {_US.format(column="recorded_at")}, merchant_id, payment_id, version, count(*) OVER ()
        FROM page
        ORDER BY recorded_at DESC, merchant_id COLLATE "C" DESC, payment_id COLLATE "C" DESC, version DESC LIMIT 1
        """,
        {
            "us": us,
            "merchant": merchant_id,
            "payment": payment_id,
            "version": version,
            "limit": SWEEP_EVENTS,
        },
    )
    if not rows:
        return 0, after
    last_us, merchant_id, payment_id, version, count = rows[0]
    await tx.execute(
        f"UPDATE settlement_sweep SET swept_until = greatest(swept_until, {_TIME.format(name='until')})",
        {"until": min(last_us, horizon_us)},
    )
    return int(count), (last_us, merchant_id, payment_id, version)


async def list_unsettled(database: Database, merchant_id: str, before: datetime) -> list[tuple[str, str]]:
    """(merchant, currency) of which something is in no settlement that was recorded before a moment, ascending; of one
    merchant, or all when it is empty. Goes from pair to pair, not from item to item."""
    rows = await database.fetch(
        """
        WITH RECURSIVE found AS (
            (
                SELECT merchant_id, currency FROM settlement_items
                WHERE settlement_id IS NULL AND recorded_at < %(before)s
                  AND (%(merchant)s = '' OR merchant_id = %(merchant)s)
                ORDER BY merchant_id, currency LIMIT 1
            )
            UNION ALL
            SELECT next.* FROM found CROSS JOIN LATERAL (
                SELECT merchant_id, currency FROM settlement_items
                WHERE settlement_id IS NULL AND recorded_at < %(before)s
                  AND (%(merchant)s = '' OR merchant_id = %(merchant)s)
                  AND (merchant_id, currency) > (found.merchant_id, found.currency)
                ORDER BY merchant_id, currency LIMIT 1
            ) AS next
        )
        SELECT * FROM found
        """,
        {"before": before, "merchant": merchant_id},
    )
    return [(row[0], row[1]) for row in rows]


async def find_oldest_unsettled(database: Database) -> date | None:
    """The day, UTC, of the oldest capture or refund that is in no settlement."""
    ((day,),) = await database.fetch(
        "SELECT (min(recorded_at) AT TIME ZONE 'UTC')::date FROM settlement_items WHERE settlement_id IS NULL"
    )
    found: date | None = day
    return found


async def gather_items(
    tx: Transaction, merchant_id: str, currency: str, before: datetime, settlement_id: str, limit: int
) -> Sums:
    """Put up to `limit` items that are in no settlement and were recorded before a moment into one; those of whoever
    holds the lock on the merchant's balance. Returns their sums."""
    ((items, captured, refunded, fees),) = await tx.fetch(
        """
        WITH next AS MATERIALIZED (
            SELECT payment_id AS next_payment_id, version AS next_version FROM settlement_items
            WHERE merchant_id = %(merchant)s AND currency = %(currency)s AND settlement_id IS NULL
              AND recorded_at < %(before)s
            ORDER BY recorded_at, payment_id, version LIMIT %(limit)s
        ), taken AS (
            UPDATE settlement_items SET settlement_id = %(settlement)s
            FROM next WHERE merchant_id = %(merchant)s AND payment_id = next_payment_id AND version = next_version
              AND settlement_id IS NULL
            RETURNING kind, amount_minor, fee_minor
        )
        SELECT count(*), coalesce(sum(amount_minor) FILTER (WHERE kind = 'CAPTURE'), 0)::bigint,
               coalesce(sum(amount_minor) FILTER (WHERE kind = 'REFUND'), 0)::bigint,
               coalesce(sum(fee_minor), 0)::bigint
        FROM taken
        """,
        {
            "merchant": merchant_id,
            "currency": currency,
            "before": before,
            "settlement": settlement_id,
            "limit": limit,
        },
    )
    return Sums(items, captured, refunded, fees)


async def list_items(reader: Database | Transaction, key: tuple[str, str]) -> list[Item]:
    """All items of a settlement."""
    rows = await reader.fetch(
        """
        SELECT merchant_id, payment_id, version, kind, amount_minor, fee_minor, bank_reference FROM settlement_items
        WHERE merchant_id = %(merchant)s AND settlement_id = %(settlement)s ORDER BY payment_id, version
        """,
        {"merchant": key[0], "settlement": key[1]},
    )
    return [_item(row) for row in rows]


def save_processor_fees(tx: Transaction, key: tuple[str, str], fees: Mapping[str, int]) -> None:
    """Write what the processor takes for each item of a settlement, by its name of the operation."""
    tx.later(
        """
        UPDATE settlement_items AS i SET processor_fee_minor = fee.minor
        FROM unnest(%(references)s::text[], %(fees)s::bigint[]) AS fee (reference, minor)
        WHERE i.merchant_id = %(merchant)s AND i.settlement_id = %(settlement)s AND i.bank_reference = fee.reference
        """,
        {
            "merchant": key[0],
            "settlement": key[1],
            "references": list(fees),
            "fees": list(fees.values()),
        },
    )


async def list_unposted(tx: Transaction, key: tuple[str, str], after_id: str, limit: int) -> list[Portion]:
    """What a settlement has of payments that do not know it yet, ascending: up to `limit` behind `after_id`."""
    rows = await tx.fetch(
        """
        SELECT payment_id, coalesce(sum(amount_minor) FILTER (WHERE kind = 'CAPTURE'), 0)::bigint,
               coalesce(sum(amount_minor) FILTER (WHERE kind = 'REFUND'), 0)::bigint
        FROM settlement_items
        WHERE merchant_id = %(merchant)s AND settlement_id = %(settlement)s AND posted_version IS NULL
          AND payment_id > %(after)s
        GROUP BY payment_id ORDER BY payment_id LIMIT %(limit)s
        """,
        {"merchant": key[0], "settlement": key[1], "after": after_id, "limit": limit},
    )
    return [Portion(*row) for row in rows]


def save_posted(tx: Transaction, key: tuple[str, str], versions: Sequence[tuple[str, int]]) -> None:
    """Note that payments know of their items in a settlement: (payment, version of the event that tells them)."""
    tx.later(
        """
        UPDATE settlement_items AS i SET posted_version = told.version
        FROM unnest(%(payments)s::text[], %(versions)s::int[]) AS told (payment_id, version)
        WHERE i.merchant_id = %(merchant)s AND i.settlement_id = %(settlement)s AND i.payment_id = told.payment_id
        """,
        {
            "merchant": key[0],
            "settlement": key[1],
            "payments": [payment_id for payment_id, _ in versions],
            "versions": [version for _, version in versions],
        },
    )


async def count_unposted(tx: Transaction, key: tuple[str, str]) -> int:
    """Items of a settlement that their payments do not know of."""
    ((count,),) = await tx.fetch(
        """
        SELECT count(*) FROM settlement_items
        WHERE merchant_id = %(merchant)s AND settlement_id = %(settlement)s AND posted_version IS NULL
        """,
        {"merchant": key[0], "settlement": key[1]},
    )
    return int(count)


def _item(row: Row) -> Item:
    return Item(row[0], row[1], row[2], _KINDS[row[3]], row[4], row[5], row[6])
