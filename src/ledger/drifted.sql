-- Discrepancies that are older than $1 seconds, with at most $2 jobs per kind. A kind without jobs has
-- no row. Overdue jobs are reported only if $3, and those that wait for their event only if $4; $5 is
-- the prefix of claimed_by when an event claimed the job.
WITH drifted AS (
    SELECT 'overdue' AS drift, id AS job_id
    FROM signup_customerio_sync_jobs
    WHERE $3 AND status = 'pending'
        AND COALESCE(next_retry_at, updated_at) < now() - interval '5 minutes'
        AND (
            $4 OR attempt_count > 0 OR claimed_by IS NULL OR NOT starts_with(claimed_by, $5)
        )
    UNION ALL
    SELECT 'stuck', id
    FROM signup_customerio_sync_jobs
    WHERE status = 'processing'
        AND COALESCE(claimed_at, updated_at) < now() - interval '6 minutes'
    UNION ALL
    SELECT 'not_mirrored', j.id
    FROM signup_customerio_sync_jobs j
    WHERE j.status = 'failed' AND j.dismissed_at IS NULL
        AND j.failed_at < now() - make_interval(secs => $1)
        AND NOT EXISTS (
            SELECT
            FROM sync_failures f
            WHERE f.job_id = j.id AND f.resolved_at IS NULL
        )
    UNION ALL
    SELECT 'not_failed', f.job_id
    FROM sync_failures f
    JOIN signup_customerio_sync_jobs j ON j.id = f.job_id
    WHERE f.resolved_at IS NULL AND f.mirrored_at < now() - make_interval(secs => $1)
        AND (
            j.status <> 'failed' OR j.dismissed_at IS NOT NULL
            OR EXISTS (
                SELECT
                FROM sync_failures other
                WHERE other.job_id = f.job_id AND other.id < f.id AND other.resolved_at IS NULL
            )
        )
    UNION ALL
    SELECT 'flags', j.id
    FROM signup_customerio_sync_jobs j
    JOIN signups s ON s.id = j.signup_id
    WHERE j.status = 'failed' AND NOT s.customerio_sync_failed
    UNION ALL
    SELECT 'flags', j.id
    FROM signups s
    JOIN signup_customerio_sync_jobs j ON j.signup_id = s.id
    WHERE s.customerio_sync_failed
        AND NOT EXISTS (
            SELECT
            FROM signup_customerio_sync_jobs failed
            WHERE failed.signup_id = s.id AND failed.status = 'failed'
        )
)
SELECT drift AS "drift!: Drift", count(*) AS "count!",
    (array_agg(job_id))[:$2] AS "jobs!: Vec<uuid::Uuid>"
FROM drifted
GROUP BY drift
ORDER BY drift
