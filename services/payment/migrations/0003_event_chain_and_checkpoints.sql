-- The audit trail: events are chained by hashes and sealed by checkpoints, and what is history refuses to be changed.
--
-- A hash is a function of the rows before it, so rows from before this migration, and those that an older process writes
-- beside a newer one, have one too; it just does not stand in them. `hashed_version` tells whether `event_hash` is that
-- of the newest event: an older process moves `version` on and knows of neither.
ALTER TABLE payment_events ADD COLUMN hash bytea;

ALTER TABLE payments
    ADD COLUMN event_hash bytea,
    ADD COLUMN hashed_version integer NOT NULL DEFAULT 0;

COMMENT ON COLUMN payment_events.hash IS 'over this event and the hash before it; null on rows from before 0003';
COMMENT ON COLUMN payments.event_hash IS 'hash of the event whose version is hashed_version';

-- Checkpoints are made in the order of time.
CREATE INDEX payment_events_recorded ON payment_events (recorded_at);

-- What was sealed. The checkpoints themselves lie outside of the database; this is so that neither can lose one alone.
CREATE TABLE event_checkpoints (
    number    bigint      NOT NULL PRIMARY KEY,
    header    text        NOT NULL,
    sealed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT numbers_start_at_one CHECK (number >= 1)
);

COMMENT ON COLUMN event_checkpoints.header IS 'the first line of the checkpoint: what it seals, signed';

-- History is written once. Whoever owns the tables can take this away, but not by mistake, and not without a trace.
CREATE FUNCTION history_is_not_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: history is never changed', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON payment_events
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON journal_entries
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON event_checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
