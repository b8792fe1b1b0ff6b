-- The truth: what happened to each payment, in order. Never changed, never deleted.
CREATE TABLE payment_events (
    merchant_id text        NOT NULL,
    payment_id  text        NOT NULL,
    version     integer     NOT NULL,
    type        text        NOT NULL,
    data        json        NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, payment_id, version),
    CONSTRAINT versions_start_at_one CHECK (version >= 1)
);

-- What the events add up to, written in the transaction that writes the events.
CREATE TABLE payments (
    merchant_id         text        NOT NULL,
    payment_id          text        NOT NULL,
    order_id            text        NOT NULL,
    amount_minor        bigint      NOT NULL,
    currency            char(3)     NOT NULL,
    state               text        NOT NULL,
    unknown_outcome     text        NOT NULL DEFAULT '',
    auth_code           text        NOT NULL DEFAULT '',
    processor_reference text        NOT NULL DEFAULT '',
    decline_reason      text        NOT NULL DEFAULT '',
    fraud_score_milli   integer     NOT NULL DEFAULT 0,
    version             integer     NOT NULL,
    created_at          timestamptz NOT NULL DEFAULT now(),
    resolve_at          timestamptz NOT NULL,
    resolve_attempts    integer     NOT NULL DEFAULT 0,
    PRIMARY KEY (merchant_id, payment_id),
    CONSTRAINT amount_is_positive CHECK (amount_minor > 0),
    CONSTRAINT known_state CHECK (
        state IN ('AUTHORIZING', 'AUTHORIZED', 'DECLINED', 'REJECTED', 'FAILED', 'VOIDING', 'VOIDED')
    ),
    CONSTRAINT known_unknown CHECK (
        unknown_outcome = ''
        OR (unknown_outcome = 'AUTHORIZATION' AND state = 'AUTHORIZING')
        OR (unknown_outcome = 'VOID' AND state = 'VOIDING')
    ),
    CONSTRAINT score_in_range CHECK (fraud_score_milli BETWEEN 0 AND 1000)
) WITH (fillfactor = 70);

COMMENT ON COLUMN payments.unknown_outcome IS 'the operation whose outcome at the processor is not known';
COMMENT ON COLUMN payments.resolve_at IS 'when the resolver looks at it; only meaningful in AUTHORIZING and VOIDING';

-- A hold that was found after its payment had failed (VOIDING with a reason) does not count: the order may have been
-- paid otherwise by then, and the hold must still be let go.
CREATE UNIQUE INDEX one_live_payment_per_order ON payments (merchant_id, order_id)
    WHERE state IN ('AUTHORIZING', 'AUTHORIZED') OR (state = 'VOIDING' AND decline_reason = '');

CREATE INDEX payments_to_resolve ON payments (resolve_at) WHERE state IN ('AUTHORIZING', 'VOIDING');

-- Double entry. A journal is the entries of one journal_id; debits are positive, credits negative.
CREATE TABLE journal_entries (
    merchant_id  text        NOT NULL,
    journal_id   text        NOT NULL,
    line         smallint    NOT NULL,
    account      text        NOT NULL,
    currency     char(3)     NOT NULL,
    amount_minor bigint      NOT NULL,
    posted_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, journal_id, line),
    CONSTRAINT known_account CHECK (account IN ('holds', 'holds_control')),
    CONSTRAINT no_empty_entry CHECK (amount_minor <> 0)
);

COMMENT ON COLUMN journal_entries.journal_id IS 'payment and version of the event that it books: pay_…/2';

-- All entries of a journal are written by one statement, and that statement must balance.
CREATE FUNCTION journals_must_balance() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    unbalanced text;
BEGIN
    SELECT journal_id INTO unbalanced FROM written
    GROUP BY merchant_id, journal_id, currency HAVING sum(amount_minor) <> 0 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'journal % does not balance', unbalanced USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER journals_balance AFTER INSERT ON journal_entries
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION journals_must_balance();
