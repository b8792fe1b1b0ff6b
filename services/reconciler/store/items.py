"""Payment's items, copied page by page: each page and the place behind it in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

from services.kit.db import Database, Transaction
from services.reconciler.domain.item import Item


class Place(NamedTuple):
    """How far a merchant's items are copied."""

    complete_until: date
    """Nothing of this day or earlier will change."""
    page_from: date | None
    """The day that a copy under way began with."""
    page_cursor: str
    """Payment's cursor behind the last page of that copy."""


async def find_place(database: Database, merchant_id: str) -> Place:
    """How far the copy is; at the very beginning for a merchant that is new."""
    rows = await database.fetch(
        "SELECT complete_until, page_from, page_cursor FROM books WHERE merchant_id = %(merchant)s",
        {"merchant": merchant_id},
    )
    return Place(*rows[0]) if rows else Place(date(1970, 1, 1), None, "")


async def insert_page(
    tx: Transaction, merchant_id: str, items: Sequence[Item], page_from: date, page_cursor: str
) -> int:
    """Save a page and the place behind it; returns how many items were new. One that is there stays as it is."""
    new = 0
    if items:
        rows = await tx.fetch(_INSERT_ITEMS, _columns(merchant_id, items))
        new = len(rows)
    tx.later(
        """
        INSERT INTO books (merchant_id, page_from, page_cursor) VALUES (%(merchant)s, %(page_from)s::date, %(cursor)s)
        ON CONFLICT (merchant_id) DO UPDATE SET page_from = excluded.page_from, page_cursor = excluded.page_cursor
        """,
        {"merchant": merchant_id, "page_from": page_from.isoformat(), "cursor": page_cursor},
    )
    return new


def save_complete(tx: Transaction, merchant_id: str, complete_until: date) -> None:
    """A copy has come to its end; it never goes back."""
    tx.later(
        """
        UPDATE books SET page_from = NULL, page_cursor = '', copied_at = now(),
                         complete_until = greatest(complete_until, %(until)s::date)
        WHERE merchant_id = %(merchant)s
        """,
        {"merchant": merchant_id, "until": complete_until.isoformat()},
    )


_INSERT_ITEMS = """
WITH new AS (
    INSERT INTO items (merchant_id, item_id, kind, payment_id, settlement_id, bank_reference, batch_reference,
                       amount_minor, fee_minor, currency, booked_on, value_on)
    SELECT %(merchant)s, * FROM unnest(
        %(ids)s::text[], %(kinds)s::text[], %(payments)s::text[], %(settlements)s::text[], %(references)s::text[],
        %(batches)s::text[], %(amounts)s::bigint[], %(fees)s::bigint[], %(currencies)s::text[], %(booked)s::date[],
        %(values)s::date[])
    ON CONFLICT DO NOTHING
    RETURNING item_no
)
INSERT INTO open_items (merchant_id, item_no) SELECT %(merchant)s, item_no FROM new RETURNING item_no
"""


def _columns(merchant_id: str, items: Sequence[Item]) -> dict[str, object]:
    return {
        "merchant": merchant_id,
        "ids": [i.item_id for i in items],
        "kinds": [str(i.kind) for i in items],
        "payments": [i.payment_id for i in items],
        "settlements": [i.settlement_id for i in items],
        "references": [i.bank_reference for i in items],
        "batches": [i.batch_reference for i in items],
        "amounts": [i.amount_minor for i in items],
        "fees": [i.fee_minor for i in items],
        "currencies": [i.currency for i in items],
        "booked": [i.booked_on.isoformat() for i in items],
        "values": [i.value_on.isoformat() for i in items],
    }
