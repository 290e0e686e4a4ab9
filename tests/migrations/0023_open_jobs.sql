-- A batch in flight, and a job that the triggers list.
INSERT INTO claims (claim, jobs)
SELECT gen_random_uuid(), ARRAY[id]
FROM signup_customerio_sync_jobs
LIMIT 1;
UPDATE signup_customerio_sync_jobs
SET updated_at = now()
WHERE id = (SELECT id FROM signup_customerio_sync_jobs WHERE status = 'pending' LIMIT 1);
