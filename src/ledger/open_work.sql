-- The work that is not completed, at one moment. This reads no completed job.
SELECT EXTRACT(EPOCH FROM now())::int8 AS "read_at!", by_state.pending AS "pending!",
    claimed.count AS "processing!", by_state.failed AS "failed!",
    by_state.failed_open + unprocessable.count AS "open_failures!", due.overdue AS "overdue!",
    due.oldest AS "oldest_overdue_seconds!", claimed.oldest AS "oldest_processing_seconds!",
    unsynced.count AS "unsynced_signups!", unsynced.oldest AS "oldest_unsynced_seconds!",
    late.due_soon AS "late_soon!", late.passed AS "late!",
    running.count AS "bulk_retries_running!", owed.outcomes AS "outcomes_waiting!",
    owed.oldest AS "oldest_outbox_seconds!"
FROM (
    -- The sum of what the writers added.
    SELECT COALESCE(sum(jobs) FILTER (WHERE state = 'pending'), 0)::int8 AS pending,
        COALESCE(sum(jobs) FILTER (WHERE state IN ('failed', 'dismissed')), 0)::int8 AS failed,
        COALESCE(sum(jobs) FILTER (WHERE state = 'failed'), 0)::int8 AS failed_open
    FROM open_counts
) AS by_state,
(
    SELECT COALESCE(sum(failures), 0)::int8 AS count
    FROM failure_counts
    WHERE is_open AND NOT has_job
) AS unprocessable,
(
    -- A job that waits on a tier is due later, and a restarted one was created long ago: the age of
    -- neither means that it is late.
    SELECT count(*) AS overdue,
        GREATEST(EXTRACT(EPOCH FROM now() - min(due_at)), 0)::int8 AS oldest
    FROM open_jobs
    WHERE state = 'pending' AND due_at < now()
) AS due,
(
    SELECT count(*) AS count,
        GREATEST(EXTRACT(EPOCH FROM now() - min(claimed_at)), 0)::int8 AS oldest
    FROM claimed_jobs
) AS claimed,
(
    -- A job is not older than its signup, so the index on the creation of open jobs finds these signups.
    SELECT count(DISTINCT s.id) AS count,
        GREATEST(EXTRACT(EPOCH FROM now() - min(s.created_at)), 0)::int8 AS oldest
    FROM (
        SELECT signup_id
        FROM open_jobs
        WHERE state IN ('pending', 'failed') AND created_at >= now() - interval '24 hours'
        UNION ALL
        SELECT signup_id
        FROM claimed_jobs
        WHERE created_at >= now() - interval '24 hours'
    ) AS open
    JOIN signups s ON s.id = open.signup_id
    WHERE s.created_at >= now() - interval '24 hours' AND NOT s.customerio_synced
) AS unsynced,
(
    -- An event that is older than 72 hours starts no campaign at Customer.io.
    SELECT count(*) FILTER (WHERE occurred_at >= now() - interval '72 hours') AS due_soon,
        count(*) FILTER (WHERE occurred_at < now() - interval '72 hours') AS passed
    FROM (
        SELECT occurred_at
        FROM open_jobs
        WHERE state IN ('pending', 'failed')
        UNION ALL
        SELECT occurred_at
        FROM claimed_jobs
    ) AS open
    WHERE occurred_at < now() - interval '60 hours'
) AS late,
(
    SELECT count(*)
    FROM bulk_retries
    WHERE status = 'running'
) AS running,
(
    SELECT COALESCE(sum(cardinality(job_ids)) FILTER (WHERE kind = 'outcomes'), 0)::int8 AS outcomes,
        COALESCE(EXTRACT(EPOCH FROM now() - min(created_at)), 0)::int8 AS oldest
    FROM outbox
) AS owed
