-- The retries that rows of the outbox name, as the history of attempts has them.
SELECT m.row AS "row!", j.id, j.signup_id, j.sync_phase AS "sync_phase: _", m.run AS "run!",
    m.attempt AS "attempt!", j.max_attempts, j.manual_retry, j.occurred_at, j.created_at,
    -- What a later run has replaced is left out.
    CASE WHEN j.run = m.run THEN j.first_failed_at END AS first_failed_at,
    CASE WHEN j.run = m.run THEN j.traceparent END AS traceparent,
    CASE WHEN j.run = m.run THEN j.tracestate END AS tracestate,
    -- A retry that is late waits for the rest of its time.
    CASE
        WHEN j.run = m.run AND j.attempt_count = m.attempt AND j.next_retry_at > now()
            THEN EXTRACT(EPOCH FROM j.next_retry_at - now())::float8 * 1000
        ELSE 0
    END AS "wait_ms!", a.tier AS "tier!", j.updated_at AS "at!", a.error_type AS "error_type: _", a.error_message
FROM (
    SELECT id AS row, UNNEST(job_ids) AS job_id, UNNEST(runs) AS run, UNNEST(attempts) AS attempt
    FROM outbox
    WHERE id = ANY($1)
) AS m
JOIN signup_customerio_sync_jobs j ON j.id = m.job_id
CROSS JOIN LATERAL (
    SELECT tier, error_type, error_message
    FROM sync_attempts
    -- The attempt that failed precedes the one that the message asks for.
    WHERE job_id = m.job_id AND run = m.run AND attempt = m.attempt - 1 AND tier IS NOT NULL
    ORDER BY id DESC
    LIMIT 1
) AS a
