-- What two people have agreed to post, since a bank statement said something else than the books. The journal stands in
-- journal_entries under the correction's own identifier; this says who, why, and what it was about.
CREATE TABLE corrections (
    merchant_id    text        NOT NULL,
    correction_id  text        NOT NULL,
    debit_account  text        NOT NULL,
    credit_account text        NOT NULL,
    amount_minor   bigint      NOT NULL,
    currency       char(3)     NOT NULL,
    reference      text        NOT NULL,
    reason         text        NOT NULL,
    proposed_by    text        NOT NULL,
    approved_by    text        NOT NULL,
    posted_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, correction_id),
    CONSTRAINT amount_is_positive CHECK (amount_minor > 0),
    CONSTRAINT four_eyes CHECK (
        proposed_by <> '' AND approved_by <> '' AND lower(proposed_by) <> lower(approved_by)
    ),
    CONSTRAINT correctable_accounts CHECK (
        debit_account <> credit_account
        AND debit_account IN ('suspense', 'processor_receivable', 'processor_fees', 'cash', 'payouts')
        AND credit_account IN ('suspense', 'processor_receivable', 'processor_fees', 'cash', 'payouts')
    )
);

COMMENT ON TABLE corrections IS 'never changed: what turns out wrong is posted back by another one';

CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON corrections
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
