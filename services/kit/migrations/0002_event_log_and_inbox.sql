-- What has been announced, in an order that everybody can follow: see services/kit/events.
--
-- An outbox_id is given before its transaction commits, so a reader who has come to 7 may still be overtaken by a 5. A
-- position is given after that, by the one relay that holds the lease: it has no gaps, and who has come to 7 has 1 to 7.

-- One row: how far the relay is.
CREATE TABLE event_log (
    name          text        PRIMARY KEY,
    relay         text        NOT NULL DEFAULT '',
    lease_until   timestamptz NOT NULL DEFAULT 'epoch',
    position      bigint      NOT NULL DEFAULT 0,
    sent_position bigint      NOT NULL DEFAULT 0,
    seen_id       bigint      NOT NULL DEFAULT 0,
    holes         bigint[]    NOT NULL DEFAULT '{}',
    noticed_at    bigint[]    NOT NULL DEFAULT '{}',
    swept_at      timestamptz NOT NULL DEFAULT 'epoch'
) WITH (fillfactor = 10);

COMMENT ON COLUMN event_log.position IS 'the last one that was given';
COMMENT ON COLUMN event_log.sent_position IS 'up to here the bus has it; may lag behind the truth, never run ahead of it';
COMMENT ON COLUMN event_log.seen_id IS 'the largest outbox_id that has a position';
COMMENT ON COLUMN event_log.holes IS 'smaller ones that were not there yet: of a slower transaction, or of one that rolled back';
COMMENT ON COLUMN event_log.noticed_at IS 'when each hole was noticed, in seconds since 1970';

INSERT INTO event_log (name) VALUES ('outbox');

-- Which announcements have the positions first_position to last_position, in this order.
CREATE TABLE event_batches (
    first_position bigint      PRIMARY KEY,
    last_position  bigint      NOT NULL,
    outbox_ids     bigint[]    NOT NULL,
    numbered_at    timestamptz NOT NULL DEFAULT now()
);

-- The relay looks for what is new across all merchants. Entries are only ever added at its end, which is the cheapest that
-- an index can be; whether an announcement has been numbered is kept in batches, so that no row is ever written twice.
CREATE INDEX outbox_in_order ON outbox (outbox_id);

-- Was never written to: an announcement is marked by the batch that names it.
ALTER TABLE outbox DROP COLUMN published_at;

-- How far a listener has applied the events of a source.
CREATE TABLE inbox (
    listener   text        NOT NULL,
    source     text        NOT NULL,
    position   bigint      NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (listener, source)
) WITH (fillfactor = 10);

-- Events that could not be applied when it was their turn, and those of the same thing that came behind them.
CREATE TABLE events_set_aside (
    merchant_id  text        NOT NULL,
    listener     text        NOT NULL,
    source       text        NOT NULL,
    position     bigint      NOT NULL,
    aggregate_id text        NOT NULL,
    type         text        NOT NULL,
    payload      bytea       NOT NULL,
    traceparent  text        NOT NULL,
    announced_at timestamptz NOT NULL,
    tries        integer     NOT NULL,
    reason       text        NOT NULL,
    message      text        NOT NULL,
    due_at       timestamptz NOT NULL,
    parked_at    timestamptz,
    PRIMARY KEY (merchant_id, listener, source, position)
);

COMMENT ON COLUMN events_set_aside.tries IS 'how often it was tried; 0 for one that waits behind another of its aggregate';
COMMENT ON COLUMN events_set_aside.parked_at IS 'since when it waits for a person';

CREATE INDEX events_set_aside_due ON events_set_aside (listener, source, due_at) WHERE parked_at IS NULL;
