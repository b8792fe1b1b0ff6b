"""What the edge's database can say of itself. Like `queries`: an offender is (merchant, identifier, the rest of a
sentence that begins with the identifier)."""

from __future__ import annotations

COUNT_KEYS = "SELECT count(*) FROM api_keys"
KEYS_OF_SEVERAL = """
SELECT min(merchant_id), min(key_id),
       format('has a secret that %s keys have: %s', count(*), string_agg(merchant_id || '/' || key_id, ', '
              ORDER BY merchant_id, key_id))
FROM api_keys GROUP BY hash HAVING count(*) > 1
"""

COUNT_DELIVERIES = "SELECT count(*) FROM webhook_deliveries"
TOLD_TWICE = """
SELECT merchant_id, message_id, format('is to be told to %s %s times: %s', endpoint_id, count(*),
                                       string_agg(delivery_id, ', ' ORDER BY delivery_id))
FROM webhook_deliveries GROUP BY merchant_id, endpoint_id, message_id HAVING count(*) > 1
"""
DELIVERIES_APART = """
SELECT d.merchant_id, d.delivery_id,
       CASE WHEN m.message_id IS NULL THEN format('is of the message %s, which does not exist', d.message_id)
            WHEN e.endpoint_id IS NULL THEN format('is for the endpoint %s, which does not exist', d.endpoint_id)
            WHEN coalesce(a.attempts, 0) <> d.attempts OR coalesce(a.last, 0) <> d.attempts
            THEN format('was attempted %s times, and there are %s attempts up to %s', d.attempts,
                        coalesce(a.attempts, 0), coalesce(a.last, 0))
            ELSE 'is DELIVERED, and no attempt was answered well' END
FROM webhook_deliveries AS d
LEFT JOIN webhook_messages AS m ON m.merchant_id = d.merchant_id AND m.message_id = d.message_id
LEFT JOIN webhook_endpoints AS e ON e.merchant_id = d.merchant_id AND e.endpoint_id = d.endpoint_id
LEFT JOIN (
    SELECT merchant_id, delivery_id, count(*) AS attempts, max(number) AS last,
           bool_or(status BETWEEN 200 AND 299) AS good
    FROM webhook_attempts GROUP BY 1, 2
) AS a ON a.merchant_id = d.merchant_id AND a.delivery_id = d.delivery_id
WHERE m.message_id IS NULL OR e.endpoint_id IS NULL
   OR coalesce(a.attempts, 0) <> d.attempts OR coalesce(a.last, 0) <> d.attempts
   OR (d.state = 'DELIVERED' AND a.good IS NOT TRUE)
"""
UNSIGNED_ENDPOINTS = """
SELECT e.merchant_id, e.endpoint_id, format('is %s, and has no secret to sign with', e.state)
FROM webhook_endpoints AS e LEFT JOIN (
    SELECT DISTINCT merchant_id, endpoint_id FROM webhook_secrets WHERE valid_until IS NULL OR valid_until > now()
) AS s ON s.merchant_id = e.merchant_id AND s.endpoint_id = e.endpoint_id
WHERE e.state <> 'DELETED' AND s.endpoint_id IS NULL
"""
