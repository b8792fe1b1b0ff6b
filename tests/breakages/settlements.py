"""What can be wrong with settlements and payouts."""

from __future__ import annotations

from tests.breakages.breakage import Breakage

SETTLEMENTS = (
    Breakage(
        "a capture was never settled",
        {
            "payment": "DELETE FROM settlement_items WHERE payment_id = '{dispatched.payment_id}';",
        },
        {"settled-once", "bank-settlements"},
        "{dispatched.payment_id} has CAPTURE 1001 for 0",
    ),
    Breakage(
        "a settlement has an amount that was not captured",
        {
            "payment": "UPDATE settlement_items SET amount_minor = amount_minor + 1"
            " WHERE payment_id = '{dispatched.payment_id}';"
        },
        {"settled-once", "bank-settlements"},
        "and payment has not",
    ),
    Breakage(
        "a payment was never told of its settlement",
        {
            "payment": "UPDATE settlement_items SET posted_version = NULL"
            " WHERE payment_id = '{dispatched.payment_id}';"
        },
        {"settled-once"},
        "{dispatched.payment_id} was told of the settlement stl_",
    ),
    Breakage(
        "items are in a settlement that does not exist",
        {
            "payment": "UPDATE settlement_items SET settlement_id = 'stl_ghost'"
            " WHERE payment_id = '{dispatched.payment_id}';"
        },
        {"settled-once", "bank-settlements"},
        "stl_ghost has the item {dispatched.payment_id}/",
    ),
    Breakage(
        "more is carried on than settlements say",
        {"payment": "UPDATE merchant_balances SET carried_minor = carried_minor + 5 WHERE currency = 'USD';"},
        {"settled-once"},
        "USD has 5 carried on",
    ),
    Breakage(
        "a settlement's sum was changed",
        {
            "payment": "ALTER TABLE settlements DROP CONSTRAINT what_is_due_is_paid;"
            "UPDATE settlements SET captured_minor = captured_minor + 7 WHERE currency = 'USD';"
        },
        {"settled-once", "bank-settlements"},
        "and items that make it (",
    ),
    Breakage(
        "the bank settled less than it took",
        {
            "bank": "UPDATE settled_operations SET amount_minor = amount_minor - 1 WHERE operation_id ="
            " (SELECT operation_id FROM operations WHERE key = '{dispatched.payment_id}/capture/3');"
        },
        {"bank-settlements"},
        "at the bank, which moved",
    ),
    Breakage(
        "the bank paid a merchant out behind our back",
        {
            "bank": "INSERT INTO payouts SELECT merchant_id, 'pout_ghost', 'ghost', fingerprint, 'stl_ghost',"
            " amount_minor, currency, state, reason, booked_on, value_on, created_at FROM payouts LIMIT 1;"
        },
        {"bank-settlements"},
        "stl_ghost is unknown to payment, but the bank has paid out",
    ),
    Breakage(
        "the bank never paid the merchant out",
        {"bank": "DELETE FROM payouts;"},
        {"bank-settlements"},
        "and at the bank nothing",
    ),
)
