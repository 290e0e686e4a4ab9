-- Each row has its partition, new ids follow the old ones, and a month that comes has a partition.
DO $$
DECLARE
    last_id bigint := (SELECT max(id) FROM sync_attempts);
    new_id bigint;
    partition text;
BEGIN
    ASSERT (SELECT count(*) FROM sync_attempts_first) = (SELECT count(*) FROM sync_attempts);
    ASSERT (SELECT count(*) FROM audit_logs_first) = (SELECT count(*) FROM audit_logs);
    INSERT INTO sync_attempts (job_id, run, attempt, started_at, duration_ms)
    VALUES (gen_random_uuid(), 7, 0, now() + interval '35 days', 1)
    RETURNING id, tableoid::regclass::text INTO new_id, partition;
    ASSERT new_id > last_id;
    ASSERT partition ~ '^sync_attempts_\d{4}_\d\d$', partition;
    -- A row that no month takes in is kept, and moved when its month comes.
    INSERT INTO sync_attempts (job_id, run, attempt, started_at, duration_ms)
    VALUES (gen_random_uuid(), 8, 0, now() + interval '10 years', 1);
    ASSERT (SELECT count(*) FROM sync_attempts_default) = 1;
    BEGIN
        DELETE FROM audit_logs_default;
        ASSERT false, 'the audit log is append-only';
    EXCEPTION
        WHEN restrict_violation THEN
            NULL;
    END;
END;
$$;
