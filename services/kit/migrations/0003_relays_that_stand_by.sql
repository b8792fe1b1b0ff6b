-- What is announced by a process whose relay stands by is found by looking, which the relay that works need not do often
-- when it is alone.
ALTER TABLE event_log ADD COLUMN standby_at timestamptz NOT NULL DEFAULT 'epoch';

COMMENT ON COLUMN event_log.standby_at IS 'when a relay last found that another one has the lease';
