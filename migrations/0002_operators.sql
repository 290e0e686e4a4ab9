-- What operators need: to find, group, retry and dismiss failures, with a million jobs in the table.

CREATE EXTENSION IF NOT EXISTS pg_trgm;

ALTER TABLE signup_customerio_sync_jobs
    ADD COLUMN error_signature text, -- error_message without what differs from one failure to the next
    ADD COLUMN dismissed_at timestamptz, -- an operator wants no retry of this failure
    ADD COLUMN dismissed_reason text,
    ADD CONSTRAINT jobs_signature_follows_error CHECK (error_signature IS NULL OR error_message IS NOT NULL),
    ADD CONSTRAINT jobs_only_failed_is_dismissed CHECK (status = 'failed' OR dismissed_at IS NULL),
    ADD CONSTRAINT jobs_dismissed_has_reason CHECK ((dismissed_at IS NULL) = (dismissed_reason IS NULL));

-- The order of the failure list; with a filter, the filter comes first. Only open failures are in these indexes.
CREATE INDEX failures_in_order
ON signup_customerio_sync_jobs (attempt_count DESC, last_attempt_at DESC NULLS LAST, id)
INCLUDE (signup_id)
WHERE status = 'failed' AND dismissed_at IS NULL;

CREATE INDEX failures_in_order_by_type
ON signup_customerio_sync_jobs (error_type, attempt_count DESC, last_attempt_at DESC NULLS LAST, id)
INCLUDE (sync_phase)
WHERE status = 'failed' AND dismissed_at IS NULL;

CREATE INDEX failures_in_order_by_phase
ON signup_customerio_sync_jobs (sync_phase, attempt_count DESC, last_attempt_at DESC NULLS LAST, id)
INCLUDE (error_type)
WHERE status = 'failed' AND dismissed_at IS NULL;

CREATE INDEX failures_by_signature
ON signup_customerio_sync_jobs (error_signature, error_type, failed_at)
WHERE status = 'failed' AND dismissed_at IS NULL;

-- Failures from before there were signatures. Normally it is empty.
CREATE INDEX failures_without_signature
ON signup_customerio_sync_jobs (id)
WHERE status = 'failed' AND dismissed_at IS NULL AND error_signature IS NULL;

-- Jobs are counted by status and phase without reading the table.
CREATE INDEX completed_jobs_by_phase ON signup_customerio_sync_jobs (sync_phase) WHERE status = 'completed';
DROP INDEX jobs_open;
CREATE INDEX jobs_open ON signup_customerio_sync_jobs (status, created_at) INCLUDE (sync_phase)
WHERE status <> 'completed';

-- The search reads the signups that failed, not all of them. The line break keeps an address and a name apart.
CREATE INDEX failed_signups_by_text
ON signups USING gin (
    (COALESCE(email, '') || E'\n' || COALESCE(first_name, '') || ' ' || COALESCE(last_name, '')) gin_trgm_ops
)
WHERE customerio_sync_failed;
-- A search that finds most failures wants another plan than one that finds few; the planner tells them apart by this.
CREATE STATISTICS signups_text
ON (COALESCE(email, '') || E'\n' || COALESCE(first_name, '') || ' ' || COALESCE(last_name, ''))
FROM signups;

-- The last hour of tries is found without reading the others; such an index costs next to nothing to keep.
CREATE INDEX attempts_by_time ON sync_attempts USING brin (started_at) WITH (pages_per_range = 32, autosummarize = on);

CREATE INDEX unprocessable_open ON sync_failures (failed_at DESC, id) WHERE job_id IS NULL AND resolved_at IS NULL;

-- Failures that are retried together, at a bounded rate. A row is worked off by whichever replica comes first.
CREATE TABLE bulk_retries (
    id uuid PRIMARY KEY,
    actor text NOT NULL CHECK (actor <> ''),
    selection jsonb NOT NULL CHECK (jsonb_typeof(selection) = 'object'),
    status text NOT NULL CHECK (status IN ('running', 'completed', 'cancelled')),
    eligible bigint NOT NULL CHECK (eligible >= 0), -- failures that matched when it was made
    retried bigint NOT NULL DEFAULT 0 CHECK (retried >= 0),
    created_at timestamptz NOT NULL DEFAULT now(), -- what fails later is not its concern
    next_step_at timestamptz NOT NULL DEFAULT now(), -- keeps the rate
    updated_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    cancelled_by text,
    CONSTRAINT bulk_retries_finished_has_time CHECK ((status = 'running') = (finished_at IS NULL)),
    CONSTRAINT bulk_retries_cancelled_by_somebody CHECK ((status = 'cancelled') = (cancelled_by IS NOT NULL))
);

CREATE INDEX bulk_retries_running ON bulk_retries (created_at, id) WHERE status = 'running';
CREATE INDEX bulk_retries_recent ON bulk_retries (updated_at);
