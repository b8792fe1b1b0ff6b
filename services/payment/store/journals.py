"""Journals, balances, and what merchants are charged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.kit.db import Database, Transaction
from services.kit.money import Money
from services.payment.domain import FeePlan
from services.payment.ledger import Entry

_BALANCES = """
SELECT account, currency, sum(amount_minor)::bigint,
       coalesce(sum(amount_minor) FILTER (WHERE amount_minor > 0), 0)::bigint, count(*)
FROM journal_entries
"""


class AccountRow(NamedTuple):
    """An account with its sums."""

    account: str
    currency: str
    balance_minor: int
    debits_minor: int
    entries: int


class EntryRow(NamedTuple):
    """An entry as it is stored."""

    entry: Entry
    posted_at_ms: int


def insert_entries(tx: Transaction, entries: Sequence[Entry]) -> None:
    """Post journals; the database refuses one that does not balance."""
    if not entries:
        return
    tx.later(
        """
        INSERT INTO journal_entries (merchant_id, journal_id, line, account, currency, amount_minor)
        SELECT * FROM unnest(%(merchants)s::text[], %(journals)s::text[], %(lines)s::smallint[], %(accounts)s::text[],
                             %(currencies)s::text[], %(amounts)s::bigint[])
        """,
        {
            "merchants": [e.merchant_id for e in entries],
            "journals": [e.journal_id for e in entries],
            "lines": [e.line for e in entries],
            "accounts": [e.account for e in entries],
            "currencies": [e.amount.currency for e in entries],
            "amounts": [e.amount.amount_minor for e in entries],
        },
    )


async def find_account(database: Database, merchant_id: str, account: str, currency: str) -> AccountRow:
    """One account; with zeros when nothing was ever booked on it."""
    rows = await database.fetch(
        f"""
        {_BALANCES}
        WHERE merchant_id = %(merchant)s AND account = %(account)s AND currency = %(currency)s
        GROUP BY account, currency
        """,
        {"merchant": merchant_id, "account": account, "currency": currency},
    )
    return AccountRow(*rows[0]) if rows else AccountRow(account, currency, 0, 0, 0)


async def list_accounts(database: Database, merchant_id: str) -> list[AccountRow]:
    """All accounts of a merchant that have entries, by currency and name."""
    rows = await database.fetch(
        f"{_BALANCES} WHERE merchant_id = %(merchant)s GROUP BY account, currency ORDER BY currency, account",
        {"merchant": merchant_id},
    )
    return [AccountRow(*row) for row in rows]


async def list_entries(
    database: Database, merchant_id: str, account: str, payment_id: str, after: tuple[str, int], limit: int
) -> list[EntryRow]:
    """A merchant's entries behind (journal, line), by journal and line; those of one account and of one payment, unless
    these are empty."""
    rows = await database.fetch(
        """
        SELECT merchant_id, journal_id, line, account, amount_minor, currency,
               (extract(epoch FROM posted_at) * 1000)::bigint
        FROM journal_entries
        WHERE merchant_id = %(merchant)s AND (journal_id, line) > (%(journal)s, %(line)s)
          AND (%(account)s = '' OR account = %(account)s)
          AND (%(payment)s = '' OR split_part(journal_id, '/', 1) = %(payment)s)
          AND (%(payment)s = '' OR journal_id >= %(payment)s)
        ORDER BY journal_id, line LIMIT %(limit)s
        """,
        {
            "merchant": merchant_id,
            "account": account,
            "payment": payment_id,
            "journal": after[0],
            "line": after[1],
            "limit": limit,
        },
    )
    return [EntryRow(Entry(row[0], row[1], row[2], row[3], Money(row[4], row[5])), row[6]) for row in rows]


async def list_fee_plans(tx: Transaction, merchants: Iterable[str]) -> dict[tuple[str, str], FeePlan]:
    """The plans of merchants by (merchant, currency)."""
    rows = await tx.fetch(
        "SELECT merchant_id, currency, basis_points, fixed_minor FROM fee_plans"
        " WHERE merchant_id = ANY (%(merchants)s::text[])",
        {"merchants": sorted(set(merchants))},
    )
    return {(row[0], row[1]): FeePlan(row[2], row[3]) for row in rows}


async def find_fee_plan(database: Database, merchant_id: str, currency: str) -> FeePlan | None:
    """One plan."""
    rows = await database.fetch(
        "SELECT basis_points, fixed_minor FROM fee_plans"
        " WHERE merchant_id = %(merchant)s AND currency = %(currency)s",
        {"merchant": merchant_id, "currency": currency},
    )
    return FeePlan(*rows[0]) if rows else None


def save_fee_plans(tx: Transaction, plans: dict[tuple[str, str], FeePlan]) -> None:
    """Set plans by (merchant, currency)."""
    # Sorted, so that two sets that share plans wait for each other in one direction only.
    ordered = sorted(plans.items())
    tx.later(
        """
        INSERT INTO fee_plans (merchant_id, currency, basis_points, fixed_minor)
        SELECT * FROM unnest(%(merchants)s::text[], %(currencies)s::text[], %(points)s::int[], %(fixed)s::bigint[])
        ON CONFLICT (merchant_id, currency) DO UPDATE
        SET basis_points = excluded.basis_points, fixed_minor = excluded.fixed_minor, updated_at = now()
        """,
        {
            "merchants": [key[0] for key, _ in ordered],
            "currencies": [key[1] for key, _ in ordered],
            "points": [plan.basis_points for _, plan in ordered],
            "fixed": [plan.fixed_minor for _, plan in ordered],
        },
    )
