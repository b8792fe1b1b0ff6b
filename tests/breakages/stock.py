"""What can be wrong with stock."""

from __future__ import annotations

from tests.breakages.breakage import Breakage

STOCK = (
    Breakage(
        "a product has more reserved than its reservations say",
        {"inventory": "UPDATE products SET reserved = reserved + 1 WHERE sku = 'mug';"},
        {"stock"},
        "mug has 99960 on hand",
    ),
    Breakage(
        "a product is oversold",
        {
            "inventory": "ALTER TABLE products DROP CONSTRAINT never_oversold;"
            "UPDATE products SET on_hand = 3 WHERE sku = 'pot';"
        },
        {"stock"},
        "pot has 3 on hand",
    ),
    Breakage(
        "more came back than was sold",
        {
            "inventory": """UPDATE returns SET lines = '{{"pot": 3}}' WHERE order_id = '{returned.order_id}';"""
        },
        {"returned-stock", "returned-orders"},
        "{returned.reservation_id} is COMMITTED for 2 of pot, and 3 came back",
    ),
)
