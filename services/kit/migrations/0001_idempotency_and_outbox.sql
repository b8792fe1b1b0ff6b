-- One row per key that a caller has used: claimed at the start of a transaction, completed with the result.
-- The key stands before caller and method in the index, because it is what tells rows apart: with the others first,
-- every comparison on the way down the tree compares three equal texts, and a claim costs half as much again.
CREATE TABLE idempotency (
    merchant_id text        NOT NULL,
    caller      text        NOT NULL,
    method      text        NOT NULL,
    key         text        NOT NULL,
    fingerprint bytea       NOT NULL,
    resource_id text        NOT NULL,
    result      bytea,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, key, caller, method)
) WITH (fillfactor = 70);

COMMENT ON COLUMN idempotency.fingerprint IS 'hash of the request; empty when the undo came before the call';
COMMENT ON COLUMN idempotency.resource_id IS 'what the call creates; empty when the undo came before the call';
COMMENT ON COLUMN idempotency.result IS 'the stored answer; null while the call is under way';

-- What is announced to other services, written in the transaction that makes it true.
CREATE TABLE outbox (
    merchant_id  text        NOT NULL,
    outbox_id    bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    aggregate_id text        NOT NULL,
    type         text        NOT NULL,
    payload      bytea       NOT NULL,
    traceparent  text        NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT now(),
    published_at timestamptz,
    PRIMARY KEY (merchant_id, outbox_id)
);
