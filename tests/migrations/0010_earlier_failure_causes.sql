INSERT INTO sync_attempts
    (job_id, run, attempt, started_at, duration_ms, http_status, error_type, error_cause, error_message)
VALUES
    ('00000000-0000-4000-9000-000000000004', 0, 5, now(), 9, 403, 'other', 'credentials_refused', 'refused');
