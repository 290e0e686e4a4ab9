-- The rows up to a time that is still ahead become the first partition. The bound is added without a
-- check of the existing rows, which the next migration makes without locking writers out.
DO $$
DECLARE
    latest_attempt timestamptz := (SELECT max(started_at) FROM sync_attempts);
    latest_entry timestamptz := (SELECT max(created_at) FROM audit_logs);
    bound_after CONSTANT text := $bound$date_trunc('day', greatest(now(), $1), 'UTC') + interval '2 days'$bound$;
    bound timestamptz;
BEGIN
    EXECUTE 'SELECT ' || bound_after INTO bound USING latest_attempt;
    EXECUTE format(
        'ALTER TABLE sync_attempts ADD CONSTRAINT sync_attempts_bound CHECK (started_at < %L) NOT VALID', bound
    );
    EXECUTE 'SELECT ' || bound_after INTO bound USING latest_entry;
    EXECUTE format(
        'ALTER TABLE audit_logs ADD CONSTRAINT audit_logs_bound CHECK (created_at < %L) NOT VALID', bound
    );
END;
$$;
