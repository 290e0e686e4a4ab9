-- Jobs that are not as they should be for longer than $1 seconds, with $2 of each kind. A kind without any has no row.
-- Overdue are jobs only if $3, and those that wait for an event of theirs only if $4.
WITH drifted AS (
    SELECT 'overdue' AS drift, id AS job_id
    FROM signup_customerio_sync_jobs
    WHERE $3 AND status = 'pending' AND COALESCE(next_retry_at, updated_at) < now() - interval '5 minutes'
        AND ($4 OR attempt_count > 0 OR claimed_by IS NULL OR claimed_by NOT LIKE 'event:%')
    UNION ALL
    SELECT 'stuck', id
    FROM signup_customerio_sync_jobs
    WHERE status = 'processing' AND COALESCE(claimed_at, updated_at) < now() - interval '6 minutes'
    UNION ALL
    SELECT 'not_mirrored', j.id
    FROM signup_customerio_sync_jobs j
    WHERE j.status = 'failed' AND j.dismissed_at IS NULL AND j.failed_at < now() - make_interval(secs => $1)
        AND NOT EXISTS (SELECT FROM sync_failures f WHERE f.job_id = j.id AND f.resolved_at IS NULL)
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
SELECT drift AS "drift!", count(*) AS "count!", (array_agg(job_id))[:$2] AS "jobs!: Vec<uuid::Uuid>"
FROM drifted
GROUP BY drift
ORDER BY drift
