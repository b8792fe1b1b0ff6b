"""All SQL of inventory. Nothing is decided here.

Lock order: reservations, then products, each ascending.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import orjson

from services.inventory.domain import NewProduct, Product, ProductKey, Reservation, State, StockReturn
from services.kit.db import Database, Transaction

_PRODUCT = "merchant_id, sku, name, on_hand, reserved"
_RESERVATION = """merchant_id, reservation_id, order_id, lines::text, state,
    (extract(epoch FROM created_at) * 1000)::bigint"""

_RETURN = """merchant_id, return_id, reservation_id, order_id, lines::text,
    (extract(epoch FROM created_at) * 1000)::bigint"""


async def insert_products(tx: Transaction, products: Sequence[NewProduct]) -> set[ProductKey]:
    """Create products; returns the keys of those that did not exist before."""
    rows = await tx.fetch(
        """
        INSERT INTO products (merchant_id, sku, name, on_hand)
        SELECT * FROM unnest(%(merchants)s::text[], %(skus)s::text[], %(names)s::text[], %(quantities)s::bigint[])
        ON CONFLICT DO NOTHING
        RETURNING merchant_id, sku
        """,
        {
            "merchants": [p.merchant_id for p in products],
            "skus": [p.sku for p in products],
            "names": [p.name for p in products],
            "quantities": [p.initial_quantity for p in products],
        },
    )
    return {(merchant, sku) for merchant, sku in rows}


async def lock_products(tx: Transaction, keys: Iterable[ProductKey]) -> dict[ProductKey, Product]:
    """Lock products, ascending; unknown ones are missing from the result."""
    ordered = sorted(set(keys))
    if not ordered:
        return {}
    rows = await tx.fetch(
        f"""
        SELECT {_PRODUCT} FROM products
        WHERE (merchant_id, sku) IN (SELECT * FROM unnest(%(merchants)s::text[], %(skus)s::text[]))
        ORDER BY merchant_id, sku
        FOR NO KEY UPDATE
        """,
        {"merchants": [m for m, _ in ordered], "skus": [s for _, s in ordered]},
    )
    return {(row[0], row[1]): Product(*row) for row in rows}


def save_stock(
    tx: Transaction, on_hand: Mapping[ProductKey, int], reserved: Mapping[ProductKey, int]
) -> None:
    """Add differences, in pieces, to locked products: once per product."""
    keys = sorted(on_hand.keys() | reserved.keys())
    if not keys:
        return
    tx.later(
        """
        UPDATE products AS p SET on_hand = p.on_hand + d.on_hand, reserved = p.reserved + d.reserved
        FROM unnest(%(merchants)s::text[], %(skus)s::text[], %(on_hand)s::bigint[], %(reserved)s::bigint[])
             AS d (merchant_id, sku, on_hand, reserved)
        WHERE p.merchant_id = d.merchant_id AND p.sku = d.sku
        """,
        {
            "merchants": [m for m, _ in keys],
            "skus": [s for _, s in keys],
            "on_hand": [on_hand.get(key, 0) for key in keys],
            "reserved": [reserved.get(key, 0) for key in keys],
        },
    )


async def insert_reservations(
    tx: Transaction, reservations: Sequence[Reservation]
) -> tuple[set[str], dict[ProductKey, Product]]:
    """Record reservations and lock what they are for. Returns the ids of those whose order had none, and the products;
    see `lock_products`. Both travel together."""
    ordered = sorted(reservations, key=lambda r: (r.merchant_id, r.order_id))
    recorded = tx.later(
        """
        INSERT INTO reservations (merchant_id, reservation_id, order_id, lines, created_at)
        SELECT merchant_id, reservation_id, order_id, lines::jsonb, to_timestamp(created_at_ms / 1000.0)
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(orders)s::text[], %(lines)s::text[],
                    %(created)s::bigint[]) AS new (merchant_id, reservation_id, order_id, lines, created_at_ms)
        ON CONFLICT DO NOTHING
        RETURNING reservation_id
        """,
        {
            "merchants": [r.merchant_id for r in ordered],
            "ids": [r.reservation_id for r in ordered],
            "orders": [r.order_id for r in ordered],
            "lines": [orjson.dumps(r.lines).decode() for r in ordered],
            "created": [r.created_at_ms for r in ordered],
        },
    )
    products = await lock_products(tx, ((r.merchant_id, sku) for r in reservations for sku in r.lines))
    return {row[0] for row in await recorded}, products


def delete_reservations(tx: Transaction, reservations: Sequence[Reservation]) -> None:
    """Take back records of this very transaction."""
    if not reservations:
        return
    tx.later(
        """
        DELETE FROM reservations AS r
        USING unnest(%(merchants)s::text[], %(ids)s::text[]) AS refused (merchant_id, reservation_id)
        WHERE r.merchant_id = refused.merchant_id AND r.reservation_id = refused.reservation_id
        """,
        {
            "merchants": [r.merchant_id for r in reservations],
            "ids": [r.reservation_id for r in reservations],
        },
    )


async def lock_reservations(
    tx: Transaction, keys: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Reservation]:
    """Lock reservations by (merchant, reservation id), ascending; unknown ones are missing from the result."""
    ordered = sorted(set(keys))
    if not ordered:
        return {}
    rows = await tx.fetch(
        f"""
        SELECT {_RESERVATION} FROM reservations
        WHERE (merchant_id, reservation_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        ORDER BY merchant_id, reservation_id
        FOR NO KEY UPDATE
        """,
        {"merchants": [m for m, _ in ordered], "ids": [r for _, r in ordered]},
    )
    return {(row[0], row[1]): _reservation(row) for row in rows}


def save_ended(tx: Transaction, reservations: Sequence[Reservation]) -> None:
    """Write the end of locked reservations."""
    if not reservations:
        return
    tx.later(
        """
        UPDATE reservations AS r SET state = ended.state, ended_at = now()
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(states)s::text[])
             AS ended (merchant_id, reservation_id, state)
        WHERE r.merchant_id = ended.merchant_id AND r.reservation_id = ended.reservation_id
        """,
        {
            "merchants": [r.merchant_id for r in reservations],
            "ids": [r.reservation_id for r in reservations],
            "states": [str(r.state) for r in reservations],
        },
    )


async def list_returns(tx: Transaction, keys: Iterable[tuple[str, str]]) -> list[StockReturn]:
    """All returns of reservations, by (merchant, reservation id). Whoever has locked those may add to them."""
    ordered = sorted(set(keys))
    if not ordered:
        return []
    rows = await tx.fetch(
        f"""
        SELECT {_RETURN} FROM returns
        WHERE (merchant_id, reservation_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        """,
        {"merchants": [m for m, _ in ordered], "ids": [r for _, r in ordered]},
    )
    return [_stock_return(row) for row in rows]


async def find_returns(tx: Transaction, keys: Sequence[tuple[str, str]]) -> list[StockReturn]:
    """Returns by (merchant, return id)."""
    rows = await tx.fetch(
        f"""
        SELECT {_RETURN} FROM returns
        WHERE (merchant_id, return_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        """,
        {"merchants": [m for m, _ in keys], "ids": [r for _, r in keys]},
    )
    return [_stock_return(row) for row in rows]


def insert_returns(tx: Transaction, returns: Sequence[StockReturn]) -> None:
    """Record returns of locked reservations."""
    if not returns:
        return
    tx.later(
        """
        INSERT INTO returns (merchant_id, return_id, reservation_id, order_id, lines, created_at)
        SELECT merchant_id, return_id, reservation_id, order_id, lines::jsonb,
               timestamptz 'epoch' + created_at_ms * interval '1 millisecond'
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(reservations)s::text[], %(orders)s::text[],
                    %(lines)s::text[], %(created)s::bigint[])
             AS new (merchant_id, return_id, reservation_id, order_id, lines, created_at_ms)
        """,
        {
            "merchants": [r.merchant_id for r in returns],
            "ids": [r.return_id for r in returns],
            "reservations": [r.reservation_id for r in returns],
            "orders": [r.order_id for r in returns],
            "lines": [orjson.dumps(r.lines).decode() for r in returns],
            "created": [r.created_at_ms for r in returns],
        },
    )


async def find_product(database: Database, merchant_id: str, sku: str) -> Product | None:
    """One product."""
    rows = await database.fetch(
        f"SELECT {_PRODUCT} FROM products WHERE merchant_id = %(merchant_id)s AND sku = %(sku)s",
        {"merchant_id": merchant_id, "sku": sku},
    )
    return Product(*rows[0]) if rows else None


async def list_products(database: Database, merchant_id: str, after_sku: str, limit: int) -> list[Product]:
    """A merchant's products by ascending sku, those behind `after_sku`."""
    rows = await database.fetch(
        f"""
        SELECT {_PRODUCT} FROM products WHERE merchant_id = %(merchant_id)s AND sku > %(after)s
        ORDER BY sku LIMIT %(limit)s
        """,
        {"merchant_id": merchant_id, "after": after_sku, "limit": limit},
    )
    return [Product(*row) for row in rows]


async def find_reservation(database: Database, merchant_id: str, reservation_id: str) -> Reservation | None:
    """One reservation."""
    rows = await database.fetch(
        f"""
        SELECT {_RESERVATION} FROM reservations
        WHERE merchant_id = %(merchant_id)s AND reservation_id = %(reservation_id)s
        """,
        {"merchant_id": merchant_id, "reservation_id": reservation_id},
    )
    return _reservation(rows[0]) if rows else None


def _reservation(row: Sequence[object]) -> Reservation:
    merchant_id, reservation_id, order_id, lines, state, created_at_ms = row
    pieces = dict(sorted(orjson.loads(str(lines)).items()))
    return Reservation(
        str(merchant_id),
        str(reservation_id),
        str(order_id),
        pieces,
        State(str(state)),
        int(str(created_at_ms)),
    )


def _stock_return(row: Sequence[object]) -> StockReturn:
    merchant_id, return_id, reservation_id, order_id, lines, created_at_ms = row
    pieces = dict(sorted(orjson.loads(str(lines)).items()))
    return StockReturn(
        str(merchant_id),
        str(return_id),
        str(reservation_id),
        str(order_id),
        pieces,
        int(str(created_at_ms)),
    )
