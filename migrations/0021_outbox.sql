-- Messages that must follow a committed change, until RabbitMQ has confirmed them: one row per
-- transaction and kind. A row names its messages; their contents are in sync_attempts and
-- audit_logs. The release before neither writes nor reads it, and publishes before it acknowledges.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('retries', 'failures', 'outcomes')),
    job_ids uuid[] NOT NULL,
    runs integer[] NOT NULL,
    attempts integer[] NOT NULL,
    -- The replica that publishes the messages. Another one takes the row over when this one is
    -- gone, or when the row is due.
    writer uuid NOT NULL,
    due_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT outbox_names_whole_messages CHECK (
        cardinality(job_ids) > 0 AND cardinality(job_ids) = cardinality(runs)
        AND cardinality(job_ids) = cardinality(attempts)
    )
)
-- Rows live for milliseconds, so dead ones are most of the table.
WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
CREATE INDEX outbox_due ON outbox (kind, due_at);
CREATE INDEX outbox_age ON outbox (created_at);
