"""All SQL of shipping. Nothing is decided here.

Lock order: shipments, ascending.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import orjson

from services.kit.db import Database, Transaction
from services.shipping.domain import Address, Shipment, ShipmentKey, State

_SHIPMENT = """merchant_id, shipment_id, order_id, address::text, state, tracking_number,
               (extract(epoch FROM created_at) * 1000)::bigint"""


async def insert_shipments(tx: Transaction, shipments: Sequence[Shipment]) -> set[str]:
    """Record new shipments; returns the ids of those whose order had none. Of two for one order the first
    wins."""
    # Sorted by order, so that two sets that share orders wait for each other in one direction only.
    ordered = sorted(shipments, key=lambda s: (s.merchant_id, s.order_id))
    rows = await tx.fetch(
        """
        INSERT INTO shipments (merchant_id, shipment_id, order_id, address, tracking_number, created_at)
        SELECT merchant_id, shipment_id, order_id, address::json, tracking_number,
               timestamptz 'epoch' + created_at_ms * interval '1 millisecond'
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(orders)s::text[], %(addresses)s::text[],
                    %(tracking_numbers)s::text[], %(created_at_ms)s::bigint[])
             AS new (merchant_id, shipment_id, order_id, address, tracking_number, created_at_ms)
        ON CONFLICT DO NOTHING
        RETURNING shipment_id
        """,
        {
            "merchants": [s.merchant_id for s in ordered],
            "ids": [s.shipment_id for s in ordered],
            "orders": [s.order_id for s in ordered],
            "addresses": [orjson.dumps(s.address).decode() for s in ordered],
            "tracking_numbers": [s.tracking_number for s in ordered],
            "created_at_ms": [s.created_at_ms for s in ordered],
        },
    )
    return {row[0] for row in rows}


async def lock_shipments(tx: Transaction, keys: Iterable[ShipmentKey]) -> dict[ShipmentKey, Shipment]:
    """Lock shipments, ascending; unknown ones are missing from the result."""
    ordered = sorted(set(keys))
    if not ordered:
        return {}
    rows = await tx.fetch(
        f"""
        SELECT {_SHIPMENT} FROM shipments
        WHERE (merchant_id, shipment_id) IN (SELECT * FROM unnest(%(merchants)s::text[], %(ids)s::text[]))
        ORDER BY merchant_id, shipment_id
        FOR NO KEY UPDATE
        """,
        {"merchants": [m for m, _ in ordered], "ids": [s for _, s in ordered]},
    )
    return {(row[0], row[1]): _shipment(row) for row in rows}


def save_ended(tx: Transaction, shipments: Sequence[Shipment]) -> None:
    """Write the end of locked shipments."""
    if not shipments:
        return
    tx.later(
        """
        UPDATE shipments AS s SET state = ended.state, ended_at = now()
        FROM unnest(%(merchants)s::text[], %(ids)s::text[], %(states)s::text[])
             AS ended (merchant_id, shipment_id, state)
        WHERE s.merchant_id = ended.merchant_id AND s.shipment_id = ended.shipment_id
        """,
        {
            "merchants": [s.merchant_id for s in shipments],
            "ids": [s.shipment_id for s in shipments],
            "states": [str(s.state) for s in shipments],
        },
    )


async def find_shipment(database: Database, merchant_id: str, shipment_id: str) -> Shipment | None:
    """One shipment."""
    rows = await database.fetch(
        f"""
        SELECT {_SHIPMENT} FROM shipments
        WHERE merchant_id = %(merchant_id)s AND shipment_id = %(shipment_id)s
        """,
        {"merchant_id": merchant_id, "shipment_id": shipment_id},
    )
    return _shipment(rows[0]) if rows else None


def _shipment(row: Sequence[object]) -> Shipment:
    merchant_id, shipment_id, order_id, address, state, tracking_number, created_at_ms = row
    fields = orjson.loads(str(address))
    return Shipment(
        str(merchant_id),
        str(shipment_id),
        str(order_id),
        Address(**(fields | {"street_lines": tuple(fields["street_lines"])})),
        State(str(state)),
        str(tracking_number),
        int(str(created_at_ms)),
    )
