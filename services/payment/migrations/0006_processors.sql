-- A payment stays with the processor that it was begun at. Those from before there was a choice, and those that an older
-- process writes beside a newer one, are at the bank.
ALTER TABLE payments ADD COLUMN processor text NOT NULL DEFAULT 'bank';

COMMENT ON COLUMN payments.processor IS 'where the payment was begun; its first event tells';
