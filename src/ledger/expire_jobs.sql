-- Deletes the signups in $2 that have no job but those that ended longer ago than $1 seconds, with these
-- jobs and their failures. A job of mock mode can still be sent, and one that ended after the oldest row of
-- the outbox was written may still have a message there.
WITH over AS (
    SELECT s.id
    FROM UNNEST($2::uuid[]) AS s (id)
    WHERE NOT EXISTS (
        SELECT
        FROM signup_customerio_sync_jobs j
        WHERE j.signup_id = s.id AND (
            j.mock OR COALESCE(j.completed_at, j.dismissed_at) IS NULL
            OR COALESCE(j.completed_at, j.dismissed_at) >= LEAST(
                now() - make_interval(secs => $1), (SELECT min(created_at) FROM outbox)
            )
            OR EXISTS (SELECT FROM sync_failures f WHERE f.job_id = j.id AND f.resolved_at IS NULL)
        )
    )
), deleted_failures AS (
    DELETE FROM sync_failures
    WHERE job_id IN (
        SELECT id
        FROM signup_customerio_sync_jobs
        WHERE signup_id IN (SELECT id FROM over)
    )
), deleted_jobs AS (
    DELETE FROM signup_customerio_sync_jobs
    WHERE signup_id IN (SELECT id FROM over)
    RETURNING id
), taken_off AS (
    INSERT INTO taken_in (jobs)
    SELECT -count(*)
    FROM deleted_jobs
    HAVING count(*) > 0
), deleted_signups AS (
    DELETE FROM signups
    WHERE id IN (SELECT id FROM over)
)
SELECT count(*) AS "count!"
FROM deleted_jobs
