"""What can be wrong with the answers to accepted requests."""

from __future__ import annotations

from tests.breakages.breakage import Breakage

ANSWERS = (
    Breakage(
        "a dispatch was begun by nobody",
        {"orchestrator": "DELETE FROM idempotency WHERE key = 'dispatch-1';"},
        {"answered-once"},
        "(dispatch) was begun by (anonymous, dispatch-1), and its accepted requests are none",
    ),
    Breakage(
        "a cancellation was accepted and not made",
        {
            "orchestrator": "INSERT INTO idempotency (merchant_id, caller, method, key, fingerprint, resource_id)"
            " VALUES ('{merchant}', 'shop', 'CancelOrder', 'lost', '', 'saga_lost');"
        },
        {"answered-once"},
        "lost of shop (CancelOrder) was accepted for saga_lost, which does not exist",
    ),
    Breakage(
        "an order was answered like another",
        {
            "orchestrator": "UPDATE idempotency SET result = '\\x00{answer_of_declined}'"
            " WHERE resource_id = '{good.saga_id}';"
        },
        {"answered-once"},
        "{good.order_id} has state COMPLETED, and was answered COMPENSATED",
    ),
    Breakage(
        "an order was placed and refused",
        {"orchestrator": "UPDATE idempotency SET result = '\\x01' WHERE resource_id = '{good.saga_id}';"},
        {"answered-once"},
        "{good.order_id} is COMPLETED, but its stored answer is",
    ),
    Breakage(
        "an answer cannot be read",
        {"orchestrator": "UPDATE idempotency SET result = '\\x00ff' WHERE resource_id = '{good.saga_id}';"},
        {"answered-once"},
        "{good.order_id} is COMPLETED, but its stored answer is Error parsing message",
    ),
    Breakage(
        "an order cannot be read back",
        {"orchestrator": "UPDATE sagas SET input = '\\xff' WHERE saga_id = '{good.saga_id}';"},
        {"answered-once"},
        "{good.order_id} cannot be read back: Error parsing message",
    ),
    Breakage(
        "two accepted requests had one effect",
        {
            "orchestrator": "INSERT INTO idempotency (merchant_id, caller, method, key, fingerprint, resource_id,"
            " result) SELECT merchant_id, caller, method, 'twin', fingerprint, resource_id, result FROM idempotency"
            " WHERE resource_id = '{good.saga_id}';"
        },
        {"answered-once"},
        "{good.order_id} was begun by",
    ),
    Breakage(
        "an accepted request had no effect",
        {
            "orchestrator": "INSERT INTO idempotency (merchant_id, caller, method, key, fingerprint, resource_id)"
            " VALUES ('{merchant}', 'shop', 'PlaceOrder', 'lost', '', 'saga_lost');"
        },
        {"answered-once"},
        "ord_lost does not exist, but the key 'lost' of shop was accepted for it",
    ),
    Breakage(
        "a participant's reservation has no request",
        {
            "inventory": "DELETE FROM idempotency WHERE resource_id = '{unserved.reservation_id}';",
        },
        {"answered-once"},
        "{unserved.order_id} has {unserved.reservation_id}, made by 0 accepted requests",
    ),
    Breakage(
        "a void was never answered",
        {"payment": "UPDATE idempotency SET result = NULL WHERE key = '{unserved.saga_id}/authorize/undo';"},
        {"answered-once"},
        "{unserved.saga_id}/authorize/undo of orchestrator (VoidPayment) was accepted and never answered",
    ),
    Breakage(
        "a release was never answered",
        {"inventory": "UPDATE idempotency SET result = NULL WHERE key = '{unserved.saga_id}/reserve/undo';"},
        {"answered-once"},
        "{unserved.saga_id}/reserve/undo of orchestrator (ReleaseStock) was accepted and never answered",
    ),
    Breakage(
        "a payment was made and refused",
        {"payment": "UPDATE idempotency SET result = '\\x01' WHERE resource_id = '{good.payment_id}';"},
        {"answered-once"},
        "{good.order_id} has {good.payment_id} (AUTHORIZED), and the answer to '{good.saga_id}/authorize' is",
    ),
    Breakage(
        "a payment was accepted and not made",
        {
            "payment": "INSERT INTO idempotency (merchant_id, caller, method, key, fingerprint, resource_id)"
            " VALUES ('{merchant}', 'shop', 'AuthorizePayment', 'lost', '', 'pay_lost');"
        },
        {"answered-once"},
        "lost of shop (AuthorizePayment) was accepted for pay_lost, which does not exist",
    ),
    Breakage(
        "a shipment was accepted and not made",
        {
            "shipping": "INSERT INTO idempotency (merchant_id, caller, method, key, fingerprint, resource_id)"
            " VALUES ('{merchant}', 'shop', 'CreateShipment', 'lost', '', 'shp_lost');"
        },
        {"answered-once"},
        "lost of shop (CreateShipment) was accepted for shp_lost, which does not exist",
    ),
)
