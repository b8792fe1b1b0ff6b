-- What the bank says, what our books say, which of it belongs together, and what does not.
--
-- Lines, items and matches are only ever added. What is still to be matched stands in two small tables of its own, so
-- that a night's work is as large as what is open and not as what there ever was.

-- One row a merchant: the lock of a run, and how far payment's items have been copied.
CREATE TABLE books (
    merchant_id    text        NOT NULL,
    complete_until date        NOT NULL DEFAULT '1970-01-01',
    page_from      date,
    page_cursor    text        NOT NULL DEFAULT '',
    copied_at      timestamptz,
    matched_at     timestamptz,
    PRIMARY KEY (merchant_id)
);

COMMENT ON COLUMN books.complete_until IS 'all settlements of this day and earlier are copied and will not change';
COMMENT ON COLUMN books.page_from IS 'the day that a copy under way began with; null when none is';
COMMENT ON COLUMN books.page_cursor IS 'payment''s cursor behind the last page of a copy under way';

CREATE TABLE statement_files (
    merchant_id text        NOT NULL,
    sha256      bytea       NOT NULL,
    name        text        NOT NULL,
    size_bytes  bigint      NOT NULL,
    statements  integer     NOT NULL,
    lines_new   bigint      NOT NULL,
    lines_known bigint      NOT NULL,
    imported_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, sha256)
);

CREATE TABLE statements (
    merchant_id   text        NOT NULL,
    statement_no  bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    account       text        NOT NULL,
    currency      char(3)     NOT NULL,
    statement_id  text        NOT NULL,
    sha256        bytea       NOT NULL,
    opening_minor bigint      NOT NULL,
    lines_minor   bigint      NOT NULL,
    closing_minor bigint      NOT NULL,
    opening_date  date,
    closing_date  date,
    lines         bigint      NOT NULL,
    first_day     date,
    last_day      date,
    unproved      text        NOT NULL DEFAULT '',
    imported_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, statement_no),
    CONSTRAINT one_statement_per_name UNIQUE (merchant_id, account, currency, statement_id),
    CONSTRAINT statements_add_up CHECK (opening_minor + lines_minor = closing_minor)
);

COMMENT ON COLUMN statements.sha256 IS 'the file that it came in';
COMMENT ON COLUMN statements.unproved IS 'why the bank''s balances do not prove it to be whole; closing_minor is then the sum';
COMMENT ON COLUMN statements.first_day IS 'earliest booking date of its lines; null without lines';

CREATE TABLE lines (
    merchant_id           text    NOT NULL,
    line_no               bigint  NOT NULL GENERATED ALWAYS AS IDENTITY,
    statement_no          bigint  NOT NULL,
    number                integer NOT NULL,
    booking_date          date    NOT NULL,
    value_date            date    NOT NULL,
    amount_minor          bigint  NOT NULL,
    currency              char(3) NOT NULL,
    reference             text    NOT NULL,
    counterpart_reference text    NOT NULL,
    batch_reference       text    NOT NULL,
    kind                  text    NOT NULL,
    text                  text    NOT NULL,
    reversal              boolean NOT NULL,
    PRIMARY KEY (merchant_id, line_no),
    CONSTRAINT a_line_is_imported_once UNIQUE (merchant_id, statement_no, number)
);

-- To find what an unmatched line repeats.
CREATE INDEX lines_by_reference ON lines (merchant_id, reference) WHERE reference <> '';
CREATE INDEX lines_by_batch ON lines (merchant_id, batch_reference) WHERE batch_reference <> '';

CREATE TABLE items (
    merchant_id     text    NOT NULL,
    item_no         bigint  NOT NULL GENERATED ALWAYS AS IDENTITY,
    item_id         text    NOT NULL,
    kind            text    NOT NULL,
    payment_id      text    NOT NULL,
    settlement_id   text    NOT NULL,
    bank_reference  text    NOT NULL,
    batch_reference text    NOT NULL,
    amount_minor    bigint  NOT NULL,
    fee_minor       bigint  NOT NULL,
    currency        char(3) NOT NULL,
    booked_on       date    NOT NULL,
    value_on        date    NOT NULL,
    PRIMARY KEY (merchant_id, item_no),
    CONSTRAINT an_item_is_copied_once UNIQUE (merchant_id, item_id),
    CONSTRAINT known_kind CHECK (kind IN ('CAPTURE', 'REFUND', 'PAYOUT')),
    CONSTRAINT sign_follows_kind CHECK ((kind = 'CAPTURE') = (amount_minor > 0)),
    CONSTRAINT fees_are_kept CHECK (fee_minor >= 0)
);

COMMENT ON COLUMN items.item_id IS 'the key that the bank was asked under: pay_…/capture/3';
COMMENT ON COLUMN items.fee_minor IS 'what the bank keeps of it';

-- What is not matched yet.
CREATE TABLE open_lines (
    merchant_id text   NOT NULL,
    line_no     bigint NOT NULL,
    PRIMARY KEY (merchant_id, line_no)
);

CREATE TABLE open_items (
    merchant_id text   NOT NULL,
    item_no     bigint NOT NULL,
    PRIMARY KEY (merchant_id, item_no)
);

-- A match is the rows with one number: that of its first line or, where there is no line, minus that of its first item.
-- The keys are the rule that no line and no item is ever matched twice.
CREATE TABLE matched_lines (
    merchant_id text   NOT NULL,
    line_no     bigint NOT NULL,
    match_no    bigint NOT NULL,
    rule        text   NOT NULL,
    run_id      text   NOT NULL,
    PRIMARY KEY (merchant_id, line_no)
);

CREATE TABLE matched_items (
    merchant_id text   NOT NULL,
    item_no     bigint NOT NULL,
    match_no    bigint NOT NULL,
    rule        text   NOT NULL,
    run_id      text   NOT NULL,
    PRIMARY KEY (merchant_id, item_no)
);

CREATE TABLE runs (
    merchant_id text        NOT NULL,
    run_id      text        NOT NULL,
    date        date        NOT NULL,
    summary     json        NOT NULL,
    ended_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, run_id)
);

CREATE TABLE cases (
    merchant_id     text        NOT NULL,
    case_no         bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    kind            text        NOT NULL,
    state           text        NOT NULL DEFAULT 'OPEN',
    outcome         text        NOT NULL DEFAULT '',
    bank_minor      bigint,
    bank_currency   char(3),
    ledger_minor    bigint,
    ledger_currency char(3),
    reference       text        NOT NULL,
    lines           integer     NOT NULL,
    items           integer     NOT NULL,
    since           date        NOT NULL,
    owner           text        NOT NULL DEFAULT '',
    version         integer     NOT NULL DEFAULT 1,
    opened_run      text        NOT NULL,
    opened_at       timestamptz NOT NULL DEFAULT now(),
    closed_at       timestamptz,
    proposal        integer     NOT NULL DEFAULT 0,
    reason          text        NOT NULL DEFAULT '',
    proposed_by     text        NOT NULL DEFAULT '',
    approved_by     text        NOT NULL DEFAULT '',
    debit_account   text        NOT NULL DEFAULT '',
    credit_account  text        NOT NULL DEFAULT '',
    correct_minor   bigint,
    correct_currency char(3),
    journal_id      text        NOT NULL DEFAULT '',
    post_at         timestamptz,
    post_attempts   integer     NOT NULL DEFAULT 0,
    PRIMARY KEY (merchant_id, case_no),
    CONSTRAINT known_kind CHECK (
        kind IN ('MISSING_IN_BANK', 'MISSING_IN_LEDGER', 'AMOUNT', 'CURRENCY', 'DUPLICATE', 'LATE')
    ),
    CONSTRAINT known_state CHECK (state IN ('OPEN', 'PROPOSED', 'RESOLVING', 'CLOSED')),
    CONSTRAINT known_outcome CHECK (outcome IN ('', 'MATCHED', 'MERGED', 'EXPLAINED', 'CORRECTED')),
    CONSTRAINT closed_has_an_outcome CHECK (
        (state = 'CLOSED') = (outcome <> '') AND (state = 'CLOSED') = (closed_at IS NOT NULL)
    ),
    CONSTRAINT four_eyes CHECK (
        (state <> 'PROPOSED' OR (proposed_by <> '' AND reason <> '' AND approved_by = ''))
        AND (state <> 'RESOLVING' AND outcome NOT IN ('EXPLAINED', 'CORRECTED')
             OR (proposed_by <> '' AND reason <> '' AND approved_by <> ''
                 AND lower(approved_by) <> lower(proposed_by)))
    ),
    CONSTRAINT a_correction_is_whole CHECK (
        (debit_account = '') = (correct_minor IS NULL) AND (credit_account = '') = (correct_minor IS NULL)
        AND (correct_currency IS NULL) = (correct_minor IS NULL)
        AND (correct_minor IS NULL OR (correct_minor > 0 AND debit_account <> credit_account))
    ),
    CONSTRAINT corrected_means_posted CHECK (
        (outcome = 'CORRECTED') = (journal_id <> '') AND (state <> 'RESOLVING' OR correct_minor IS NOT NULL)
    )
);

CREATE INDEX cases_standing ON cases (merchant_id, since, case_no) WHERE state <> 'CLOSED';
CREATE INDEX cases_to_post ON cases (post_at) WHERE state = 'RESOLVING';

-- What a case is about. Of the standing ones no two have a line or an item in common.
CREATE TABLE case_lines (
    merchant_id text    NOT NULL,
    case_no     bigint  NOT NULL,
    line_no     bigint  NOT NULL,
    standing    boolean NOT NULL DEFAULT true,
    PRIMARY KEY (merchant_id, case_no, line_no)
);
CREATE UNIQUE INDEX one_standing_case_per_line ON case_lines (merchant_id, line_no) WHERE standing;

CREATE TABLE case_items (
    merchant_id text    NOT NULL,
    case_no     bigint  NOT NULL,
    item_no     bigint  NOT NULL,
    standing    boolean NOT NULL DEFAULT true,
    PRIMARY KEY (merchant_id, case_no, item_no)
);
CREATE UNIQUE INDEX one_standing_case_per_item ON case_items (merchant_id, item_no) WHERE standing;

CREATE TABLE case_events (
    merchant_id text        NOT NULL,
    case_no     bigint      NOT NULL,
    number      integer     NOT NULL,
    type        text        NOT NULL,
    actor       text        NOT NULL,
    data        json        NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, case_no, number)
);

-- History is written once: what the bank said, what our books said, what was matched, and what became of a case.
CREATE FUNCTION history_is_not_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: history is never changed', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON statements
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON lines
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON items
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON matched_lines
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON matched_items
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON case_events
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
