-- The bank's books: one row per operation, never changed. What an authorization has come to is derived from
-- its own row and the void that let it go.
CREATE TABLE operations (
    merchant_id    text        NOT NULL,
    operation_id   text        NOT NULL,
    kind           text        NOT NULL,
    key            text,
    fingerprint    bytea       NOT NULL,
    undoes         text,
    amount_minor   bigint,
    currency       char(3),
    card_token     text        NOT NULL DEFAULT '',
    reference      text        NOT NULL DEFAULT '',
    result         text        NOT NULL,
    auth_code      text        NOT NULL DEFAULT '',
    decline_reason text        NOT NULL DEFAULT '',
    created_at     timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, operation_id),
    CONSTRAINT one_operation_per_key UNIQUE (merchant_id, key),
    CONSTRAINT a_void_undoes_something 
        FOREIGN KEY (merchant_id, undoes) REFERENCES operations (merchant_id, operation_id),
    CONSTRAINT known_kind CHECK (kind IN ('AUTHORIZE', 'VOID')),
    CONSTRAINT known_result CHECK (
        result IN ('APPROVED', 'DECLINED', 'CANCELLED') AND kind = 'AUTHORIZE'
        OR result IN ('VOIDED', 'ALREADY_VOIDED', 'REFUSED') AND kind = 'VOID'),
    CONSTRAINT only_a_void_undoes CHECK ((kind = 'VOID') = (undoes IS NOT NULL)),
    CONSTRAINT only_a_cancellation_has_no_key CHECK (key IS NOT NULL OR result = 'VOIDED'),
    CONSTRAINT an_amount_has_a_currency CHECK ((amount_minor IS NULL) = (currency IS NULL)),
    CONSTRAINT positive_amount CHECK (amount_minor BETWEEN 1 AND 1000000000000),
    CONSTRAINT only_what_never_arrived_has_no_amount CHECK (
        amount_minor IS NOT NULL OR result IN ('CANCELLED', 'REFUSED')),
    CONSTRAINT a_code_means_approved CHECK ((auth_code <> '') = (result = 'APPROVED')),
    CONSTRAINT a_reason_means_declined CHECK ((decline_reason <> '') = (result = 'DECLINED'))
);

CREATE UNIQUE INDEX one_effective_void_per_authorization ON operations (merchant_id, undoes)
    WHERE result = 'VOIDED';

COMMENT ON COLUMN operations.operation_id IS 'auth_… for an authorization, void_… for a void';
COMMENT ON COLUMN operations.key IS 'idempotency key of the call; null for the void that a CancelByKey made';
COMMENT ON COLUMN operations.fingerprint IS 'hash of the request; empty in a row made for a CancelByKey';
COMMENT ON COLUMN operations.undoes IS 'the authorization that a void is for';
COMMENT ON COLUMN operations.result IS 'CANCELLED: a CancelByKey came first, the late call will be refused';

-- Authorizations as they stand.
CREATE VIEW authorizations AS
SELECT a.merchant_id, a.operation_id AS authorization_id, a.key, a.amount_minor, a.currency,
       CASE WHEN v.operation_id IS NULL THEN a.result ELSE 'VOIDED' END AS state,
       a.auth_code, a.decline_reason, a.created_at
FROM operations AS a
LEFT JOIN operations AS v
  ON v.merchant_id = a.merchant_id AND v.undoes = a.operation_id AND v.result = 'VOIDED'
WHERE a.kind = 'AUTHORIZE';

-- The books as an auditor reads them: one row per operation.
CREATE VIEW books AS
SELECT merchant_id, key, kind, coalesce(undoes, operation_id) AS authorization_id, amount_minor, currency,
       result, created_at
FROM operations;
