"""What can be wrong with what merchants are told, and with their keys."""

from __future__ import annotations

from tests.breakages.breakage import Breakage

WEBHOOKS = (
    Breakage(
        "an endpoint is told of one event twice",
        {
            "edge": "ALTER TABLE webhook_deliveries DROP CONSTRAINT told_once;"
            "INSERT INTO webhook_deliveries (merchant_id, delivery_id, endpoint_id, message_id, retry_until)"
            " SELECT merchant_id, 'dlv_ghost', endpoint_id, message_id, retry_until FROM webhook_deliveries;"
        },
        {"told-once"},
        "evt_audit is to be told to whe_audit 2 times: dlv_audit, dlv_ghost",
    ),
    Breakage(
        "a delivery lost its message",
        {"edge": "DELETE FROM webhook_messages;"},
        {"told-once"},
        "dlv_audit is of the message evt_audit, which does not exist",
    ),
    Breakage(
        "a delivery was never answered well",
        {"edge": "UPDATE webhook_attempts SET status = 500;"},
        {"told-once"},
        "dlv_audit is DELIVERED, and no attempt was answered well",
    ),
    Breakage(
        "an attempt was deleted",
        {"edge": "DELETE FROM webhook_attempts;"},
        {"told-once"},
        "dlv_audit was attempted 1 times, and there are 0 attempts up to 0",
    ),
    Breakage(
        "two merchants have one key",
        {
            "edge": "INSERT INTO api_keys (merchant_id, key_id, hash, access)"
            " SELECT 'mer_other', 'key_other', hash, access FROM api_keys WHERE key_id = 'key_audit';"
        },
        {"one-owner-per-secret"},
        "has a secret that 2 keys have: {merchant}/key_audit, mer_other/key_other",
    ),
    Breakage(
        "an endpoint has nothing to sign with",
        {"edge": "DELETE FROM webhook_secrets;"},
        {"one-owner-per-secret"},
        "whe_audit is ENABLED, and has no secret to sign with",
    ),
)
