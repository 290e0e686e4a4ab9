-- Rows with times that the first partition admits are still written.
INSERT INTO sync_attempts (job_id, run, attempt, started_at, duration_ms)
VALUES (gen_random_uuid(), 0, 0, now() - interval '1 day', 1);
INSERT INTO audit_logs (action, actor, details)
VALUES ('customerio_dismiss', 'ann', '{}');
