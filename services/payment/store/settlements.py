"""Settlements, what is carried from one to the next, and the list that statements are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

from services.kit.db import Database, Transaction
from services.payment.domain.settlement import ItemKind, PayoutState, Settlement, SettlementState

_COLUMNS = """s.merchant_id, s.settlement_id, s.day, s.number, s.currency, s.state, s.version, s.waits_for, s.items,
    s.captured_minor, s.refunded_minor, s.fee_minor, s.brought_forward_minor, s.payout_minor, s.payout_state,
    s.payout_reference, s.payout_refusal, s.payout_booked_on, s.payout_value_on, s.processor_reference,
    s.processor_fee_minor, s.booked_on, s.value_on, (extract(epoch FROM s.created_at) * 1000)::bigint,
    coalesce(extract(epoch FROM s.completed_at) * 1000, 0)::bigint"""

_STATES = {state.value: state for state in SettlementState}
_PAYOUT_STATES = {state.value: state for state in PayoutState}

FIRST_DAY, LAST_DAY = date(1970, 1, 1), date(9999, 12, 31)
"""Around every day that there can be."""

LinePlace = tuple[date, str, str, str, int]
"""Of a line in its list: day, merchant, settlement, payment ("" for the payout), version."""

LIST_BEGINNING: LinePlace = (FIRST_DAY, "", "", "", -1)


class Line(NamedTuple):
    """A capture, a refund or a payout, as a statement may have it."""

    merchant_id: str
    settlement_id: str
    day: date | None
    payment_id: str
    version: int
    kind: ItemKind | None
    """None for a payout."""
    operation_key: str
    bank_reference: str
    batch_reference: str
    amount_minor: int
    currency: str
    fee_minor: int
    processor_fee_minor: int | None
    recorded_at_ms: int
    booked_on: date | None
    value_on: date | None
    payout_state: PayoutState | None


class Taken(NamedTuple):
    """A settlement that was taken to be carried on."""

    settlement: Settlement
    attempts: int
    """How often it has been taken since it last came further, this time included."""


async def lock_balance(tx: Transaction, merchant_id: str, currency: str) -> int:
    """Lock what is carried from one settlement of a merchant and currency to the next; returns it."""
    params = {"merchant": merchant_id, "currency": currency}
    tx.later(
        "INSERT INTO merchant_balances (merchant_id, currency) VALUES (%(merchant)s, %(currency)s)"
        " ON CONFLICT DO NOTHING",
        params,
    )
    ((carried_minor,),) = await tx.fetch(
        "SELECT carried_minor FROM merchant_balances WHERE merchant_id = %(merchant)s AND currency = %(currency)s"
        " FOR NO KEY UPDATE",
        params,
    )
    return int(carried_minor)


def save_balance(tx: Transaction, merchant_id: str, currency: str, carried_minor: int) -> None:
    """Write what is carried, whose row is locked."""
    tx.later(
        "UPDATE merchant_balances SET carried_minor = %(minor)s"
        " WHERE merchant_id = %(merchant)s AND currency = %(currency)s",
        {"merchant": merchant_id, "currency": currency, "minor": carried_minor},
    )


async def count_settlements(tx: Transaction, merchant_id: str, currency: str, day: date) -> int:
    """How many settlements a merchant has in a currency for a day; the balance's lock keeps others from adding some."""
    ((count,),) = await tx.fetch(
        "SELECT count(*) FROM settlements"
        " WHERE merchant_id = %(merchant)s AND currency = %(currency)s AND day = %(day)s",
        {"merchant": merchant_id, "currency": currency, "day": day},
    )
    return int(count)


def insert_settlement(tx: Transaction, settlement: Settlement) -> None:
    """Write a new settlement; the runner looks at it at once."""
    tx.later(
        """
        INSERT INTO settlements (merchant_id, settlement_id, day, number, currency, state, version, items,
                                 captured_minor, refunded_minor, fee_minor, brought_forward_minor, payout_minor,
                                 payout_state)
        VALUES (%(merchant)s, %(id)s, %(day)s, %(number)s, %(currency)s, %(state)s, %(version)s, %(items)s,
                %(captured)s, %(refunded)s, %(fees)s, %(brought)s, %(payout)s, %(payout_state)s)
        """,
        {
            "merchant": settlement.merchant_id,
            "id": settlement.settlement_id,
            "day": settlement.day,
            "number": settlement.number,
            "currency": settlement.currency,
            "state": settlement.state.value,
            "version": settlement.version,
            "items": settlement.items,
            "captured": settlement.captured_minor,
            "refunded": settlement.refunded_minor,
            "fees": settlement.fee_minor,
            "brought": settlement.brought_forward_minor,
            "payout": settlement.payout_minor,
            "payout_state": settlement.payout_state.value,
        },
    )


async def lock_settlement(tx: Transaction, key: tuple[str, str]) -> Settlement:
    """Lock a settlement that exists."""
    (row,) = await tx.fetch(
        f"""
        SELECT {_COLUMNS} FROM settlements AS s
        WHERE merchant_id = %(merchant)s AND settlement_id = %(id)s
        FOR NO KEY UPDATE
        """,
        {"merchant": key[0], "id": key[1]},
    )
    return _settlement(row)


def save_settlement(tx: Transaction, settlement: Settlement, look_again_seconds: float) -> None:
    """Write a locked settlement as it is now; unless it is COMPLETED, the runner looks at it after so long."""
    tx.later(
        """
        UPDATE settlements
        SET state = %(state)s, version = %(version)s, waits_for = %(waits_for)s, payout_state = %(payout_state)s,
            payout_reference = %(payout_reference)s, payout_refusal = %(refusal)s,
            payout_booked_on = %(payout_booked_on)s, payout_value_on = %(payout_value_on)s,
            processor_reference = %(reference)s, processor_fee_minor = %(fee)s, booked_on = %(booked_on)s,
            value_on = %(value_on)s, completed_at = to_timestamp(nullif(%(completed_ms)s::bigint, 0) / 1000.0),
            resolve_at = now() + make_interval(secs => %(seconds)s),
            resolve_attempts = CASE version WHEN %(version)s THEN resolve_attempts ELSE 0 END
        WHERE merchant_id = %(merchant)s AND settlement_id = %(id)s
        """,
        {
            "merchant": settlement.merchant_id,
            "id": settlement.settlement_id,
            "state": settlement.state.value,
            "version": settlement.version,
            "waits_for": settlement.waits_for,
            "payout_state": settlement.payout_state.value,
            "payout_reference": settlement.payout_reference,
            "refusal": settlement.payout_refusal,
            "payout_booked_on": settlement.payout_booked_on,
            "payout_value_on": settlement.payout_value_on,
            "reference": settlement.processor_reference,
            "fee": settlement.processor_fee_minor,
            "booked_on": settlement.booked_on,
            "value_on": settlement.value_on,
            "completed_ms": settlement.completed_at_ms,
            "seconds": look_again_seconds,
        },
    )


async def take_open(tx: Transaction, limit: int, lease_seconds: float) -> list[Taken]:
    """Take settlements that are due to be carried on. Nobody else gets them for `lease_seconds`."""
    rows = await tx.fetch(
        f"""
        WITH due AS MATERIALIZED (
            SELECT merchant_id AS due_merchant_id, settlement_id AS due_settlement_id FROM settlements
            WHERE state <> 'COMPLETED' AND resolve_at <= now()
            ORDER BY resolve_at LIMIT %(limit)s
            FOR NO KEY UPDATE SKIP LOCKED
        )
        UPDATE settlements AS s SET resolve_at = now() + make_interval(secs => %(lease)s),
                                    resolve_attempts = resolve_attempts + 1
        FROM due WHERE merchant_id = due_merchant_id AND settlement_id = due_settlement_id
        RETURNING {_COLUMNS}, resolve_attempts
        """,
        {"limit": limit, "lease": lease_seconds},
    )
    return [Taken(_settlement(row[:-1]), row[-1]) for row in rows]


async def find_settlement(database: Database, key: tuple[str, str]) -> tuple[Settlement, int] | None:
    """A settlement, and how many of its items their payments do not know of."""
    rows = await _list(
        database, "s.merchant_id = %(merchant)s AND s.settlement_id = %(id)s", 1, merchant=key[0], id=key[1]
    )
    return rows[0] if rows else None


async def list_settlements(
    database: Database,
    merchant_id: str,
    days: tuple[date, date],
    open_only: bool,
    before: tuple[date, str, str],
    limit: int,
) -> list[tuple[Settlement, int]]:
    """Settlements of days, newest day first, those behind `before`: each with how many of its items their payments do
    not know of. Of one merchant, or of all when it is empty."""
    return await _list(
        database,
        """
        (%(merchant)s = '' OR s.merchant_id = %(merchant)s) AND s.day BETWEEN %(first)s AND %(last)s
        AND (NOT %(open)s OR s.state <> 'COMPLETED')
        AND (s.day, s.merchant_id, s.settlement_id) < (%(day)s::date, %(before_merchant)s, %(before)s)
        """,
        limit,
        merchant=merchant_id,
        first=days[0],
        last=days[1],
        open=open_only,
        day=before[0],
        before_merchant=before[1],
        before=before[2],
    )


async def _list(database: Database, where: str, limit: int, **params: Any) -> list[tuple[Settlement, int]]:
    rows = await database.fetch(
        f"""
        SELECT {_COLUMNS}, CASE s.state WHEN 'COMPLETED' THEN 0 ELSE (
            SELECT count(*) FROM settlement_items AS i
            WHERE i.merchant_id = s.merchant_id AND i.settlement_id = s.settlement_id AND i.posted_version IS NULL
        ) END
        FROM settlements AS s WHERE {where}
        ORDER BY s.day DESC, s.merchant_id DESC, s.settlement_id DESC LIMIT %(limit)s
        """,
        {**params, "limit": limit},
    )
    return [(_settlement(row[:-1]), row[-1]) for row in rows]


async def list_lines(
    database: Database,
    merchant_id: str,
    days: tuple[date, date],
    booked: tuple[date, date] | None,
    after: LinePlace,
    limit: int,
) -> list[Line]:
    """The items and payouts of settlements behind a place, in order: by day, merchant and settlement; the payout first,
    then by payment and version. Those that the bank booked on some days only, unless `booked` is None."""
    rows = await database.fetch(
        """
        SELECT s.merchant_id, s.settlement_id, s.day, line.payment_id, line.version, line.kind, line.operation_key,
               line.bank_reference, line.batch_reference, line.amount_minor, s.currency, line.fee_minor,
               line.processor_fee_minor, (extract(epoch FROM line.recorded_at) * 1000)::bigint, line.booked_on,
               line.value_on, line.payout_state
        FROM settlements AS s
        CROSS JOIN LATERAL (
            SELECT i.payment_id, i.version, i.kind, i.operation_key, i.bank_reference,
                   s.processor_reference AS batch_reference, i.amount_minor, i.fee_minor, i.processor_fee_minor,
                   i.recorded_at, s.booked_on, s.value_on, NULL AS payout_state
            FROM settlement_items AS i
            WHERE i.merchant_id = s.merchant_id AND i.settlement_id = s.settlement_id
            UNION ALL
            SELECT '', 0, '', s.settlement_id || '/payout', s.payout_reference, '', s.payout_minor, 0, NULL,
                   s.created_at, s.payout_booked_on, s.payout_value_on, s.payout_state
            WHERE s.payout_state IN ('PAYING', 'PAID', 'REFUSED')
        ) AS line
        WHERE (%(merchant)s = '' OR s.merchant_id = %(merchant)s) AND s.day BETWEEN %(first)s AND %(last)s
          AND (s.day, s.merchant_id, s.settlement_id) >= (%(day)s::date, %(after_merchant)s, %(after)s)
          AND (s.day, s.merchant_id, s.settlement_id, line.payment_id, line.version)
            > (%(day)s::date, %(after_merchant)s, %(after)s, %(payment)s, %(version)s::int)
          AND (NOT %(by_booking)s OR line.booked_on BETWEEN %(booked_first)s AND %(booked_last)s)
        ORDER BY s.day, s.merchant_id, s.settlement_id, line.payment_id, line.version LIMIT %(limit)s
        """,
        {
            "merchant": merchant_id,
            "first": days[0],
            "last": days[1],
            "day": after[0],
            "after_merchant": after[1],
            "after": after[2],
            "payment": after[3],
            "version": after[4],
            "by_booking": booked is not None,
            "booked_first": booked[0] if booked else FIRST_DAY,
            "booked_last": booked[1] if booked else LAST_DAY,
            "limit": limit,
        },
    )
    return [_line(row) for row in rows]


async def list_unsettled_lines(
    database: Database, merchant_id: str, after: tuple[str, str, int], limit: int
) -> list[Line]:
    """Items that are in no settlement yet, behind (merchant, payment, version), in that order."""
    rows = await database.fetch(
        """
        SELECT merchant_id, '', NULL, payment_id, version, kind, operation_key, bank_reference, '', amount_minor,
               currency, fee_minor, NULL, (extract(epoch FROM recorded_at) * 1000)::bigint, NULL, NULL, NULL
        FROM settlement_items
        WHERE settlement_id IS NULL AND (%(merchant)s = '' OR merchant_id = %(merchant)s)
          AND (merchant_id, payment_id, version) > (%(after_merchant)s, %(payment)s, %(version)s::int)
        ORDER BY merchant_id, payment_id, version LIMIT %(limit)s
        """,
        {
            "merchant": merchant_id,
            "after_merchant": after[0],
            "payment": after[1],
            "version": after[2],
            "limit": limit,
        },
    )
    return [_line(row) for row in rows]


async def find_oldest_open(database: Database) -> tuple[int, date | None]:
    """How many settlements are not COMPLETED, and the day of the oldest."""
    ((count, day),) = await database.fetch(
        "SELECT count(*), min(day) FROM settlements WHERE state <> 'COMPLETED'"
    )
    return count, day


def _settlement(row: Sequence[Any]) -> Settlement:
    return Settlement._make([*row[:5], _STATES[row[5]], *row[6:14], _PAYOUT_STATES[row[14]], *row[15:]])


def _line(row: Sequence[Any]) -> Line:
    kind = ItemKind(row[5]) if row[5] else None
    return Line._make([*row[:5], kind, *row[6:16], _PAYOUT_STATES.get(row[16])])
