-- no-transaction
-- Lists the jobs that were open before, in portions, so that no job is locked for long.
DO $$
DECLARE
    portion uuid[];
BEGIN
    FOR portion IN
        SELECT array_agg(id)
        FROM (
            SELECT id, row_number() OVER (ORDER BY created_at, id) / 500 AS number
            FROM signup_customerio_sync_jobs
            WHERE status <> 'completed'
            UNION ALL
            SELECT id, -1 - row_number() OVER (ORDER BY id) / 500
            FROM signup_customerio_sync_jobs
            WHERE mock
        ) AS numbered
        GROUP BY number
    LOOP
        LOOP
            BEGIN
                -- The lock order of the service: signups by id, then jobs by signup.
                PERFORM
                FROM signups
                WHERE id IN (
                    SELECT signup_id
                    FROM signup_customerio_sync_jobs
                    WHERE id = ANY(portion)
                )
                ORDER BY id
                FOR NO KEY UPDATE;
                -- The triggers list those that change meanwhile.
                WITH locked AS (
                    SELECT *
                    FROM signup_customerio_sync_jobs j
                    WHERE id = ANY(portion) AND (status <> 'completed' OR mock)
                        AND NOT EXISTS (SELECT FROM open_jobs o WHERE o.id = j.id)
                    ORDER BY signup_id
                    FOR UPDATE
                )
                INSERT INTO open_jobs (
                    id, state, signup_id, sync_phase, attempt_count, occurred_at, created_at,
                    due_at, last_attempt_at, ended_at, error_type, error_signature
                )
                SELECT id,
                    CASE
                        WHEN mock THEN 'mock'
                        WHEN dismissed_at IS NOT NULL THEN 'dismissed'
                        ELSE status
                    END,
                    signup_id, sync_phase, attempt_count, occurred_at, created_at,
                    COALESCE(next_retry_at, updated_at), last_attempt_at,
                    COALESCE(failed_at, completed_at), error_type, error_signature
                FROM locked
                ON CONFLICT (id) DO NOTHING;
                EXIT;
            EXCEPTION
                WHEN deadlock_detected THEN
                    NULL; -- again
            END;
        END LOOP;
        COMMIT;
    END LOOP;
END;
$$;
