-- Resolved failures are deleted when they are older than their retention, and jobs if that is wanted.
CREATE INDEX failures_resolved ON sync_failures (resolved_at) WHERE resolved_at IS NOT NULL;

-- What retention deletes is no longer received.
ALTER TABLE taken_in DROP CONSTRAINT taken_in_jobs_check, DROP CONSTRAINT taken_in_unprocessable_check;
