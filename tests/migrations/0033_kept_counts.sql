-- The counts are those of the rows, before and after changes.
UPDATE sync_failures SET failed_at = failed_at;
UPDATE signups SET updated_at = now();
DO $$
BEGIN
    ASSERT NOT EXISTS (
        SELECT state, count(*) FROM open_jobs GROUP BY state
        EXCEPT
        SELECT state, sum(jobs) FROM open_counts GROUP BY state
    );
    ASSERT NOT EXISTS (
        SELECT job_id IS NOT NULL, resolved_at IS NULL, count(*) FROM sync_failures GROUP BY 1, 2
        EXCEPT
        SELECT has_job, is_open, sum(failures) FROM failure_counts GROUP BY 1, 2
    );
    ASSERT (SELECT sum(signups) FROM signup_counts)
        = (SELECT count(*) FROM signups WHERE created_at >= now() - interval '25 hours');
    ASSERT (SELECT sum(synced) FROM signup_counts)
        = (SELECT count(*) FROM signups WHERE created_at >= now() - interval '25 hours' AND customerio_synced);
END;
$$;
