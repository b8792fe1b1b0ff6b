-- Captures, refunds and increments: operations about an authorization, like voids.
--
-- Constraints are NOT VALID: they hold for every row that is written from now on, and those from before satisfied
-- narrower ones.
ALTER TABLE operations ADD COLUMN final boolean NOT NULL DEFAULT false;

ALTER TABLE operations
    DROP CONSTRAINT known_kind,
    DROP CONSTRAINT known_result,
    DROP CONSTRAINT only_a_void_undoes,
    DROP CONSTRAINT a_reason_means_declined;

ALTER TABLE operations
    ADD CONSTRAINT known_kind CHECK (kind IN ('AUTHORIZE', 'VOID', 'CAPTURE', 'REFUND', 'INCREMENT')) NOT VALID,
    ADD CONSTRAINT known_result CHECK (
        result IN ('APPROVED', 'DECLINED', 'CANCELLED') AND kind = 'AUTHORIZE'
        OR result IN ('VOIDED', 'ALREADY_VOIDED', 'REFUSED') AND kind = 'VOID'
        OR result IN ('CAPTURED', 'REFUSED') AND kind = 'CAPTURE'
        OR result IN ('REFUNDED', 'REFUSED') AND kind = 'REFUND'
        OR result IN ('INCREMENTED', 'DECLINED', 'REFUSED') AND kind = 'INCREMENT') NOT VALID,
    ADD CONSTRAINT all_else_is_about_an_authorization CHECK ((kind = 'AUTHORIZE') = (undoes IS NULL)) NOT VALID,
    ADD CONSTRAINT a_reason_means_a_no CHECK (
        (decline_reason <> '') = (result = 'DECLINED' OR (result = 'REFUSED' AND kind <> 'VOID'))) NOT VALID,
    ADD CONSTRAINT only_a_capture_is_final CHECK (kind = 'CAPTURE' OR NOT final) NOT VALID;

COMMENT ON COLUMN operations.operation_id IS 'auth_…, void_…, cap_…, ref_… or inc_…, by kind';
COMMENT ON COLUMN operations.undoes IS 'the authorization that all but an authorization is about';
COMMENT ON COLUMN operations.final IS 'this capture lets go of what it leaves';

CREATE INDEX operations_by_authorization ON operations (merchant_id, undoes) WHERE undoes IS NOT NULL;

-- Authorizations as they stand.
CREATE OR REPLACE VIEW authorizations AS
SELECT a.merchant_id, a.operation_id AS authorization_id, a.key, a.amount_minor, a.currency,
       CASE WHEN a.result <> 'APPROVED' THEN a.result
            WHEN f.voided THEN 'VOIDED'
            WHEN f.closed OR f.captured_minor >= a.amount_minor + f.incremented_minor THEN 'CAPTURED'
            ELSE a.result END AS state,
       a.auth_code, a.decline_reason, a.created_at, f.incremented_minor, f.captured_minor, f.refunded_minor
FROM operations AS a
CROSS JOIN LATERAL (
    SELECT coalesce(sum(amount_minor) FILTER (WHERE result = 'INCREMENTED'), 0)::bigint AS incremented_minor,
           coalesce(sum(amount_minor) FILTER (WHERE result = 'CAPTURED'), 0)::bigint AS captured_minor,
           coalesce(sum(amount_minor) FILTER (WHERE result = 'REFUNDED'), 0)::bigint AS refunded_minor,
           coalesce(bool_or(result = 'VOIDED'), false) AS voided,
           coalesce(bool_or(final AND result = 'CAPTURED'), false) AS closed
    FROM operations AS o WHERE o.merchant_id = a.merchant_id AND o.undoes = a.operation_id
) AS f
WHERE a.kind = 'AUTHORIZE';

-- The books as an auditor reads them: one row per operation.
CREATE OR REPLACE VIEW books AS
SELECT merchant_id, key, kind, coalesce(undoes, operation_id) AS authorization_id, amount_minor, currency,
       result, created_at, operation_id, decline_reason AS reason, final
FROM operations;
