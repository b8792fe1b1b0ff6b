-- What the bank has paid out: settlements, the operations in each, and payouts to merchants. Rows are never changed.
--
-- There is one account for each merchant and currency. Settlements are booked on it, and payouts are taken off it;
-- `account_lines` is that account as a statement tells it.
CREATE TABLE settlements (
    merchant_id    text        NOT NULL,
    batch_id       text        NOT NULL,
    key            text        NOT NULL,
    fingerprint    bytea       NOT NULL,
    reference      text        NOT NULL,
    currency       char(3)     NOT NULL,
    captured_minor bigint      NOT NULL,
    refunded_minor bigint      NOT NULL,
    fee_minor      bigint      NOT NULL,
    booked_on      date        NOT NULL,
    value_on       date        NOT NULL,
    created_at     timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, batch_id),
    CONSTRAINT one_settlement_per_key UNIQUE (merchant_id, key),
    CONSTRAINT nothing_is_negative CHECK (captured_minor >= 0 AND refunded_minor >= 0 AND fee_minor >= 0),
    CONSTRAINT due_after_it_is_booked CHECK (value_on > booked_on)
);

COMMENT ON COLUMN settlements.fee_minor IS 'sum of the fees of its operations';
COMMENT ON COLUMN settlements.booked_on IS 'UTC; the statement of this day shows it';

CREATE TABLE settled_operations (
    merchant_id  text   NOT NULL,
    operation_id text   NOT NULL,
    batch_id     text   NOT NULL,
    amount_minor bigint NOT NULL,
    fee_minor    bigint NOT NULL,
    -- An operation is settled once.
    PRIMARY KEY (merchant_id, operation_id),
    CONSTRAINT an_operation_is_settled FOREIGN KEY (merchant_id, operation_id)
        REFERENCES operations (merchant_id, operation_id),
    CONSTRAINT it_is_settled_by_a_settlement FOREIGN KEY (merchant_id, batch_id)
        REFERENCES settlements (merchant_id, batch_id),
    CONSTRAINT positive_amount CHECK (amount_minor > 0),
    CONSTRAINT fee_within_amount CHECK (fee_minor BETWEEN 0 AND amount_minor)
);

CREATE INDEX settled_operations_by_batch ON settled_operations (merchant_id, batch_id);

CREATE TABLE payouts (
    merchant_id  text        NOT NULL,
    payout_id    text        NOT NULL,
    key          text        NOT NULL,
    fingerprint  bytea       NOT NULL,
    reference    text        NOT NULL,
    amount_minor bigint      NOT NULL,
    currency     char(3)     NOT NULL,
    state        text        NOT NULL,
    reason       text        NOT NULL DEFAULT '',
    booked_on    date        NOT NULL,
    value_on     date        NOT NULL,
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, payout_id),
    CONSTRAINT one_payout_per_key UNIQUE (merchant_id, key),
    CONSTRAINT known_state CHECK (state IN ('PAID', 'REFUSED')),
    CONSTRAINT positive_amount CHECK (amount_minor > 0),
    CONSTRAINT a_reason_means_refused CHECK ((reason <> '') = (state = 'REFUSED')),
    CONSTRAINT due_after_it_is_booked CHECK (value_on > booked_on)
);

CREATE INDEX settlements_by_day ON settlements (booked_on);
CREATE INDEX payouts_by_day ON payouts (booked_on);

-- Every operation that moved money, with the settlement it was paid out in: null where none has come yet.
CREATE VIEW money_operations AS
SELECT o.merchant_id, o.operation_id, o.key, o.kind, o.undoes AS authorization_id, o.amount_minor, o.currency,
       o.created_at, s.batch_id, so.fee_minor, s.booked_on, s.value_on
FROM operations AS o
LEFT JOIN settled_operations AS so ON so.merchant_id = o.merchant_id AND so.operation_id = o.operation_id
LEFT JOIN settlements AS s ON s.merchant_id = so.merchant_id AND s.batch_id = so.batch_id
WHERE o.result IN ('CAPTURED', 'REFUNDED');

-- The account of a merchant and currency as a statement tells it: a line a settlement, net of fees, and a line a payout.
-- What is credited is positive.
CREATE VIEW account_lines AS
SELECT merchant_id, currency, batch_id AS line_id, 'SETTLEMENT' AS kind, key, reference,
       captured_minor - refunded_minor - fee_minor AS amount_minor,
       captured_minor, refunded_minor, fee_minor, booked_on, value_on, created_at
FROM settlements
UNION ALL
SELECT merchant_id, currency, payout_id, 'PAYOUT', key, reference, -amount_minor, 0, 0, 0, booked_on, value_on, created_at
FROM payouts WHERE state = 'PAID';
