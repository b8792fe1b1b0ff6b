"""What can be wrong with what is announced."""

from __future__ import annotations

from tests.breakages.breakage import Breakage

ANNOUNCEMENTS = (
    Breakage(
        "a return was put back and not announced",
        {"inventory": "DELETE FROM outbox WHERE type LIKE '%StockReturned';"},
        {"announced-once"},
        "was announced as paymesh.inventory.v1.StockReturned 0 times, 1 due",
    ),
    Breakage(
        "a dispatch was not announced",
        {"orchestrator": "DELETE FROM outbox WHERE aggregate_id = '{dispatched.order_id}';"},
        {"announced-once"},
        "{dispatched.order_id} was announced as paymesh.orchestrator.v1.OrderDispatched 0 times, 1 due",
    ),
    *(
        Breakage(
            f"{database} announced nothing",
            {database: f"DELETE FROM outbox WHERE aggregate_id = '{{good.{identifier}}}';"},
            {"announced-once"},
            f"{{good.{identifier}}} was announced as paymesh.{database}.v1.{event} 0 times, 1 due",
        )
        for database, identifier, event in (
            ("orchestrator", "order_id", "OrderPlaced"),
            ("payment", "payment_id", "PaymentAuthorized"),
            ("inventory", "reservation_id", "StockReserved"),
            ("shipping", "shipment_id", "ShipmentCreated"),
        )
    ),
    Breakage(
        "an end was announced twice",
        {
            "orchestrator": "INSERT INTO outbox (merchant_id, aggregate_id, type, payload)"
            " SELECT merchant_id, aggregate_id, type, payload FROM outbox WHERE aggregate_id = '{good.order_id}';"
        },
        {"announced-once"},
        "{good.order_id} was announced as paymesh.orchestrator.v1.OrderPlaced 2 times, 1 due",
    ),
    Breakage(
        "the relay has passed over an announcement",
        {"orchestrator": "UPDATE event_batches SET outbox_ids = outbox_ids[2:] WHERE first_position = 1;"},
        {"passed-on-once"},
        "and was passed over by the relay",
    ),
    Breakage(
        "a listener has applied what never was",
        {"shipping": "UPDATE inbox SET position = position + 1000000;"},
        {"applied-once"},
        "shipping has applied events of",
    ),
)
