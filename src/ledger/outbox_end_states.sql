-- The end states that rows of the outbox name, as the audit log has them.
SELECT m.row AS "row!", j.id, j.signup_id, j.sync_phase AS "sync_phase: _", m.run AS "run!",
    m.attempt AS "attempt!", j.max_attempts, j.occurred_at, j.created_at,
    -- What a later run has replaced is left out.
    CASE WHEN j.run = m.run THEN j.first_failed_at END AS first_failed_at,
    CASE WHEN j.run = m.run THEN j.traceparent END AS traceparent,
    CASE WHEN j.run = m.run THEN j.tracestate END AS tracestate,
    a.action = $2 AS "is_completed!", a.details, a.created_at AS at
FROM (
    SELECT id AS row, UNNEST(job_ids) AS job_id, UNNEST(runs) AS run, UNNEST(attempts) AS attempt
    FROM outbox
    WHERE id = ANY($1)
) AS m
JOIN signup_customerio_sync_jobs j ON j.id = m.job_id
CROSS JOIN LATERAL (
    SELECT action, details, created_at
    FROM audit_logs
    WHERE signup_id = j.signup_id AND action IN ($2, $3) AND details ->> 'jobId' = j.id::text
        AND CASE
            WHEN details ? 'run' THEN (details ->> 'run')::int4 = m.run
            -- The release before does not write the run.
            ELSE COALESCE((details ->> 'attemptCount')::int4, m.attempt) = m.attempt
        END
    ORDER BY details ? 'run' DESC, id DESC
    LIMIT 1
) AS a
