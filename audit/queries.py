"""What one database can say of itself: SQL that counts what is judged and finds what offends.

An offender is (merchant, identifier, the rest of a sentence that begins with the identifier).
"""

from __future__ import annotations

COUNT_JOURNALS = (
    "SELECT count(*) FROM (SELECT 1 FROM journal_entries GROUP BY merchant_id, journal_id) AS journals"
)
UNBALANCED_JOURNALS = """
SELECT merchant_id, journal_id, format('sums to %s %s', sum(amount_minor), currency)
FROM journal_entries GROUP BY merchant_id, journal_id, currency HAVING sum(amount_minor) <> 0
"""

COUNT_CORRECTIONS = "SELECT count(*) FROM corrections"
CORRECTIONS_APART = """
SELECT merchant_id, correction_id,
       format('is a correction that books %s, and its journal books %s', coalesce(c.booked, 'nothing'),
              coalesce(j.booked, 'nothing'))
FROM (
    SELECT merchant_id, correction_id,
           format('%s from %s to %s', amount_minor, credit_account, debit_account || ' ' || currency) AS booked
    FROM corrections
) AS c FULL JOIN (
    SELECT merchant_id, journal_id AS correction_id,
           string_agg(CASE WHEN amount_minor < 0 THEN format('%s from %s to ', -amount_minor, account)
                           WHEN line > 2 THEN format('%s %s', amount_minor, account)
                           ELSE account || ' ' || currency END, '' ORDER BY amount_minor, line) AS booked
    FROM journal_entries WHERE journal_id LIKE 'cor\\_%' GROUP BY 1, 2
) AS j USING (merchant_id, correction_id)
WHERE c.booked IS DISTINCT FROM j.booked
"""

COUNT_PAYMENTS = "SELECT count(*) FROM payments"
# What payments, settlements and corrections make of every account, by their amounts. Nothing was ever booked of a hold
# that was found after its payment had failed, which is VOIDING with a reason.
_DUE = """
SELECT merchant_id, currency, account, minor
FROM (
    SELECT merchant_id, currency,
           sum(CASE WHEN rest_released OR decline_reason <> '' THEN 0
                    WHEN state IN ('AUTHORIZED', 'INCREMENTING', 'CAPTURING', 'PARTIALLY_CAPTURED', 'REFUNDING',
                    'VOIDING') THEN amount_minor + incremented_minor - captured_minor ELSE 0 END) AS held,
           sum(captured_minor) AS captured, sum(refunded_minor) AS refunded, sum(settled_minor) AS settled,
           sum(fee_minor) AS fees
    FROM payments GROUP BY merchant_id, currency
) AS sums
CROSS JOIN LATERAL (VALUES
    ('holds', held), ('holds_control', -held), ('processor_receivable', captured - refunded - settled),
    ('merchant_payable', refunded + fees - captured), ('fees', -fees), ('cash', settled)
) AS due (account, minor)
UNION ALL
SELECT merchant_id, currency, account, minor
FROM (
    SELECT merchant_id, currency, sum(processor_fee_minor) FILTER (WHERE state <> 'SETTLING') AS kept,
           sum(payout_minor) FILTER (WHERE payout_state = 'PAYING') AS under_way,
           sum(payout_minor) FILTER (WHERE payout_state = 'PAID') AS paid
    FROM settlements GROUP BY merchant_id, currency
) AS sums
CROSS JOIN LATERAL (VALUES
    ('processor_fees', coalesce(kept, 0)), ('merchant_payable', coalesce(under_way, 0) + coalesce(paid, 0)),
    ('payouts', -coalesce(under_way, 0)), ('cash', -coalesce(kept, 0) - coalesce(paid, 0))
) AS due (account, minor)
UNION ALL
SELECT merchant_id, currency, account, sum(minor)
FROM corrections CROSS JOIN LATERAL (VALUES (debit_account, amount_minor), (credit_account, -amount_minor))
    AS due (account, minor)
GROUP BY merchant_id, currency, account
"""
ACCOUNTS_APART = f"""
SELECT merchant_id, currency,
       format('has %s in the account %s, and payments, settlements and corrections that make it %s',
              coalesce(l.minor, 0), account, coalesce(p.minor, 0))
FROM (
    SELECT merchant_id, currency, account, sum(amount_minor) AS minor FROM journal_entries GROUP BY 1, 2, 3
) AS l FULL JOIN (
    SELECT merchant_id, currency, account, sum(minor) AS minor FROM ({_DUE}) AS one GROUP BY 1, 2, 3
) AS p USING (merchant_id, currency, account)
WHERE coalesce(l.minor, 0) <> coalesce(p.minor, 0)
"""
COUNT_CURRENCIES = """
SELECT count(*) FROM (SELECT 1 FROM payments GROUP BY merchant_id, currency) AS accounts
"""
AMOUNTS_OUT_OF_BOUNDS = """
SELECT p.merchant_id, p.payment_id,
       format('is for %s %s and %s more: %s held, %s captured, %s refunded, %s settled, fees of %s', p.amount_minor,
              p.currency, incremented_minor, coalesce(h.minor, 0), captured_minor, refunded_minor, settled_minor,
              fee_minor)
FROM payments AS p LEFT JOIN (
    SELECT merchant_id, split_part(journal_id, '/', 1) AS payment_id, sum(amount_minor) AS minor
    FROM journal_entries WHERE account = 'holds' GROUP BY 1, 2
) AS h USING (merchant_id, payment_id)
WHERE p.amount_minor <= 0 OR p.incremented_minor < 0
   OR coalesce(h.minor, 0) NOT BETWEEN 0 AND p.amount_minor + p.incremented_minor - p.captured_minor
   OR p.captured_minor NOT BETWEEN 0 AND p.amount_minor + p.incremented_minor
   OR p.refunded_minor NOT BETWEEN 0 AND p.captured_minor
   OR p.settled_minor NOT BETWEEN 0 AND p.captured_minor
   OR p.fee_minor NOT BETWEEN 0 AND p.captured_minor
"""
ORDERS_PAID_TWICE = """
SELECT merchant_id, order_id, format('is paid %s times: %s', count(*), string_agg(payment_id, ', ' ORDER BY payment_id))
FROM payments
WHERE state NOT IN ('DECLINED', 'REJECTED', 'FAILED', 'VOIDED', 'EXPIRED', 'REFUNDED') AND decline_reason = ''
GROUP BY merchant_id, order_id HAVING count(*) > 1
"""

# Events of months that were taken out of the database are vouched for by their archives.
_IN_DATABASE = """EXISTS (
    SELECT FROM payment_events AS f
    WHERE f.merchant_id = coalesce(e.merchant_id, i.merchant_id)
      AND f.payment_id = coalesce(e.payment_id, i.payment_id) AND f.version = 1
)"""
# Captures and refunds at the bank, and the items that they are. Of those that were not swept yet there is none.
COUNT_ITEMS = "SELECT count(*) FROM settlement_items"
ITEMS_APART = f"""
SELECT merchant_id, payment_id,
       format('has %s in its event %s, and the item of it is %s', coalesce(e.told, 'nothing'), version,
              coalesce(i.told, 'missing'))
FROM (
    SELECT merchant_id, payment_id, payment_events.version, recorded_at,
           format('%s %s for %s in %s', CASE type WHEN 'PaymentCaptured' THEN 'CAPTURE' ELSE 'REFUND' END,
                  data->>'amount_minor', coalesce(data->>'fee_minor', '0'), data->>'processor_reference') AS told
    FROM payment_events JOIN payments USING (merchant_id, payment_id)
    WHERE type IN ('PaymentCaptured', 'PaymentRefunded') AND processor = 'bank'
) AS e FULL JOIN (
    SELECT merchant_id, payment_id, version,
           format('%s %s for %s in %s', kind, amount_minor, fee_minor, bank_reference) AS told
    FROM settlement_items
) AS i USING (merchant_id, payment_id, version)
WHERE e.told IS DISTINCT FROM i.told
  AND (i.told IS NOT NULL OR e.recorded_at < (SELECT max(swept_until) FROM settlement_sweep))
  AND {_IN_DATABASE}
"""
ITEMS_WITHOUT_SETTLEMENT = """
SELECT i.merchant_id, i.settlement_id, format('has the item %s/%s and does not exist', i.payment_id, i.version)
FROM settlement_items AS i
LEFT JOIN settlements AS s ON s.merchant_id = i.merchant_id AND s.settlement_id = i.settlement_id
WHERE i.settlement_id IS NOT NULL AND s.settlement_id IS NULL
"""
SETTLED_APART = f"""
SELECT merchant_id, payment_id,
       format('was told of the settlement %s of %s less %s in its event %s, and its items are %s less %s',
              coalesce(e.settlement_id, i.settlement_id), coalesce(e.captured, 0), coalesce(e.refunded, 0), version,
              coalesce(i.captured, 0), coalesce(i.refunded, 0))
FROM (
    SELECT merchant_id, payment_id, version, data->>'settlement_id' AS settlement_id,
           (data->>'captured_minor')::bigint AS captured, (data->>'refunded_minor')::bigint AS refunded
    FROM payment_events WHERE type = 'PaymentSettled'
) AS e FULL JOIN (
    SELECT merchant_id, payment_id, posted_version AS version, min(settlement_id) AS settlement_id,
           coalesce(sum(amount_minor) FILTER (WHERE kind = 'CAPTURE'), 0) AS captured,
           coalesce(sum(amount_minor) FILTER (WHERE kind = 'REFUND'), 0) AS refunded
    FROM settlement_items WHERE posted_version IS NOT NULL GROUP BY 1, 2, 3
) AS i USING (merchant_id, payment_id, version)
WHERE (e.settlement_id, e.captured, e.refunded) IS DISTINCT FROM (i.settlement_id, i.captured, i.refunded)
  AND {_IN_DATABASE}
"""
BALANCES_APART = """
SELECT merchant_id, currency, format('has %s carried on, and settlements that make it %s', coalesce(b.minor, 0),
                                     coalesce(s.minor, 0))
FROM (SELECT merchant_id, currency, carried_minor AS minor FROM merchant_balances) AS b
FULL JOIN (
    SELECT merchant_id, currency,
           sum(captured_minor - refunded_minor - fee_minor)
               - coalesce(sum(payout_minor) FILTER (WHERE payout_state IN ('PLANNED', 'PAYING', 'PAID')), 0) AS minor
    FROM settlements GROUP BY 1, 2
) AS s USING (merchant_id, currency)
WHERE coalesce(b.minor, 0) <> coalesce(s.minor, 0)
"""

PAYMENTS_ELSEWHERE = """
SELECT p.merchant_id, p.payment_id,
       format('is at %s, whose books are not here: it was compared with its own events and entries only', p.processor)
FROM payments AS p WHERE p.processor <> 'bank' ORDER BY p.merchant_id, p.payment_id
"""

COUNT_OPERATIONS = "SELECT count(*) FROM operations"
OPERATIONS_PER_KEY = """
SELECT merchant_id, key, format('is the key of %s operations: %s', count(*), string_agg(operation_id, ', '))
FROM operations WHERE key IS NOT NULL GROUP BY merchant_id, key HAVING count(*) > 1
"""
VOIDS_PER_AUTHORIZATION = """
SELECT merchant_id, undoes, format('was let go %s times: %s', count(*), string_agg(operation_id, ', '))
FROM operations WHERE result = 'VOIDED' GROUP BY merchant_id, undoes HAVING count(*) > 1
"""
OPERATIONS_SETTLED_TWICE = """
SELECT merchant_id, operation_id, format('was settled %s times: %s', count(*), string_agg(batch_id, ', '))
FROM settled_operations GROUP BY merchant_id, operation_id HAVING count(*) > 1
"""

COUNT_SAGAS = "SELECT count(*) FROM sagas"
UNOWNED_SAGAS = """
SELECT merchant_id, saga_id, format('is %s, and its owner (epoch %s) is gone', state, owner_epoch)
FROM sagas WHERE state IN ('RUNNING', 'COMPENSATING')
  AND CASE owner_epoch WHEN 0 THEN created_at < now() - interval '10 minutes'
           ELSE owner_epoch NOT IN (SELECT epoch FROM instances WHERE lease_until > now()) END
"""
PARKED_SAGAS = """
SELECT merchant_id, saga_id, format('is PARKED: %s %s', reason->>'step', reason->>'code')
       || CASE interventions->-1->>'kind' WHEN 'CLOSED' THEN format(' (closed by %s: %s)', interventions->-1->>'actor',
                                                                   interventions->-1->>'reason') ELSE '' END
FROM sagas WHERE state = 'PARKED'
"""

COUNT_PRODUCTS = "SELECT count(*) FROM products"
STOCK_APART = """
SELECT merchant_id, sku,
       format('has %s on hand and %s reserved, and open reservations of %s', coalesce(p.on_hand, 0),
              coalesce(p.reserved, 0), coalesce(r.pieces, 0))
FROM products AS p FULL JOIN (
    SELECT merchant_id, line.key AS sku, sum(line.value::bigint) AS pieces
    FROM reservations, jsonb_each_text(lines::jsonb) AS line WHERE state = 'RESERVED' GROUP BY 1, 2
) AS r USING (merchant_id, sku)
WHERE coalesce(p.reserved, 0) <> coalesce(r.pieces, 0) OR p.reserved NOT BETWEEN 0 AND p.on_hand
"""

# What came back of a reservation is at most what had left with it.
COUNT_RETURNS = "SELECT count(*) FROM returns"
RETURNS_APART = """
SELECT merchant_id, reservation_id,
       format('is %s for %s of %s, and %s came back', coalesce(r.state, 'unknown'),
              coalesce((r.lines->>back.sku)::bigint, 0), back.sku, back.pieces)
FROM (
    SELECT merchant_id, reservation_id, line.key AS sku, sum(line.value::bigint) AS pieces
    FROM returns, jsonb_each_text(lines) AS line GROUP BY 1, 2, 3
) AS back LEFT JOIN reservations AS r USING (merchant_id, reservation_id)
WHERE r.state IS DISTINCT FROM 'COMMITTED' OR back.pieces > coalesce((r.lines->>back.sku)::bigint, 0)
   OR back.pieces <= 0
"""


def unanswered(*methods: str) -> str:
    """Requests, of all methods but these, without a stored answer. They are carried out in one transaction: nobody
    ever sees a key that is claimed and not answered."""
    read_back = ", ".join(f"'{method}'" for method in methods)
    return f"""
SELECT merchant_id, key, format('of %s (%s) was accepted and never answered', caller, method)
FROM idempotency WHERE result IS NULL AND method NOT IN ({read_back})
"""


def without_effect(method: str, table: str, id_column: str) -> str:
    """Requests that were not refused, and made nothing. The answer is read back from what was made; a stored one that
    is no refusal begins with a zero byte."""
    return f"""
SELECT i.merchant_id, i.key, format('of %s (%s) was accepted for %s, which does not exist', i.caller, i.method,
                                    i.resource_id)
FROM idempotency AS i
LEFT JOIN {table} AS made ON made.merchant_id = i.merchant_id AND made.{id_column} = i.resource_id
WHERE i.method = '{method}' AND (i.result IS NULL OR substr(i.result, 1, 1) = '\\x00') AND made.{id_column} IS NULL
"""


# A saga that was begun with a placed order has one accepted request; its answer is read back from it.
LATER_ANSWERED_APART = """
SELECT s.merchant_id, s.saga_id,
       format('(%s) was begun by (%s, %s), and its accepted requests are %s', s.kind, s.caller, s.key,
              coalesce(string_agg(i.method || ' of (' || i.caller || ', ' || i.key || ')', ', '), 'none'))
FROM sagas AS s LEFT JOIN idempotency AS i ON i.merchant_id = s.merchant_id AND i.resource_id = s.saga_id
WHERE s.kind <> 'place'
GROUP BY s.merchant_id, s.saga_id
HAVING count(i.key) <> 1 OR bool_or(i.result IS NOT NULL) OR min(i.caller) <> s.caller OR min(i.key) <> s.key
    OR min(i.method) <> CASE s.kind WHEN 'dispatch' THEN 'DispatchOrder' WHEN 'cancel' THEN 'CancelOrder'
                                    ELSE 'ReturnOrder' END
"""

# A request that waits for the processor may wait for its answer; whose payment has settled, may not. What a payment
# waits for is told by its newest event but the mark of an unknown outcome.
UNANSWERED_OPERATIONS = """
SELECT i.merchant_id, i.key, format('of %s (%s) was accepted and never answered', i.caller, i.method)
FROM idempotency AS i
WHERE i.result IS NULL AND i.method <> 'AuthorizePayment' AND NOT EXISTS (
    SELECT FROM payments AS p JOIN payment_events AS e
      ON e.merchant_id = p.merchant_id AND e.payment_id = p.payment_id
     AND e.version = p.version - CASE p.unknown_outcome WHEN '' THEN 0 ELSE 1 END
    WHERE p.merchant_id = i.merchant_id AND p.state IN ('VOIDING', 'INCREMENTING', 'CAPTURING', 'REFUNDING')
      AND i.method = CASE e.type
          WHEN 'PaymentVoidRequested' THEN 'VoidPayment' WHEN 'PaymentCaptureRequested' THEN 'CapturePayment'
          WHEN 'PaymentRefundRequested' THEN 'RefundPayment'
          WHEN 'PaymentIncrementRequested' THEN 'IncrementAuthorization' END
      AND e.data->>'idempotency_key' = i.key AND e.data->>'caller' = i.caller
)
"""

COUNT_ANNOUNCEMENTS = "SELECT count(*) FROM outbox"


FORGOTTEN = """
SELECT '', 'outbox', format('has forgotten the first %s announcements', forgotten)
FROM (
    SELECT coalesce((SELECT min(first_position) FROM event_batches), position + 1) - 1 AS forgotten FROM event_log
) AS log
WHERE forgotten > 0
"""
# Announcements are forgotten in the order of their positions (EVENTS_KEEP_DAYS), so none that was made after the oldest
# batch that is kept was numbered; an hour more for clocks that differ and for transactions that take their time.
_KEPT_SINCE = """
SELECT CASE WHEN coalesce((SELECT min(first_position) FROM event_batches), position + 1) = 1
            THEN timestamptz '-infinity'
            ELSE coalesce((SELECT min(numbered_at) FROM event_batches), swept_at) + interval '1 hour' END AS kept_since
FROM event_log
"""


def announced_apart(due: str) -> str:
    """What `due` (merchant, id, type, at: one row per announcement that is due, and when it was made) and the outbox do
    not agree upon. What was made before the oldest announcement that is kept may have been forgotten; NULL for when
    nobody knows."""
    return f"""
SELECT merchant_id, id, format('was announced as %s %s times, %s due', type, coalesce(told.times, 0),
                               coalesce(due.times, 0))
FROM (
    SELECT merchant_id, id, type, count(*) AS times,
           count(*) FILTER (WHERE kept_since = '-infinity' OR at > kept_since) AS kept
    FROM ({due}) AS one CROSS JOIN ({_KEPT_SINCE}) AS log GROUP BY 1, 2, 3
) AS due
FULL JOIN (
    SELECT merchant_id, aggregate_id AS id, type, count(*) AS times FROM outbox
    WHERE NOT starts_with(type, 'paymesh.choreography.') GROUP BY 1, 2, 3
) AS told USING (merchant_id, id, type)
WHERE coalesce(told.times, 0) NOT BETWEEN coalesce(due.kept, 0) AND coalesce(due.times, 0)
"""


SAGAS_ANNOUNCED_APART = announced_apart("""
SELECT merchant_id, order_id AS id, 'paymesh.orchestrator.v1.' || CASE
    WHEN state = 'PARKED' THEN 'OrderParked'
    WHEN kind = 'place' AND state = 'COMPLETED' THEN 'OrderPlaced'
    WHEN kind = 'place' THEN 'OrderCompensated'
    WHEN kind = 'dispatch' AND state = 'COMPLETED' THEN 'OrderDispatched'
    WHEN kind = 'dispatch' THEN 'OrderDispatchRefused'
    WHEN kind = 'cancel' THEN 'OrderCancelled'
    WHEN kind = 'return' AND state = 'COMPLETED' THEN 'OrderReturned'
    ELSE 'OrderReturnRefused' END AS type, ended_at AS at
FROM sagas WHERE state IN ('COMPLETED', 'COMPENSATED', 'PARKED')
UNION ALL
-- What a person had tried again had been parked before.
SELECT merchant_id, order_id, 'paymesh.orchestrator.v1.OrderParked', NULL
FROM sagas CROSS JOIN LATERAL json_array_elements(interventions) AS one
WHERE interventions::text <> '[]' AND one->>'kind' = 'RETRIED'
""")
PAYMENTS_ANNOUNCED_APART = announced_apart("""
SELECT merchant_id, payment_id AS id,
       'paymesh.payment.v1.' || CASE WHEN type IN ('PaymentRejected', 'PaymentFailed') THEN 'PaymentDeclined' ELSE
       type END AS type, recorded_at AS at
FROM payment_events
WHERE type IN ('PaymentAuthorized', 'PaymentDeclined', 'PaymentRejected', 'PaymentFailed', 'PaymentVoided',
               'PaymentAuthorizationIncremented', 'PaymentCaptured', 'PaymentRefunded', 'PaymentExpired',
               'PaymentSettled')
""")
RESERVATIONS_ANNOUNCED_APART = announced_apart("""
SELECT merchant_id, reservation_id AS id, 'paymesh.inventory.v1.StockReserved' AS type, created_at AS at
FROM reservations
UNION ALL
SELECT merchant_id, reservation_id, 'paymesh.inventory.v1.' || CASE state
    WHEN 'RELEASED' THEN 'StockReleased' ELSE 'StockCommitted' END, ended_at
FROM reservations WHERE state <> 'RESERVED'
UNION ALL
SELECT merchant_id, return_id, 'paymesh.inventory.v1.StockReturned', created_at FROM returns
""")
SHIPMENTS_ANNOUNCED_APART = announced_apart("""
SELECT merchant_id, shipment_id AS id, 'paymesh.shipping.v1.ShipmentCreated' AS type, created_at AS at FROM shipments
UNION ALL
SELECT merchant_id, shipment_id, 'paymesh.shipping.v1.' || CASE state
    WHEN 'CANCELLED' THEN 'ShipmentCancelled' ELSE 'ShipmentDispatched' END, ended_at
FROM shipments WHERE state <> 'CREATED'
""")

COUNT_POSITIONS = "SELECT position FROM event_log"
# What came after the relay has looked is on its way; what it has passed over is lost. (A deleted announcement is old.)
UNNUMBERED = """
SELECT o.merchant_id, o.aggregate_id, format('was announced as %s and was passed over by the relay', o.type)
FROM outbox AS o CROSS JOIN event_log AS log
LEFT JOIN (SELECT unnest(outbox_ids) AS outbox_id FROM event_batches) AS numbered USING (outbox_id)
WHERE o.outbox_id <= log.seen_id AND numbered.outbox_id IS NULL AND o.outbox_id <> ALL (log.holes)
"""
NUMBERED_TWICE = """
SELECT '', outbox_id::text, format('is the number of an announcement with %s positions', count(*))
FROM (SELECT unnest(outbox_ids) AS outbox_id FROM event_batches) AS numbered GROUP BY outbox_id HAVING count(*) > 1
"""
POSITIONS_APART = """
SELECT '', first_position::text, format('begins a batch of %s events that ends at %s, behind one that ends at %s',
                                        cardinality(outbox_ids), last_position, before)
FROM (SELECT *, lag(last_position) OVER (ORDER BY first_position) AS before FROM event_batches) AS batches
WHERE last_position - first_position + 1 <> cardinality(outbox_ids) OR before + 1 <> first_position
"""
INBOXES = "SELECT listener, source, position FROM inbox"
ASIDE = "SELECT count(*) FILTER (WHERE parked_at IS NULL) FROM events_set_aside"
PARKED_EVENTS = """
SELECT merchant_id, aggregate_id,
       format('has an event %s of %s that %s could not apply: %s', position, source, listener, reason)
FROM events_set_aside WHERE parked_at IS NOT NULL
"""

WAITING_SAGAS = "SELECT count(*) FROM sagas WHERE state IN ('RUNNING', 'COMPENSATING')"
WAITING_PAYMENTS = (
    "SELECT count(*) FROM payments"
    " WHERE state IN ('AUTHORIZING', 'VOIDING', 'INCREMENTING', 'CAPTURING', 'REFUNDING')"
)
OPEN_SETTLEMENTS = "SELECT count(*) FROM settlements WHERE state <> 'COMPLETED'"
