-- An outcome that waits.
INSERT INTO outbox (kind, job_ids, runs, attempts, writer, due_at)
SELECT 'outcomes', ARRAY[id], ARRAY[run], ARRAY[attempt_count], gen_random_uuid(), now() + interval '1 day'
FROM signup_customerio_sync_jobs
WHERE status = 'completed'
LIMIT 1;
