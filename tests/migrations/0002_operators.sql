-- A dismissed failure, and one bulk retry per status.
UPDATE signup_customerio_sync_jobs
SET error_signature = error_message, dismissed_at = now(), dismissed_reason = 'a test account'
WHERE status = 'failed';

INSERT INTO bulk_retries (id, actor, selection, status, eligible, retried, finished_at, cancelled_by) VALUES
    ('00000000-0000-4000-a000-000000000001', 'ann', '{}', 'running', 3, 1, NULL, NULL),
    ('00000000-0000-4000-a000-000000000002', 'ann', '{"errorType": "network"}', 'completed', 2, 2, now(), NULL),
    ('00000000-0000-4000-a000-000000000003', 'ben', '{}', 'cancelled', 9, 4, now(), 'ann');
