-- Signups, their sync jobs, and what happened to each. Other teams read these tables; only this service writes them.
-- What the code relies on is refused here when it is broken.

CREATE TABLE signups (
    id uuid PRIMARY KEY,
    operator_id text,
    operator_name text,
    customer_id text,
    email text, -- absent until the signup itself is known: a confirmation may come first
    first_name text,
    last_name text,
    phone text,
    state text,
    attributes jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(attributes) = 'object'),
    customer_as_of timestamptz, -- the time of the newest event that spoke of the customer
    submitted_at timestamptz,
    extraction_id text,
    bet_amount double precision CHECK (bet_amount >= 0),
    team_bet_on text,
    odds jsonb CHECK (jsonb_typeof(odds) IN ('string', 'number')),
    confidence double precision CHECK (confidence BETWEEN 0 AND 1),
    confirmed_at timestamptz,
    customerio_synced boolean NOT NULL DEFAULT false,
    customerio_synced_at timestamptz,
    customerio_contact_id text,
    customerio_sync_failed boolean NOT NULL DEFAULT false,
    customerio_sync_error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT signups_synced_has_time_and_contact CHECK (
        customerio_synced = (customerio_synced_at IS NOT NULL)
        AND customerio_synced = (customerio_contact_id IS NOT NULL)
    ),
    CONSTRAINT signups_failed_has_error CHECK (customerio_sync_failed = (customerio_sync_error IS NOT NULL)),
    CONSTRAINT signups_bet_slip_is_whole CHECK (
        num_nulls(bet_amount, team_bet_on, odds, confidence, confirmed_at) IN (0, 5)
    )
);

CREATE TABLE signup_customerio_sync_jobs (
    id uuid PRIMARY KEY,
    signup_id uuid NOT NULL REFERENCES signups (id),
    sync_phase text NOT NULL CHECK (sync_phase IN ('initial', 'enriched')),
    status text NOT NULL CHECK (status IN ('pending', 'processing', 'completed', 'failed')),
    attempt_count integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 5 CHECK (max_attempts > 0),
    next_retry_at timestamptz,
    last_attempt_at timestamptz,
    error_type text CHECK (error_type IN ('rate_limit', 'server_error', 'network', 'other')),
    error_message text,
    manual_retry boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Below: what the service needs to know a repeat from a new try.
    run integer NOT NULL DEFAULT 0 CHECK (run >= 0), -- how often the job was started afresh
    event_id text NOT NULL DEFAULT '', -- the event that made it, or started it afresh
    occurred_at timestamptz NOT NULL DEFAULT now(), -- of that event
    traceparent text, -- of that event (W3C Trace Context)
    claim uuid, -- the fence: whoever settles must name it
    claimed_at timestamptz,
    claimed_by text, -- the message that claimed it last; kept after it is settled, so that a redelivery is known
    contact_id text, -- the person identifier of the last try
    first_failed_at timestamptz, -- in this run
    failed_at timestamptz,
    failed_reason text CHECK (failed_reason IN ('exhausted', 'permanent', 'delivery-limit')),
    completed_at timestamptz,
    CONSTRAINT jobs_one_a_phase UNIQUE (signup_id, sync_phase),
    CONSTRAINT jobs_attempts_in_range CHECK (attempt_count BETWEEN 0 AND max_attempts),
    CONSTRAINT jobs_claim_means_processing CHECK (
        (claim IS NULL) = (claimed_at IS NULL)
        AND (claim IS NULL OR (status = 'processing' AND claimed_by IS NOT NULL))
    ),
    CONSTRAINT jobs_only_pending_waits CHECK (status = 'pending' OR next_retry_at IS NULL),
    CONSTRAINT jobs_error_is_whole CHECK ((error_type IS NULL) = (error_message IS NULL)),
    CONSTRAINT jobs_failed_has_error CHECK (status <> 'failed' OR error_type IS NOT NULL),
    CONSTRAINT jobs_only_failed_has_failed CHECK (
        status = 'failed' OR (failed_at IS NULL AND failed_reason IS NULL)
    ),
    CONSTRAINT jobs_completed_has_no_error CHECK (
        status <> 'completed' OR (error_type IS NULL AND first_failed_at IS NULL)
    ),
    CONSTRAINT jobs_only_completed_has_completed CHECK (status = 'completed' OR completed_at IS NULL)
);

-- Counting and finding what is not done stays cheap however many jobs are completed.
CREATE INDEX jobs_open ON signup_customerio_sync_jobs (status, created_at) WHERE status <> 'completed';

CREATE TABLE sync_attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id uuid NOT NULL REFERENCES signup_customerio_sync_jobs (id),
    run integer NOT NULL,
    attempt integer NOT NULL CHECK (attempt >= 0), -- retries scheduled before it
    started_at timestamptz NOT NULL,
    duration_ms double precision NOT NULL CHECK (duration_ms >= 0),
    http_status integer CHECK (http_status BETWEEN 100 AND 999),
    error_type text CHECK (error_type IN ('rate_limit', 'server_error', 'network', 'other')),
    error_message text,
    tier text, -- where the job waits for the next attempt
    CONSTRAINT attempts_error_is_whole CHECK (num_nulls(error_type, error_message) IN (0, 2)),
    CONSTRAINT attempts_tier_follows_error CHECK (tier IS NULL OR error_type IS NOT NULL)
);

CREATE INDEX attempts_of_job ON sync_attempts (job_id, id);

CREATE TABLE audit_logs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    action text NOT NULL CHECK (action <> ''),
    signup_id uuid REFERENCES signups (id),
    actor text NOT NULL CHECK (actor <> ''),
    details jsonb NOT NULL CHECK (jsonb_typeof(details) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX audit_of_signup ON audit_logs (signup_id, id);

CREATE FUNCTION refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER audit_logs_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_logs
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The mirror of the failure queue, one row a message.
CREATE TABLE sync_failures (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    message_id text NOT NULL UNIQUE,
    job_id uuid REFERENCES signup_customerio_sync_jobs (id), -- absent if the message could not be understood
    reason text NOT NULL CHECK (reason IN ('exhausted', 'permanent', 'unprocessable', 'delivery-limit')),
    error_type text CHECK (error_type IN ('rate_limit', 'server_error', 'network', 'other')),
    error_message text NOT NULL,
    headers jsonb NOT NULL CHECK (jsonb_typeof(headers) = 'object'),
    content_type text,
    body bytea NOT NULL,
    original_exchange text NOT NULL,
    original_routing_key text NOT NULL,
    failed_at timestamptz NOT NULL,
    mirrored_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    resolution text,
    CONSTRAINT failures_resolved_is_told CHECK ((resolved_at IS NULL) = (resolution IS NULL))
);

CREATE INDEX failures_open ON sync_failures (failed_at) WHERE resolved_at IS NULL;
CREATE INDEX failures_of_job ON sync_failures (job_id, failed_at);
