"""What can be wrong with payments: their events, the ledger, the bank and fraud."""

from __future__ import annotations

from tests.breakages.breakage import Breakage

PAYMENTS = (
    Breakage(
        "half of a journal is gone",
        {"payment": "DELETE FROM journal_entries WHERE journal_id = '{good.payment_id}/2' AND line = 2;"},
        {"journals-balance", "accounts", "payments-are-their-events"},
        "{good.payment_id}/2",
    ),
    Breakage(
        "a balanced journal was booked for nothing",
        {
            "payment": "INSERT INTO journal_entries (merchant_id, journal_id, line, account, currency, amount_minor)"
            " VALUES ('{merchant}', '{unserved.payment_id}/9', 1, 'holds', '{unserved.amount.currency}', 5),"
            " ('{merchant}', '{unserved.payment_id}/9', 2, 'holds_control', '{unserved.amount.currency}', -5);"
        },
        {"accounts", "payments-are-their-events"},
        "{unserved.amount.currency}",
    ),
    Breakage(
        "a hold was booked twice as high",
        {
            "payment": "ALTER TABLE journal_entries DISABLE TRIGGER USER;"
            "UPDATE journal_entries SET amount_minor = 2 * amount_minor WHERE journal_id = '{good.payment_id}/2';"
        },
        {"amounts-in-bounds", "accounts", "payments-are-their-events"},
        "{good.payment_id}",
    ),
    Breakage(
        "a payment's row was changed",
        {"payment": "UPDATE payments SET fraud_score_milli = 7 WHERE payment_id = '{good.payment_id}';"},
        {"payments-are-their-events"},
        "{good.payment_id} has fraud_score_milli '7'",
    ),
    Breakage(
        "an event was changed",
        {
            "payment": "UPDATE payment_events SET data = jsonb_set(data::jsonb, '{{card_token}}', '5')"
            " WHERE payment_id = '{good.payment_id}' AND version = 1;"
            "UPDATE payment_events SET data = jsonb_set(data::jsonb, '{{amount_minor}}', '5')"
            " WHERE payment_id = '{good.payment_id}' AND version = 1;"
        },
        {"payments-are-their-events"},
        "{good.payment_id} has amount",
    ),
    Breakage(
        "an event is missing",
        {"payment": "DELETE FROM payment_events WHERE payment_id = '{unserved.payment_id}' AND version = 3;"},
        {"payments-are-their-events"},
        "{unserved.payment_id} has events [1, 2, 4]",
    ),
    Breakage(
        "the last event is missing",
        {"payment": "DELETE FROM payment_events WHERE payment_id = '{unserved.payment_id}' AND version = 4;"},
        {"payments-are-their-events", "announced-once"},
        "{unserved.payment_id} has state 'VOIDED'",
    ),
    Breakage(
        "an order has two live payments",
        {
            "payment": "DROP INDEX one_live_payment_per_order;"
            "UPDATE payments SET order_id = '{good.order_id}' WHERE payment_id ="
            " (SELECT max(payment_id) FROM payments WHERE state = 'AUTHORIZED');"
        },
        {"amounts-in-bounds", "payments-are-their-events", "orders-and-their-parts"},
        "{good.order_id} is paid 2 times",
    ),
    Breakage(
        "the bank carried one key out twice",
        {
            "bank": "ALTER TABLE operations DROP CONSTRAINT one_operation_per_key;"
            "INSERT INTO operations SELECT merchant_id, 'auth_twin', kind, key, fingerprint, undoes, amount_minor,"
            " currency, card_token, reference, result, auth_code, decline_reason, created_at"
            " FROM operations WHERE key = '{good.payment_id}/authorize';"
        },
        {"one-operation-per-key", "bank-books"},
        "{good.payment_id}/authorize is the key of 2 operations",
    ),
    Breakage(
        "the bank let one hold go twice",
        {
            "bank": "DROP INDEX one_effective_void_per_authorization;"
            "INSERT INTO operations SELECT merchant_id, 'void_twin', kind, 'twin', fingerprint, undoes, amount_minor,"
            " currency, card_token, reference, result, auth_code, decline_reason, created_at"
            " FROM operations WHERE key = '{unserved.payment_id}/void/3';"
        },
        {"one-operation-per-key"},
        "was let go 2 times",
    ),
    Breakage(
        "a payout was booked and not made",
        {
            "payment": "UPDATE settlements SET payout_state = 'REFUSED' WHERE currency = 'USD';",
        },
        {"settled-once", "bank-settlements", "accounts"},
        "has a payout that is REFUSED",
    ),
    Breakage(
        "the bank settled an operation twice",
        {
            "bank": "ALTER TABLE settled_operations DROP CONSTRAINT settled_operations_pkey;"
            "INSERT INTO settled_operations SELECT * FROM settled_operations WHERE operation_id ="
            " (SELECT operation_id FROM operations WHERE key = '{dispatched.payment_id}/capture/3');"
        },
        {"one-operation-per-key", "bank-settlements"},
        "was settled 2 times",
    ),
    Breakage(
        "the bank holds another amount",
        {
            "bank": "UPDATE operations SET amount_minor = amount_minor + 1"
            " WHERE key = '{good.payment_id}/authorize';"
        },
        {"bank-books"},
        "{good.payment_id} has amount",
    ),
    Breakage(
        "the bank never heard of an authorization",
        {"bank": "DELETE FROM operations WHERE key = '{good.payment_id}/authorize';"},
        {"bank-books"},
        "{good.payment_id} is AUTHORIZED, and its authorization at the bank is ABSENT",
    ),
    Breakage(
        "the bank holds money that no payment knows of",
        {
            "bank": "INSERT INTO operations SELECT merchant_id, 'auth_ghost', kind, 'pay_ghost/authorize', fingerprint,"
            " undoes, amount_minor, currency, card_token, 'pay_ghost', result, auth_code, decline_reason, created_at"
            " FROM operations WHERE key = '{good.payment_id}/authorize';"
        },
        {"bank-books"},
        "pay_ghost is unknown to payment, but the bank has auth_ghost",
    ),
    Breakage(
        "the bank still holds what we believe it let go",
        {"bank": "DELETE FROM operations WHERE key = '{unserved.payment_id}/void/3';"},
        {"bank-books"},
        "{unserved.payment_id} is VOIDED, and its authorization at the bank is APPROVED",
    ),
    Breakage(
        "the bank let go of what we believe it holds",
        {
            "bank": "INSERT INTO operations SELECT merchant_id, 'void_stray', 'VOID', 'stray', fingerprint,"
            " operation_id, amount_minor, currency, '', '', 'VOIDED', '', '', created_at"
            " FROM operations WHERE key = '{good.payment_id}/authorize';"
        },
        {"bank-books"},
        "{good.payment_id} is AUTHORIZED, and its authorization at the bank is VOIDED",
    ),
    Breakage(
        "fraud had declined what reached the bank",
        {"fraud": "UPDATE assessments SET decision = 'decline' WHERE payment_id = '{good.payment_id}';"},
        {"fraud-first"},
        "{good.payment_id} reached the bank",
    ),
    Breakage(
        "fraud was never asked",
        {"fraud": "DELETE FROM assessments WHERE payment_id = '{good.payment_id}';"},
        {"fraud-first"},
        "{good.payment_id} reached the bank",
    ),
)
