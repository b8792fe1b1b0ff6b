-- A row is both the judgement and the idempotency record of the call that asked for it: one insert, not three writes.
CREATE TABLE assessments (
    merchant_id   text        NOT NULL,
    assessment_id text        NOT NULL,
    caller        text        NOT NULL,
    key           text        NOT NULL,
    fingerprint   bytea       NOT NULL,
    payment_id    text        NOT NULL,
    decision      text        NOT NULL,
    score_milli   integer     NOT NULL,
    fired_rules   jsonb       NOT NULL,
    degraded      boolean     NOT NULL,
    created_at    timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, assessment_id),
    CONSTRAINT one_assessment_per_key UNIQUE (merchant_id, caller, key),
    CONSTRAINT known_decision CHECK (decision IN ('approve', 'decline')),
    CONSTRAINT score_in_thousandths CHECK (score_milli BETWEEN 0 AND 1000)
);

COMMENT ON COLUMN assessments.fingerprint IS 'hash of the request: tells a repeat from another request under the key';
COMMENT ON COLUMN assessments.fired_rules IS 'heaviest first: [{"rule": "...", "score_milli": 300, "explanation": "..."}]';
COMMENT ON COLUMN assessments.degraded IS 'judged without velocity rules, because the windows did not answer';

CREATE TABLE list_entries (
    merchant_id text        NOT NULL,
    kind        text        NOT NULL,
    trait       text        NOT NULL,
    value       text        NOT NULL,
    note        text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, kind, trait, value),
    CONSTRAINT known_kind CHECK (kind IN ('block', 'allow')),
    CONSTRAINT known_trait CHECK (trait IN ('card', 'customer', 'email', 'ip'))
);

-- Raised in the transaction that changes a merchant's lists, under this row's lock: a process that remembers the
-- version it has read can never miss a change, in whatever order transactions commit.
CREATE TABLE list_versions (
    merchant_id text   NOT NULL PRIMARY KEY,
    version     bigint NOT NULL DEFAULT 1
);
