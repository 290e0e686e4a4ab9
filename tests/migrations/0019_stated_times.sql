-- A job whose event stated a time in the future.
UPDATE signup_customerio_sync_jobs
SET stated_at = now() + interval '70 years'
WHERE id = (SELECT min(id::text)::uuid FROM signup_customerio_sync_jobs);
