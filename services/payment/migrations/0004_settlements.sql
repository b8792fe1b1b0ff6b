-- Settlement: which captures and refunds the processor pays out together, and what merchants are paid of it.
--
-- Items are what events tell, put where they can be gathered: one row for every capture and refund, made from its event
-- a little later (see settlement_sweep), so that nothing is added to the way of a capture, and what was captured
-- before this migration, or by an older process beside a newer one, has its row, too.
CREATE TABLE settlement_items (
    merchant_id         text        NOT NULL,
    payment_id          text        NOT NULL,
    version             integer     NOT NULL,
    currency            char(3)     NOT NULL,
    kind                text        NOT NULL,
    amount_minor        bigint      NOT NULL,
    fee_minor           bigint      NOT NULL,
    operation_key       text        NOT NULL,
    bank_reference      text        NOT NULL,
    recorded_at         timestamptz NOT NULL,
    settlement_id       text,
    processor_fee_minor bigint,
    posted_version      integer,
    -- An event is an item once, and an item is in one settlement.
    PRIMARY KEY (merchant_id, payment_id, version),
    CONSTRAINT known_kind CHECK (kind IN ('CAPTURE', 'REFUND')),
    CONSTRAINT positive_amount CHECK (amount_minor > 0),
    CONSTRAINT only_a_capture_costs CHECK (fee_minor >= 0 AND (kind = 'CAPTURE' OR fee_minor = 0)),
    CONSTRAINT processor_fee_in_range CHECK (processor_fee_minor BETWEEN 0 AND amount_minor),
    CONSTRAINT posted_after_it_was_settled CHECK (
        posted_version IS NULL OR (settlement_id IS NOT NULL AND processor_fee_minor IS NOT NULL AND posted_version > version)
    )
) WITH (fillfactor = 70);

COMMENT ON COLUMN settlement_items.version IS 'of the event of the payment that tells it';
COMMENT ON COLUMN settlement_items.recorded_at IS 'of that event: its day, UTC, is the day of the item';
COMMENT ON COLUMN settlement_items.processor_fee_minor IS 'null before the processor has settled it';
COMMENT ON COLUMN settlement_items.posted_version IS 'of the event that tells the payment; null before';

CREATE INDEX settlement_items_unsettled ON settlement_items (merchant_id, currency, recorded_at)
    WHERE settlement_id IS NULL;
CREATE INDEX settlement_items_unsettled_by_time ON settlement_items (recorded_at) WHERE settlement_id IS NULL;
CREATE INDEX settlement_items_by_settlement ON settlement_items (merchant_id, settlement_id, payment_id, version)
    WHERE settlement_id IS NOT NULL;

CREATE TABLE settlements (
    merchant_id           text        NOT NULL,
    settlement_id         text        NOT NULL,
    day                   date        NOT NULL,
    number                integer     NOT NULL,
    currency              char(3)     NOT NULL,
    state                 text        NOT NULL,
    version               integer     NOT NULL,
    waits_for             text        NOT NULL DEFAULT '',
    items                 integer     NOT NULL,
    captured_minor        bigint      NOT NULL,
    refunded_minor        bigint      NOT NULL,
    fee_minor             bigint      NOT NULL,
    brought_forward_minor bigint      NOT NULL,
    payout_minor          bigint      NOT NULL,
    payout_state          text        NOT NULL,
    payout_reference      text        NOT NULL DEFAULT '',
    payout_refusal        text        NOT NULL DEFAULT '',
    payout_booked_on      date,
    payout_value_on       date,
    processor_reference   text        NOT NULL DEFAULT '',
    processor_fee_minor   bigint      NOT NULL DEFAULT 0,
    booked_on             date,
    value_on              date,
    created_at            timestamptz NOT NULL DEFAULT now(),
    completed_at          timestamptz,
    resolve_at            timestamptz NOT NULL DEFAULT now(),
    resolve_attempts      integer     NOT NULL DEFAULT 0,
    PRIMARY KEY (merchant_id, settlement_id),
    CONSTRAINT numbered_by_day UNIQUE (merchant_id, currency, day, number),
    CONSTRAINT known_state CHECK (state IN ('SETTLING', 'POSTING', 'COMPLETED')),
    CONSTRAINT known_payout_state CHECK (payout_state IN ('PLANNED', 'PAYING', 'PAID', 'REFUSED', 'CARRIED')),
    CONSTRAINT has_items CHECK (items > 0 AND number > 0),
    CONSTRAINT sums_in_range CHECK (captured_minor >= 0 AND refunded_minor >= 0 AND fee_minor >= 0),
    CONSTRAINT what_is_due_is_paid CHECK (
        payout_minor = greatest(0, captured_minor - refunded_minor - fee_minor + brought_forward_minor)
        AND (payout_minor = 0) = (payout_state = 'CARRIED')
    ),
    CONSTRAINT paid_out_after_the_processor_has_paid CHECK (
        state <> 'SETTLING' OR (payout_state IN ('PLANNED', 'CARRIED') AND processor_reference = '')
    ),
    CONSTRAINT complete_when_paid_out CHECK (state <> 'COMPLETED' OR payout_state IN ('PAID', 'REFUSED', 'CARRIED'))
) WITH (fillfactor = 70);

COMMENT ON COLUMN settlements.day IS 'UTC; its items are of this day and earlier';
COMMENT ON COLUMN settlements.resolve_at IS 'when the runner looks at it; only meaningful before it is COMPLETED';

CREATE INDEX settlements_to_resolve ON settlements (resolve_at) WHERE state <> 'COMPLETED';
CREATE INDEX settlements_by_day ON settlements (day, merchant_id, settlement_id);

-- What a merchant is owed, or owes, that no payout has in it. The lock on its row puts those who make settlements of one
-- merchant and currency in a line.
CREATE TABLE merchant_balances (
    merchant_id   text    NOT NULL,
    currency      char(3) NOT NULL,
    carried_minor bigint  NOT NULL DEFAULT 0,
    PRIMARY KEY (merchant_id, currency)
);

-- One row: no event from before this moment is without its item. Whoever sweeps looks back a little nevertheless.
CREATE TABLE settlement_sweep (
    swept_until timestamptz NOT NULL
);
INSERT INTO settlement_sweep VALUES (timestamptz 'epoch');

-- The chart of accounts.
ALTER TABLE journal_entries DROP CONSTRAINT known_account;
ALTER TABLE journal_entries ADD CONSTRAINT known_account CHECK (
    account IN ('holds', 'holds_control', 'processor_receivable', 'merchant_payable', 'fees', 'cash', 'processor_fees',
                'payouts', 'suspense')
) NOT VALID;

COMMENT ON COLUMN journal_entries.journal_id IS 'payment and version of the event that it books, or settlement and its step';
