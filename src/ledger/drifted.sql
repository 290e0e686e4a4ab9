-- Discrepancies that are older than $1 seconds, with at most $2 jobs per kind. A kind without jobs has
-- no row. Overdue jobs are reported only if $3, and those that wait for their event only if $4; $5 is
-- the prefix of claimed_by when an event claimed the job.
WITH drifted AS (
    SELECT 'overdue' AS drift, j.id AS job_id
    FROM open_jobs o
    JOIN signup_customerio_sync_jobs j ON j.id = o.id
    WHERE $3 AND o.state = 'pending' AND o.due_at < now() - interval '5 minutes'
        AND (
            $4 OR j.attempt_count > 0 OR j.claimed_by IS NULL OR NOT starts_with(j.claimed_by, $5)
        )
    UNION ALL
    SELECT 'stuck', id
    FROM claimed_jobs
    WHERE claimed_at < now() - interval '6 minutes'
    UNION ALL
    SELECT 'not_mirrored', j.id
    FROM open_jobs j
    WHERE j.state = 'failed' AND j.ended_at < now() - make_interval(secs => $1)
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
    FROM open_jobs j
    JOIN signups s ON s.id = j.signup_id
    WHERE j.state IN ('failed', 'dismissed') AND NOT s.customerio_sync_failed
    UNION ALL
    SELECT 'flags', j.id
    FROM signups s
    JOIN signup_customerio_sync_jobs j ON j.signup_id = s.id
    WHERE s.customerio_sync_failed
        AND NOT EXISTS (
            SELECT
            FROM open_jobs failed
            WHERE failed.signup_id = s.id AND failed.state IN ('failed', 'dismissed')
        )
)
SELECT drift AS "drift!: Drift", count(*) AS "count!",
    (array_agg(job_id))[:$2] AS "jobs!: Vec<uuid::Uuid>"
FROM drifted
GROUP BY drift
ORDER BY drift
