-- What was taken in is counted apart from the jobs that came of it, so that one can be held against the other.

-- One row a transaction, so that transactions don't wait for each other; the rows are added up now and then.
CREATE TABLE taken_in (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    jobs bigint NOT NULL DEFAULT 0 CHECK (jobs >= 0), -- jobs that events have made
    unprocessable bigint NOT NULL DEFAULT 0 CHECK (unprocessable >= 0) -- messages that name no job
);

INSERT INTO taken_in (jobs, unprocessable)
SELECT (SELECT count(*) FROM signup_customerio_sync_jobs), (SELECT count(*) FROM sync_failures WHERE job_id IS NULL);

-- The flagged signups are held against the failed jobs.
CREATE INDEX signups_failed ON signups (id) WHERE customerio_sync_failed;
