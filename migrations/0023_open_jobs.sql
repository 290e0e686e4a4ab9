-- Lists open jobs and counts completed ones. The queries of operators, leaders and gauges then take
-- the same time with any number of completed jobs, and the completion of a job changes no index
-- (https://www.postgresql.org/docs/current/storage-hot.html). The previous release writes only the
-- jobs, so triggers write these tables.

-- A job that waits, that failed, or that was completed in mock mode and can be sent. It is
-- 'processing' if it was claimed by a release that writes no row of `claims`.
CREATE TABLE open_jobs (
    id uuid PRIMARY KEY REFERENCES signup_customerio_sync_jobs (id) ON DELETE CASCADE,
    state text NOT NULL CHECK (state IN ('pending', 'processing', 'failed', 'dismissed', 'mock')),
    signup_id uuid NOT NULL,
    sync_phase text NOT NULL,
    attempt_count int4 NOT NULL,
    occurred_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL, -- the time of its retry, or else of its last change
    last_attempt_at timestamptz,
    ended_at timestamptz, -- when it failed or was completed
    error_type text,
    error_signature text
);

-- The order of the list of failures.
CREATE INDEX open_failures_in_order
    ON open_jobs (attempt_count DESC, last_attempt_at DESC NULLS LAST, id)
    INCLUDE (signup_id)
    WHERE state = 'failed';
CREATE INDEX open_failures_in_order_by_phase
    ON open_jobs (sync_phase, attempt_count DESC, last_attempt_at DESC NULLS LAST, id)
    INCLUDE (error_type, signup_id)
    WHERE state = 'failed';
CREATE INDEX open_failures_in_order_by_type
    ON open_jobs (error_type, attempt_count DESC, last_attempt_at DESC NULLS LAST, id)
    INCLUDE (sync_phase, signup_id)
    WHERE state = 'failed';
CREATE INDEX open_failures_by_signature
    ON open_jobs (error_signature, error_type, ended_at) INCLUDE (id)
    WHERE state = 'failed';
CREATE INDEX open_failures_without_signature
    ON open_jobs (id)
    WHERE state = 'failed' AND error_signature IS NULL;
CREATE INDEX open_failures_of_signup
    ON open_jobs (signup_id)
    WHERE state IN ('failed', 'dismissed');
CREATE INDEX open_jobs_by_age ON open_jobs (state, created_at) INCLUDE (sync_phase, signup_id);
CREATE INDEX open_jobs_by_event_time
    ON open_jobs (occurred_at)
    WHERE state IN ('pending', 'failed');
CREATE INDEX open_jobs_due ON open_jobs (due_at) WHERE state = 'pending';

-- One row per batch in flight: the jobs that it has claimed. A row that is left belongs to a process that is gone.
CREATE TABLE claims (
    claim uuid PRIMARY KEY,
    jobs uuid[] NOT NULL CHECK (cardinality(jobs) > 0),
    claimed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX claims_by_age ON claims (claimed_at);

-- The jobs that are claimed. OFFSET keeps the planner from reading all jobs for a few claims.
CREATE VIEW claimed_jobs AS
SELECT j.*
FROM (
    SELECT claim, UNNEST(jobs) AS id
    FROM claims
    UNION ALL
    SELECT NULL, id
    FROM open_jobs
    WHERE state = 'processing'
) AS c
CROSS JOIN LATERAL (
    SELECT id, signup_id, sync_phase, error_type, error_signature, occurred_at, created_at,
        COALESCE(claimed_at, updated_at) AS claimed_at
    FROM signup_customerio_sync_jobs
    WHERE id = c.id AND status = 'processing' AND (c.claim IS NULL OR claim = c.claim)
    OFFSET 0
) AS j;

-- Completed jobs: their number is the sum of all rows.
CREATE TABLE completed_counts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sync_phase text NOT NULL,
    jobs bigint NOT NULL
);

-- The functions have the rights of their owner: the previous release may lack those on new tables.
CREATE FUNCTION list_open_job() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
DECLARE
    new_state text := CASE
        WHEN NEW.status = 'failed' AND NEW.dismissed_at IS NOT NULL THEN 'dismissed'
        WHEN NEW.status IN ('pending', 'failed') THEN NEW.status
        WHEN NEW.mock THEN 'mock'
        WHEN NEW.status = 'processing'
            AND current_setting('customerio_sync.writes_claims', true) IS DISTINCT FROM 'on'
            AND NOT EXISTS (SELECT FROM claims WHERE claim = NEW.claim)
            THEN 'processing'
    END;
BEGIN
    IF new_state IS NULL THEN
        DELETE FROM open_jobs
        WHERE id = NEW.id;
    ELSE
        INSERT INTO open_jobs AS o (
            id, state, signup_id, sync_phase, attempt_count, occurred_at, created_at, due_at,
            last_attempt_at, ended_at, error_type, error_signature
        )
        VALUES (
            NEW.id, new_state, NEW.signup_id, NEW.sync_phase, NEW.attempt_count, NEW.occurred_at,
            NEW.created_at, COALESCE(NEW.next_retry_at, NEW.updated_at), NEW.last_attempt_at,
            COALESCE(NEW.failed_at, NEW.completed_at), NEW.error_type, NEW.error_signature
        )
        ON CONFLICT (id) DO UPDATE
        SET state = EXCLUDED.state, attempt_count = EXCLUDED.attempt_count,
            occurred_at = EXCLUDED.occurred_at, created_at = EXCLUDED.created_at,
            due_at = EXCLUDED.due_at, last_attempt_at = EXCLUDED.last_attempt_at,
            ended_at = EXCLUDED.ended_at, error_type = EXCLUDED.error_type,
            error_signature = EXCLUDED.error_signature
        WHERE o IS DISTINCT FROM EXCLUDED;
    END IF;
    RETURN NULL;
END;
$$;

CREATE FUNCTION count_completed_jobs() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO completed_counts (sync_phase, jobs)
        SELECT sync_phase, count(*)
        FROM new_jobs
        WHERE status = 'completed'
        GROUP BY sync_phase;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO completed_counts (sync_phase, jobs)
        SELECT sync_phase, -count(*)
        FROM old_jobs
        WHERE status = 'completed'
        GROUP BY sync_phase;
    ELSE
        INSERT INTO completed_counts (sync_phase, jobs)
        SELECT sync_phase, sum(change)
        FROM (
            SELECT sync_phase, 1 AS change
            FROM new_jobs
            WHERE status = 'completed'
            UNION ALL
            SELECT sync_phase, -1
            FROM old_jobs
            WHERE status = 'completed'
        ) AS changes
        GROUP BY sync_phase
        HAVING sum(change) <> 0;
    END IF;
    RETURN NULL;
END;
$$;

-- A job that is claimed by this release and completed causes no call of the function.
CREATE TRIGGER list_open_jobs_inserted
    AFTER INSERT ON signup_customerio_sync_jobs
    FOR EACH ROW
    WHEN (
        NEW.status IN ('pending', 'failed') OR NEW.mock
        OR (
            NEW.status = 'processing'
            AND current_setting('customerio_sync.writes_claims', true) IS DISTINCT FROM 'on'
        )
    )
    EXECUTE FUNCTION list_open_job();
CREATE TRIGGER list_open_jobs_updated
    AFTER UPDATE ON signup_customerio_sync_jobs
    FOR EACH ROW
    WHEN (
        OLD.status IN ('pending', 'failed') OR NEW.status IN ('pending', 'failed')
        OR OLD.mock OR NEW.mock
        OR (
            'processing' IN (OLD.status, NEW.status)
            AND (
                current_setting('customerio_sync.writes_claims', true) IS DISTINCT FROM 'on'
                -- It may have been claimed by the previous release, or by hand.
                OR OLD.claim <> NEW.claim
                OR (OLD.status = 'processing' AND OLD.claim IS NULL)
            )
        )
    )
    EXECUTE FUNCTION list_open_job();

CREATE TRIGGER count_completed_jobs_inserted
    AFTER INSERT ON signup_customerio_sync_jobs
    REFERENCING NEW TABLE AS new_jobs
    FOR EACH STATEMENT EXECUTE FUNCTION count_completed_jobs();
CREATE TRIGGER count_completed_jobs_updated
    AFTER UPDATE ON signup_customerio_sync_jobs
    REFERENCING OLD TABLE AS old_jobs NEW TABLE AS new_jobs
    FOR EACH STATEMENT EXECUTE FUNCTION count_completed_jobs();
CREATE TRIGGER count_completed_jobs_deleted
    AFTER DELETE ON signup_customerio_sync_jobs
    REFERENCING OLD TABLE AS old_jobs
    FOR EACH STATEMENT EXECUTE FUNCTION count_completed_jobs();

-- The triggers keep writers waiting until this is committed, so it sees every completed job once.
INSERT INTO completed_counts (sync_phase, jobs)
SELECT sync_phase, count(*)
FROM signup_customerio_sync_jobs
WHERE status = 'completed'
GROUP BY sync_phase;
