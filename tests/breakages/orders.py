"""What can be wrong with orders and their parts."""

from __future__ import annotations

from tests.breakages.breakage import Breakage

ORDERS = (
    Breakage(
        "a saga has no living owner",
        {
            "orchestrator": "UPDATE sagas SET state = 'RUNNING', ended_at = NULL WHERE saga_id = '{good.saga_id}';"
            "UPDATE idempotency SET result = NULL WHERE resource_id = '{good.saga_id}';"
            "DELETE FROM outbox WHERE aggregate_id = '{good.order_id}';"
        },
        {"sagas-are-driven"},
        "{good.saga_id} is RUNNING, and its owner (epoch 1) is gone",
    ),
    Breakage(
        "a completed order's shipment was called off",
        {
            "shipping": "UPDATE shipments SET state = 'CANCELLED', ended_at = now()"
            " WHERE shipment_id = '{good.shipment_id}';"
            "INSERT INTO outbox (merchant_id, aggregate_id, type, payload) VALUES"
            " ('{merchant}', '{good.shipment_id}', 'paymesh.shipping.v1.ShipmentCancelled', '');"
        },
        {"orders-and-their-parts", "dispatched-orders"},
        "{good.order_id} is COMPLETED, but of its shipment there is {good.shipment_id} CANCELLED",
    ),
    Breakage(
        "a completed order's stock is not what was ordered",
        {
            "inventory": """UPDATE reservations SET lines = '{{"mug": 1}}'
            WHERE reservation_id = '{good.reservation_id}';
            UPDATE products SET reserved = reserved - 2 WHERE sku = 'pot';"""
        },
        {"orders-and-their-parts"},
        "but {good.reservation_id} is for {{'mug': 1}}",
    ),
    Breakage(
        "a compensated order still has its stock",
        {
            "inventory": "UPDATE reservations SET state = 'RESERVED', ended_at = NULL"
            " WHERE reservation_id = '{unserved.reservation_id}';"
            "UPDATE products SET reserved = reserved + (SELECT (lines->>sku)::bigint FROM reservations"
            " WHERE reservation_id = '{unserved.reservation_id}') WHERE sku IN ('mug', 'pot');"
            "DELETE FROM outbox WHERE aggregate_id = '{unserved.reservation_id}' AND type LIKE '%Released';"
        },
        {"orders-and-their-parts"},
        "{unserved.order_id} is COMPENSATED, but {unserved.reservation_id} is RESERVED",
    ),
    Breakage(
        "a dispatched order's money was never captured",
        {
            "payment": "UPDATE payment_events SET data = jsonb_set(data::jsonb, '{{caller}}', '\"somebody\"')"
            " WHERE payment_id = '{dispatched.payment_id}' AND type = 'PaymentCaptureRequested';"
        },
        {"dispatched-orders"},
        "{dispatched.order_id} is dispatched, but of {dispatched.payment_id} 0 of",
    ),
    Breakage(
        "a dispatched order's stock is still in the house",
        {
            "inventory": "UPDATE reservations SET state = 'RESERVED', ended_at = NULL"
            " WHERE reservation_id = '{dispatched.reservation_id}';"
            "UPDATE products SET on_hand = on_hand + (SELECT (lines->>sku)::bigint FROM reservations"
            " WHERE reservation_id = '{dispatched.reservation_id}'), reserved = reserved + (SELECT"
            " (lines->>sku)::bigint FROM reservations WHERE reservation_id = '{dispatched.reservation_id}')"
            " WHERE sku IN ('mug', 'pot');"
            "DELETE FROM outbox WHERE aggregate_id = '{dispatched.reservation_id}' AND type LIKE '%Committed';"
        },
        {"dispatched-orders"},
        "{dispatched.order_id} is dispatched, but {dispatched.reservation_id} is RESERVED",
    ),
    Breakage(
        "goods left that nobody has sent",
        {
            "shipping": "UPDATE shipments SET state = 'DISPATCHED', ended_at = now()"
            " WHERE shipment_id = '{good.shipment_id}';"
            "INSERT INTO outbox (merchant_id, aggregate_id, type, payload) VALUES"
            " ('{merchant}', '{good.shipment_id}', 'paymesh.shipping.v1.ShipmentDispatched', '');"
        },
        {"dispatched-orders"},
        "{good.order_id} is not dispatched, but {good.shipment_id} is DISPATCHED",
    ),
    Breakage(
        "the orchestrator forgot a dispatch",
        {
            "orchestrator": "DELETE FROM sagas WHERE kind = 'dispatch' AND order_id = '{dispatched.order_id}';"
            "DELETE FROM idempotency WHERE key = 'dispatch-1';"
            "DELETE FROM outbox WHERE aggregate_id = '{dispatched.order_id}' AND type LIKE '%Dispatched';"
        },
        {"dispatched-orders"},
        "{dispatched.order_id} is not dispatched, but {dispatched.reservation_id} is COMMITTED",
    ),
    Breakage(
        "a cancelled order still has its stock",
        {
            "inventory": "UPDATE reservations SET state = 'RESERVED', ended_at = NULL"
            " WHERE reservation_id = '{cancelled.reservation_id}';"
            "UPDATE products SET reserved = reserved + (SELECT (lines->>sku)::bigint FROM reservations"
            " WHERE reservation_id = '{cancelled.reservation_id}') WHERE sku IN ('mug', 'pot');"
            "DELETE FROM outbox WHERE aggregate_id = '{cancelled.reservation_id}' AND type LIKE '%Released';"
        },
        {"cancelled-orders"},
        "{cancelled.order_id} is cancelled, but {cancelled.reservation_id} is RESERVED",
    ),
    Breakage(
        "a cancelled order was dispatched as well",
        {
            "orchestrator": "UPDATE sagas SET order_id = '{cancelled.order_id}'"
            " WHERE kind = 'dispatch' AND order_id = '{dispatched.order_id}';"
            "UPDATE outbox SET aggregate_id = '{cancelled.order_id}'"
            " WHERE aggregate_id = '{dispatched.order_id}' AND type LIKE '%Dispatched';"
        },
        {"cancelled-orders", "dispatched-orders"},
        "{cancelled.order_id} is cancelled, but",
    ),
    Breakage(
        "goods came back that no return tells of",
        {
            "orchestrator": "DELETE FROM sagas WHERE kind = 'return' AND order_id = '{returned.order_id}';"
            "DELETE FROM idempotency WHERE key = 'return-7';"
            "DELETE FROM outbox WHERE aggregate_id = '{returned.order_id}' AND type LIKE '%Returned';"
        },
        {"returned-orders"},
        "{returned.order_id} has returns for 0, and 300 of {returned.payment_id} were refunded for them",
    ),
    Breakage(
        "a return was refunded in part",
        {
            "payment": "UPDATE payment_events SET data = jsonb_set(data::jsonb, '{{amount_minor}}', '299')"
            " WHERE payment_id = '{returned.payment_id}' AND type = 'PaymentRefundRequested';"
        },
        {"returned-orders"},
        "{returned.order_id} has returns for 300, and 299 of {returned.payment_id} were refunded for them",
    ),
    Breakage(
        "a return cannot be read back",
        {
            "orchestrator": "UPDATE sagas SET input = '\\xff'"
            " WHERE kind = 'return' AND order_id = '{returned.order_id}';"
        },
        {"returned-orders", "answered-once"},
        "{returned.order_id} cannot be read back by saga_",
    ),
    Breakage(
        "the orchestrator forgot an order",
        {
            "orchestrator": "DELETE FROM sagas WHERE saga_id = '{good.saga_id}';"
            "DELETE FROM idempotency WHERE resource_id = '{good.saga_id}';"
            "DELETE FROM outbox WHERE aggregate_id = '{good.order_id}';"
        },
        {"no-strays"},
        "{good.order_id} is unknown to the orchestrator, but {good.reservation_id} is RESERVED",
    ),
)
