-- The jobs that messages are for, locked in the lock order (locks.rs).
SELECT j.id, j.signup_id, j.sync_phase AS "sync_phase: _", j.status AS "status: _", j.run,
    j.attempt_count, j.max_attempts, j.manual_retry, j.event_id, j.earlier_events, j.occurred_at,
    j.stated_at, j.created_at, j.updated_at, j.first_failed_at, j.failed_at, j.failed_reason,
    j.completed_at, j.mock, j.error_type AS "error_type: _", j.error_message, j.traceparent,
    j.tracestate, j.claim, j.claimed_by AS "claimed_by: _", j.contact_id,
    COALESCE(j.claimed_at, j.last_attempt_at, j.updated_at)
        < now() - make_interval(secs => $3) AS "is_stale!",
    -- The first half of a claim names its replica, which owns the lock of that number while it lives
    -- (presence.rs). A claim of the release before names none.
    CASE
        WHEN j.status = 'processing' AND substr(j.claim::text, 15, 1) = '8'
            -- After a restart of the server, no session has its locks back at once.
            THEN pg_postmaster_start_time() < now() - interval '30 seconds'
                AND pg_try_advisory_xact_lock(
                    ('x' || replace(left(j.claim::text, 18), '-', ''))::bit(64)::int8
                )
    END AS owner_is_gone,
    COALESCE(EXTRACT(EPOCH FROM j.next_retry_at - now())::float8 * 1000, 0) AS "due_in_ms!"
FROM UNNEST($1::uuid[], $2::text[]) AS wanted (signup_id, sync_phase)
JOIN signup_customerio_sync_jobs j
    ON j.signup_id = wanted.signup_id AND j.sync_phase = wanted.sync_phase
ORDER BY j.signup_id, j.sync_phase
FOR UPDATE OF j
