-- One row per running orchestrator. Its epoch is what fences it off: sagas carry the epoch of their owner, and only
-- the owner may write them.
CREATE TABLE instances (
    epoch       bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    host        text        NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT now(),
    lease_until timestamptz NOT NULL
);

CREATE TABLE sagas (
    merchant_id     text        NOT NULL,
    saga_id         text        NOT NULL,
    order_id        text        NOT NULL,
    order_reference text        NOT NULL,
    kind            text        NOT NULL,
    state           text        NOT NULL DEFAULT 'RUNNING',
    owner_epoch     bigint      NOT NULL,
    caller          text        NOT NULL,
    key             text        NOT NULL,
    input           bytea       NOT NULL,
    steps           json        NOT NULL DEFAULT '{}',
    history         json        NOT NULL DEFAULT '[]',
    reason          json,
    traceparent     text        NOT NULL DEFAULT '',
    created_at      timestamptz NOT NULL DEFAULT now(),
    ended_at        timestamptz,
    PRIMARY KEY (merchant_id, saga_id),
    CONSTRAINT known_state CHECK (state IN ('RUNNING', 'COMPLETED', 'COMPENSATING', 'COMPENSATED', 'PARKED')),
    CONSTRAINT ended_when_terminal CHECK ((ended_at IS NOT NULL) = (state IN ('COMPLETED', 'COMPENSATED', 'PARKED')))
) WITH (fillfactor = 70);

COMMENT ON COLUMN sagas.input IS 'the request that began it, as the contract''s message';
COMMENT ON COLUMN sagas.steps IS 'how far each step is, as of the last time that had to be durable';
COMMENT ON COLUMN sagas.history IS 'every attempt so far, oldest first';
COMMENT ON COLUMN sagas.caller IS 'with key: who began it, under which idempotency key';

CREATE UNIQUE INDEX one_order_per_reference ON sagas (merchant_id, order_reference) WHERE order_reference <> '';

CREATE INDEX sagas_under_way ON sagas (owner_epoch) WHERE state IN ('RUNNING', 'COMPENSATING');
