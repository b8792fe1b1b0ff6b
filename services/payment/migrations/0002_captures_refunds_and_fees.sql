-- The rest of a payment's life: increments, captures, refunds, settlement and expiry.
--
-- Every column has a default that is right for what was written before, so that nothing has to be rewritten and older
-- processes may go on writing. Constraints are NOT VALID for the same reason: they hold for every row that is written
-- from now on, and those from before satisfied narrower ones.
ALTER TABLE payments
    ADD COLUMN incremented_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN captured_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN refunded_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN settled_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN fee_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN rest_released boolean NOT NULL DEFAULT false,
    ADD COLUMN pending_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN pending_fee_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN pending_final boolean NOT NULL DEFAULT false,
    ADD COLUMN expiring boolean NOT NULL DEFAULT false,
    ADD COLUMN expires_at timestamptz;

COMMENT ON COLUMN payments.incremented_minor IS 'what was authorized on top of amount_minor';
COMMENT ON COLUMN payments.rest_released IS 'with captures: what was not captured has been let go';
COMMENT ON COLUMN payments.pending_minor IS 'amount of the increment, capture or refund under way';
COMMENT ON COLUMN payments.expiring IS 'the void under way is that of an authorization that has come to its end';
COMMENT ON COLUMN payments.expires_at IS 'when the authorization ends; null without one and on payments from before 0002';
COMMENT ON COLUMN payments.resolve_at IS 'when the resolver looks at it; only meaningful while it waits for the processor';

ALTER TABLE payments
    DROP CONSTRAINT known_state,
    DROP CONSTRAINT known_unknown;

ALTER TABLE payments
    ADD CONSTRAINT known_state CHECK (
        state IN ('AUTHORIZING', 'AUTHORIZED', 'DECLINED', 'REJECTED', 'FAILED', 'VOIDING', 'VOIDED', 'INCREMENTING',
                  'CAPTURING', 'PARTIALLY_CAPTURED', 'CAPTURED', 'SETTLED', 'REFUNDING', 'PARTIALLY_REFUNDED',
                  'REFUNDED', 'EXPIRED')
    ) NOT VALID,
    ADD CONSTRAINT known_unknown CHECK (
        unknown_outcome = ''
        OR (unknown_outcome = 'AUTHORIZATION' AND state = 'AUTHORIZING')
        OR (unknown_outcome = 'VOID' AND state = 'VOIDING')
        OR (unknown_outcome = 'INCREMENT' AND state = 'INCREMENTING')
        OR (unknown_outcome = 'CAPTURE' AND state = 'CAPTURING')
        OR (unknown_outcome = 'REFUND' AND state = 'REFUNDING')
    ) NOT VALID,
    -- What is under way counts: an intent that would go too far is not even recorded.
    ADD CONSTRAINT captures_within_authorization CHECK (
        captured_minor + CASE state WHEN 'CAPTURING' THEN pending_minor ELSE 0 END <= amount_minor + incremented_minor
    ) NOT VALID,
    ADD CONSTRAINT refunds_within_captures CHECK (
        refunded_minor + CASE state WHEN 'REFUNDING' THEN pending_minor ELSE 0 END <= captured_minor
    ) NOT VALID,
    ADD CONSTRAINT authorization_within_limit CHECK (
        amount_minor + incremented_minor + CASE state WHEN 'INCREMENTING' THEN pending_minor ELSE 0 END
            <= 1000000000000
    ) NOT VALID,
    ADD CONSTRAINT fees_and_settlements_within_captures CHECK (
        settled_minor <= captured_minor
        AND fee_minor + pending_fee_minor <= captured_minor + pending_minor
    ) NOT VALID,
    ADD CONSTRAINT nothing_is_negative CHECK (
        incremented_minor >= 0 AND captured_minor >= 0 AND refunded_minor >= 0 AND settled_minor >= 0
        AND fee_minor >= 0 AND pending_fee_minor >= 0
    ) NOT VALID,
    ADD CONSTRAINT only_a_movement_is_pending CHECK (
        (state IN ('INCREMENTING', 'CAPTURING', 'REFUNDING') AND pending_minor > 0)
        OR (state NOT IN ('INCREMENTING', 'CAPTURING', 'REFUNDING') AND pending_minor = 0)
    ) NOT VALID,
    ADD CONSTRAINT only_a_capture_costs_and_ends CHECK (
        state = 'CAPTURING' OR (pending_fee_minor = 0 AND NOT pending_final)
    ) NOT VALID,
    ADD CONSTRAINT only_a_void_expires CHECK (state = 'VOIDING' OR NOT expiring) NOT VALID,
    ADD CONSTRAINT captured_means_captured CHECK (
        (captured_minor > 0 AND state IN ('CAPTURING', 'PARTIALLY_CAPTURED', 'CAPTURED', 'SETTLED', 'REFUNDING',
                                          'PARTIALLY_REFUNDED', 'REFUNDED', 'VOIDING'))
        OR (captured_minor = 0 AND NOT rest_released
            AND state NOT IN ('PARTIALLY_CAPTURED', 'CAPTURED', 'SETTLED', 'REFUNDING', 'PARTIALLY_REFUNDED',
                              'REFUNDED'))
    ) NOT VALID;

-- An order whose money was taken is paid; one whose money was given back in full may be paid again.
DROP INDEX one_live_payment_per_order;
CREATE UNIQUE INDEX one_live_payment_per_order ON payments (merchant_id, order_id)
    WHERE state IN ('AUTHORIZING', 'AUTHORIZED', 'INCREMENTING', 'CAPTURING', 'PARTIALLY_CAPTURED', 'CAPTURED',
                    'SETTLED', 'REFUNDING', 'PARTIALLY_REFUNDED')
       OR (state = 'VOIDING' AND decline_reason = '');

DROP INDEX payments_to_resolve;
CREATE INDEX payments_to_resolve ON payments (resolve_at)
    WHERE state IN ('AUTHORIZING', 'VOIDING', 'INCREMENTING', 'CAPTURING', 'REFUNDING');

CREATE INDEX payments_to_expire ON payments (expires_at) WHERE state IN ('AUTHORIZED', 'PARTIALLY_CAPTURED');

-- The chart of accounts.
ALTER TABLE journal_entries DROP CONSTRAINT known_account;
ALTER TABLE journal_entries ADD CONSTRAINT known_account CHECK (
    account IN ('holds', 'holds_control', 'processor_receivable', 'merchant_payable', 'fees', 'cash', 'suspense')
) NOT VALID;

-- What merchants are charged for captures; a merchant without a row pays nothing.
CREATE TABLE fee_plans (
    merchant_id  text        NOT NULL,
    currency     char(3)     NOT NULL,
    basis_points integer     NOT NULL,
    fixed_minor  bigint      NOT NULL,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, currency),
    CONSTRAINT share_in_range CHECK (basis_points BETWEEN 0 AND 10000),
    CONSTRAINT fixed_in_range CHECK (fixed_minor BETWEEN 0 AND 1000000000000)
);
