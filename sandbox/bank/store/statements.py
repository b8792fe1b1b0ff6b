"""What statements are made of, and the errors in them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, NamedTuple

from psycopg.errors import SerializationFailure

from sandbox.bank.domain.statements import Booked, ErrorKind, StatementError
from sandbox.bank.statements.statement import Kind
from services.kit.db import Database, Transaction

_BOOKED = (
    "merchant_id, currency, line_id, kind, key, batch_id, batch_reference, amount_minor, fee_minor, booked_on,"
    " value_on"
)
_ERROR = (
    "merchant_id, day, seed, number, kind, line_id, booked_minor, currency, shown_minor, shown_currency, shown_on,"
    " created_at"
)


class Account(NamedTuple):
    """An account on a day."""

    merchant_id: str
    currency: str
    opening_minor: int
    closing_minor: int


async def list_accounts(
    database: Database, day: date, until: datetime, merchant_id: str, after: tuple[str, str], limit: int
) -> list[Account]:
    """Accounts that statements of a day show something of, ascending by merchant and currency; of one merchant all
    that he has. Nothing that was written after `until` counts."""
    rows = await database.fetch(
        """
        SELECT merchant_id, currency,
               coalesce(sum(amount_minor) FILTER (WHERE day < %(day)s::date), 0)::bigint,
               sum(amount_minor)::bigint
        FROM (
            SELECT merchant_id, currency, booked_on AS day, amount_minor, created_at FROM account_lines
            UNION ALL
            SELECT merchant_id, currency, day, amount_minor, %(until)s::timestamptz FROM statement_shifts
        ) AS moved
        WHERE day <= %(day)s::date AND created_at <= %(until)s::timestamptz
          AND (%(merchant)s::text = '' OR merchant_id = %(merchant)s::text)
          AND (merchant_id, currency) > (%(after_merchant)s::text, %(after_currency)s::bpchar)
        GROUP BY merchant_id, currency
        HAVING bool_or(day = %(day)s::date) OR %(merchant)s::text <> ''
        ORDER BY merchant_id, currency
        LIMIT %(limit)s::bigint
        """,
        {
            "day": day,
            "until": until,
            "merchant": merchant_id,
            "after_merchant": after[0],
            "after_currency": after[1],
            "limit": limit,
        },
    )
    return [Account(*row) for row in rows]


async def list_bookings(
    database: Database, account: Account, day: date, until: datetime, after: tuple[str, str], limit: int
) -> list[Booked]:
    """Bookings of an account and day, ascending by settlement and id, those behind (settlement, id)."""
    rows = await database.fetch(
        f"""
        SELECT {_BOOKED} FROM booked_lines
        WHERE merchant_id = %(merchant)s::text AND currency = %(currency)s::bpchar AND booked_on = %(day)s::date
          AND created_at <= %(until)s::timestamptz
          AND (batch_id, line_id) > (%(after_batch)s::text, %(after_line)s::text)
        ORDER BY batch_id, line_id
        LIMIT %(limit)s::bigint
        """,
        {
            "merchant": account.merchant_id,
            "currency": account.currency,
            "day": day,
            "until": until,
            "after_batch": after[0],
            "after_line": after[1],
            "limit": limit,
        },
    )
    return [_booked(row) for row in rows]


async def list_sound_bookings(tx: Transaction, day: date, merchant_id: str) -> list[Booked]:
    """All bookings of a day that have no error, ascending by merchant and id."""
    rows = await tx.fetch(
        f"""
        SELECT {_BOOKED} FROM booked_lines AS b
        WHERE booked_on = %(day)s::date AND (%(merchant)s::text = '' OR merchant_id = %(merchant)s::text)
          AND NOT EXISTS (
              SELECT FROM statement_errors AS e WHERE e.merchant_id = b.merchant_id AND e.line_id = b.line_id
          )
        ORDER BY merchant_id, line_id
        """,
        {"day": day, "merchant": merchant_id},
    )
    return [_booked(row) for row in rows]


async def find_bookings(database: Database, merchant_id: str, line_ids: Sequence[str]) -> dict[str, Booked]:
    """Bookings of a merchant by id; unknown ones are missing."""
    rows = await database.fetch(
        f"""
        SELECT {_BOOKED} FROM booked_lines
        WHERE merchant_id = %(merchant)s::text AND line_id = ANY(%(ids)s::text[])
        """,
        {"merchant": merchant_id, "ids": list(line_ids)},
    )
    return {row[2]: _booked(row) for row in rows}


async def find_errors(tx: Transaction, day: date, seed: int) -> list[StatementError]:
    """The errors of a day and seed, by number."""
    rows = await tx.fetch(
        f"SELECT {_ERROR} FROM statement_errors WHERE day = %(day)s::date AND seed = %(seed)s::bigint ORDER BY number",
        {"day": day, "seed": seed},
    )
    return [_error(row) for row in rows]


async def list_shown_errors(database: Database, merchant_id: str, day: date) -> list[StatementError]:
    """Errors that change a merchant's statements of a day, by day, seed and number."""
    rows = await database.fetch(
        f"""
        SELECT {_ERROR} FROM statement_errors
        WHERE merchant_id = %(merchant)s::text AND (day = %(day)s::date OR shown_on = %(day)s::date)
        ORDER BY day, seed, number
        """,
        {"merchant": merchant_id, "day": day},
    )
    return [_error(row) for row in rows]


async def list_errors(
    database: Database, day: date | None, merchant_id: str, after: tuple[date, int, int], limit: int
) -> list[StatementError]:
    """Errors by day, seed and number, those behind `after`; of one day, of one merchant, or all."""
    rows = await database.fetch(
        f"""
        SELECT {_ERROR} FROM statement_errors
        WHERE (%(day)s::date IS NULL OR day = %(day)s::date)
          AND (%(merchant)s::text = '' OR merchant_id = %(merchant)s::text)
          AND (day, seed, number) > (%(after_day)s::date, %(after_seed)s::bigint, %(after_number)s::int)
        ORDER BY day, seed, number
        LIMIT %(limit)s::bigint
        """,
        {
            "day": day,
            "merchant": merchant_id,
            "after_day": after[0],
            "after_seed": after[1],
            "after_number": after[2],
            "limit": limit,
        },
    )
    return [_error(row) for row in rows]


async def insert_errors(tx: Transaction, errors: Sequence[StatementError]) -> None:
    """Write errors that were drawn a moment ago. Raises a serialization failure, upon which the transaction starts
    over, when another call took one of the bookings meanwhile."""
    if not errors:
        return
    ordered = sorted(errors, key=lambda error: (error.merchant_id, error.line_id))
    written = await tx.execute(
        f"""
        INSERT INTO statement_errors ({_ERROR})
        SELECT * FROM unnest(%(merchants)s::text[], %(days)s::date[], %(seeds)s::bigint[], %(numbers)s::int[],
                             %(kinds)s::text[], %(lines)s::text[], %(booked)s::bigint[], %(currencies)s::text[],
                             %(shown)s::bigint[], %(shown_currencies)s::text[], %(shown_on)s::date[],
                             %(created)s::timestamptz[])
        ON CONFLICT DO NOTHING
        """,
        {
            "merchants": [e.merchant_id for e in ordered],
            "days": [e.day for e in ordered],
            "seeds": [e.seed for e in ordered],
            "numbers": [e.number for e in ordered],
            "kinds": [e.kind.value for e in ordered],
            "lines": [e.line_id for e in ordered],
            "booked": [e.booked_minor for e in ordered],
            "currencies": [e.currency for e in ordered],
            "shown": [e.shown_minor for e in ordered],
            "shown_currencies": [e.shown_currency for e in ordered],
            "shown_on": [e.shown_on for e in ordered],
            "created": [e.created_at for e in ordered],
        },
    )
    if written < len(ordered):
        raise SerializationFailure("a booking was taken while the errors were drawn")


def _booked(row: tuple[Any, ...]) -> Booked:
    return Booked(row[0], row[1], row[2], Kind(row[3]), *row[4:])


def _error(row: tuple[Any, ...]) -> StatementError:
    return StatementError._make((*row[:4], ErrorKind(row[4]), *row[5:]))
