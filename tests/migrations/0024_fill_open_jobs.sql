-- Every open job is listed, and every completed one is counted.
DO $$
BEGIN
    ASSERT (SELECT count(*) FROM open_jobs) > 0;
    ASSERT NOT EXISTS (
        SELECT id
        FROM signup_customerio_sync_jobs
        WHERE status IN ('pending', 'processing', 'failed') OR mock
        EXCEPT
        SELECT id
        FROM open_jobs
    );
    ASSERT (SELECT sum(jobs) FROM completed_counts)
        = (SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed');
END;
$$;
