-- History is kept by months: those of the payments that began in them. An old month can then be exported and taken away
-- as a whole, and what is written lately stays together.
--
-- A payment's id begins with its time of birth, so its id says where its events and entries lie: a payment stays together
-- whatever happens to it later, keys keep their uniqueness, and whoever knows a payment looks into one table. Ids are
-- compared by their first hexadecimal digits, which every collation sorts alike.
--
-- What was written until now becomes the first part as it is, up to the end of this month; nothing is copied. The server
-- reads it through once, to see that all of it belongs there: half a second for a million rows. Whoever has hundreds of
-- millions spares it that by a CHECK of their own beforehand, added NOT VALID and validated while work goes on:
-- payment_id < 'pay_…' with the bound that history_bound() returns for the cut below, and the same for journal_id.

CREATE FUNCTION history_bound(month timestamp) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 'pay_' || lpad(to_hex((extract(epoch FROM month) * 1000)::bigint), 12, '0')
$$;

ALTER TABLE payment_events RENAME TO payment_events_before;
ALTER TABLE journal_entries RENAME TO journal_entries_before;

CREATE TABLE payment_events (
    LIKE payment_events_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING COMMENTS,
    PRIMARY KEY (merchant_id, payment_id, version)
) PARTITION BY RANGE (payment_id);
CREATE INDEX ON payment_events (recorded_at);

CREATE TABLE journal_entries (
    LIKE journal_entries_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING COMMENTS,
    PRIMARY KEY (merchant_id, journal_id, line)
) PARTITION BY RANGE (journal_id);

DO $$
DECLARE
    -- The end of this month, but not so near that somebody's clock is there already.
    cut text := history_bound(
        date_trunc('month', now() AT TIME ZONE 'UTC' + interval '1 day') + interval '1 month'
    );
    one record;
BEGIN
    FOR one IN
        SELECT conrelid::regclass AS part, conname FROM pg_constraint
        WHERE conrelid IN ('payment_events_before'::regclass, 'journal_entries_before'::regclass) AND NOT convalidated
    LOOP
        EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', one.part, one.conname);
    END LOOP;
    EXECUTE format('ALTER TABLE payment_events ATTACH PARTITION payment_events_before'
                   ' FOR VALUES FROM (MINVALUE) TO (%L)', cut);
    EXECUTE format('ALTER TABLE journal_entries ATTACH PARTITION journal_entries_before'
                   ' FOR VALUES FROM (MINVALUE) TO (%L)', cut);
END
$$;

-- Whatever happens to the making of months: money is never refused for the lack of one.
CREATE TABLE payment_events_other PARTITION OF payment_events DEFAULT;
CREATE TABLE journal_entries_other PARTITION OF journal_entries DEFAULT;

CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON payment_events
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON payment_events_other
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON journal_entries
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON journal_entries_other
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed();
CREATE TRIGGER journals_balance AFTER INSERT ON journal_entries
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION journals_must_balance();

-- Makes the months from this one through `ahead` later ones. Returns for how many months from now on, this one not
-- counted, there are parts without a gap. Runs as the owner of the tables, because whoever calls it may not make any.
-- A month that cannot be made now (an audit reads, its first rows already lie elsewhere) is left out; the next call
-- tries again.
CREATE FUNCTION create_history_months(ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '1s' AS $$
DECLARE
    this_month timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
    month timestamp;
    history text;
    part text;
    missing integer := ahead + 1;
BEGIN
    FOR number IN 0..ahead LOOP
        month := this_month + make_interval(months => number);
        FOREACH history IN ARRAY ARRAY['payment_events', 'journal_entries'] LOOP
            part := history || to_char(month, '_YYYY_MM');
            CONTINUE WHEN to_regclass(part) IS NOT NULL;
            BEGIN
                EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part, history);
                EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', history, part,
                               history_bound(month), history_bound(month + interval '1 month'));
                EXECUTE format('CREATE TRIGGER history_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON %I'
                               ' FOR EACH STATEMENT EXECUTE FUNCTION history_is_not_changed()', part);
            EXCEPTION
                WHEN invalid_object_definition THEN
                    NULL; -- a part that is there already covers it: the one from before there were months
                WHEN check_violation OR lock_not_available OR duplicate_table OR unique_violation
                     OR deadlock_detected THEN
                    missing := least(missing, number);
            END;
        END LOOP;
    END LOOP;
    RETURN missing - 1;
END
$$;
