-- Errors in the bank's statements, injected on demand. They change what statements say and never what the bank has done.
-- Rows are never changed.
CREATE TABLE statement_errors (
    merchant_id    text        NOT NULL,
    day            date        NOT NULL,
    seed           bigint      NOT NULL,
    number         integer     NOT NULL,
    kind           text        NOT NULL,
    line_id        text        NOT NULL,
    booked_minor   bigint      NOT NULL,
    currency       char(3)     NOT NULL,
    shown_minor    bigint      NOT NULL,
    shown_currency char(3)     NOT NULL,
    shown_on       date        NOT NULL,
    created_at     timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, day, seed, number),
    CONSTRAINT one_error_per_booking UNIQUE (merchant_id, line_id),
    CONSTRAINT known_kind CHECK (kind IN ('MISSING', 'DOUBLE', 'WRONG_AMOUNT', 'LATE', 'UNKNOWN', 'OTHER_CURRENCY')),
    CONSTRAINT not_shown_before_its_day CHECK (shown_on >= day),
    CONSTRAINT a_missing_one_is_not_shown CHECK (kind <> 'MISSING' OR shown_minor = 0),
    CONSTRAINT an_unknown_one_was_not_booked CHECK (kind <> 'UNKNOWN' OR booked_minor = 0)
);

CREATE INDEX statement_errors_by_day ON statement_errors (day);

COMMENT ON COLUMN statement_errors.line_id IS 'operation or payout that it is about; of an UNKNOWN one an invented id';
COMMENT ON COLUMN statement_errors.number IS 'among the errors of the day and seed, of all merchants, from 1';

-- Bookings one by one: every settled capture and refund net of its fee, and every payout.
CREATE VIEW booked_lines AS
SELECT so.merchant_id, s.currency, so.operation_id AS line_id, o.kind, o.key, s.batch_id,
       s.reference AS batch_reference,
       CASE WHEN o.kind = 'CAPTURE' THEN so.amount_minor ELSE -so.amount_minor END - so.fee_minor AS amount_minor,
       so.fee_minor, s.booked_on, s.value_on, s.created_at
FROM settled_operations AS so
JOIN settlements AS s ON s.merchant_id = so.merchant_id AND s.batch_id = so.batch_id
JOIN operations AS o ON o.merchant_id = so.merchant_id AND o.operation_id = so.operation_id
UNION ALL
SELECT merchant_id, currency, payout_id, 'PAYOUT', key, '', reference, -amount_minor, 0, booked_on, value_on, created_at
FROM payouts WHERE state = 'PAID';

-- What errors do to the balances that statements show, by account and day.
CREATE VIEW statement_shifts AS
SELECT merchant_id, currency, day, -booked_minor AS amount_minor
FROM statement_errors WHERE kind IN ('MISSING', 'WRONG_AMOUNT', 'LATE', 'OTHER_CURRENCY')
UNION ALL
SELECT merchant_id, shown_currency, shown_on, shown_minor
FROM statement_errors WHERE kind <> 'MISSING';
