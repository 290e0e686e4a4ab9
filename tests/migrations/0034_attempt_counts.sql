INSERT INTO sync_attempts (job_id, run, attempt, started_at, duration_ms, http_status)
VALUES ('00000000-0000-4000-9000-000000000001', 1, 0, now(), 1, 200);
INSERT INTO attempt_counts (minute, completed, retried, failed)
VALUES (date_bin('1 minute', now(), 'epoch'), 1, 0, 0);
