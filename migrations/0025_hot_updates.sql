-- A job that completes changes no column of an index, and pages that are filled from now on have room
-- for the new versions of their rows (https://www.postgresql.org/docs/current/storage-hot.html).
-- open_jobs and completed_counts answer what these indexes did.
DROP INDEX completed_jobs_by_phase, failures_by_signature, failures_in_order,
    failures_in_order_by_phase, failures_in_order_by_type, failures_without_signature, jobs_open,
    mock_jobs;
ALTER TABLE signup_customerio_sync_jobs SET (fillfactor = 50);

-- Each row of this table is written once, by a transaction that has read its job. A check per row
-- would lock the job once more.
ALTER TABLE sync_attempts DROP CONSTRAINT sync_attempts_job_id_fkey;
