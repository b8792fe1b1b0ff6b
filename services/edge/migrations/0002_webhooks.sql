-- Where merchants want to be told of what happens. A deleted endpoint stays, so that what was sent to it can be read.
CREATE TABLE webhook_endpoints (
    merchant_id   text        NOT NULL,
    endpoint_id   text        NOT NULL,
    url           text        NOT NULL,
    events        text[]      NOT NULL,
    description   text        NOT NULL,
    state         text        NOT NULL DEFAULT 'ENABLED',
    reason        text        NOT NULL DEFAULT '',
    failing_since timestamptz,
    disabled_at   timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, endpoint_id),
    CONSTRAINT known_endpoint_state CHECK (state IN ('ENABLED', 'DISABLED', 'DELETED')),
    CONSTRAINT disabled_with_a_reason CHECK (state <> 'DISABLED' OR (reason <> '' AND disabled_at IS NOT NULL))
);
COMMENT ON COLUMN webhook_endpoints.events IS 'names of events, or "payment.*"; empty for all';
COMMENT ON COLUMN webhook_endpoints.failing_since IS 'end of the first failed attempt after which none has succeeded';

-- What messages are signed with, sealed like card numbers. After a rotation two are good for a while.
CREATE TABLE webhook_secrets (
    merchant_id   text        NOT NULL,
    endpoint_id   text        NOT NULL,
    secret_id     text        NOT NULL,
    sealed_secret bytea       NOT NULL,
    sealed_key    bytea       NOT NULL,
    vault_key_id  text        NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    valid_until   timestamptz,
    PRIMARY KEY (merchant_id, endpoint_id, secret_id)
);

-- What is told: an event as the merchant reads it, once for all its endpoints, the same bytes at every attempt.
CREATE TABLE webhook_messages (
    merchant_id text        NOT NULL,
    message_id  text        NOT NULL,
    type        text        NOT NULL,
    body        bytea       NOT NULL,
    occurred_at timestamptz NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, message_id)
);
CREATE INDEX webhook_messages_by_age ON webhook_messages (created_at);

-- One for every message and endpoint that wants it. `due_at` of one that is being attempted is the end of the lease: if
-- whoever attempts it dies, it is due again by then. `attempts` tells the holder of the lease from an earlier one.
CREATE TABLE webhook_deliveries (
    merchant_id text        NOT NULL,
    delivery_id text        NOT NULL,
    endpoint_id text        NOT NULL,
    message_id  text        NOT NULL,
    state       text        NOT NULL DEFAULT 'PENDING',
    reason      text        NOT NULL DEFAULT '',
    attempts    integer     NOT NULL DEFAULT 0,
    failures    integer     NOT NULL DEFAULT 0,
    due_at      timestamptz NOT NULL DEFAULT now(),
    leased      boolean     NOT NULL DEFAULT false,
    retry_until timestamptz NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz,
    PRIMARY KEY (merchant_id, delivery_id),
    CONSTRAINT told_once UNIQUE (merchant_id, endpoint_id, message_id),
    CONSTRAINT known_delivery_state CHECK (state IN ('PENDING', 'DELIVERED', 'GIVEN_UP')),
    CONSTRAINT ended_when_final CHECK ((ended_at IS NOT NULL) = (state <> 'PENDING')),
    CONSTRAINT given_up_with_a_reason CHECK ((reason <> '') = (state = 'GIVEN_UP')),
    CONSTRAINT leased_while_pending CHECK (NOT leased OR state = 'PENDING')
) WITH (fillfactor = 70);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (merchant_id, endpoint_id, due_at) WHERE state = 'PENDING';
CREATE INDEX webhook_deliveries_leased ON webhook_deliveries (merchant_id, endpoint_id) WHERE leased;
CREATE INDEX webhook_deliveries_by_age ON webhook_deliveries (ended_at) WHERE state <> 'PENDING';
CREATE INDEX webhook_deliveries_of_message ON webhook_deliveries (merchant_id, message_id);

-- Every request that was made, or at least begun: without `ended_at` it is under way, or whoever made it has died.
CREATE TABLE webhook_attempts (
    merchant_id text        NOT NULL,
    delivery_id text        NOT NULL,
    number      integer     NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz,
    failure     text,
    status      integer,
    detail      text        NOT NULL DEFAULT '',
    duration_ms integer,
    PRIMARY KEY (merchant_id, delivery_id, number)
);
