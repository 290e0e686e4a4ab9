-- A job that completes changes no column of an index, and its page has room for the new version of
-- its row (https://www.postgresql.org/docs/current/storage-hot.html). open_jobs and
-- completed_counts answer what these indexes did.
DROP INDEX completed_jobs_by_phase, failures_by_signature, failures_in_order,
    failures_in_order_by_phase, failures_in_order_by_type, failures_without_signature, jobs_open,
    mock_jobs;
ALTER TABLE signup_customerio_sync_jobs SET (fillfactor = 50);
ALTER TABLE signups SET (fillfactor = 55);

-- Each row of these tables is written once, by a transaction that owns the locks on its job and
-- its signup. A check per row would lock both again.
ALTER TABLE sync_attempts DROP CONSTRAINT sync_attempts_job_id_fkey;
ALTER TABLE audit_logs DROP CONSTRAINT audit_logs_signup_id_fkey;
