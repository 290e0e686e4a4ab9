-- Messages of the failure queue, each once.
--
-- The lock makes a manual retry, or a new event, either see the new row or be seen by this statement:
-- the failure of an earlier run, or of a dismissed job, is mirrored as resolved. So is a copy that
-- RabbitMQ dead-lettered of a message whose job failed otherwise, or by another copy: a failed job
-- has one open failure. A message that failed again after its failure was resolved opens it again.
WITH j AS (
    SELECT id, status, run, dismissed_at, failed_reason, event_id, earlier_events
    FROM signup_customerio_sync_jobs
    WHERE id = ANY($2)
    ORDER BY signup_id
    FOR SHARE
), m AS (
    SELECT m.*, j.id AS known_job_id, j.dismissed_at, j.failed_reason,
        j.status = 'failed' AND j.run = COALESCE(m.run, j.run) AND j.dismissed_at IS NULL AS is_open,
        row_number() OVER (
            PARTITION BY j.id, m.reason, COALESCE(m.run, j.run) ORDER BY m.message_id
        ) AS copy
    FROM UNNEST(
        $1::text[], $2::uuid[], $3::int4[], $4::text[], $5::text[], $6::text[], $7::jsonb[],
        $8::text[], $9::bytea[], $10::text[], $11::text[], $12::timestamptz[], $13::text[],
        $14::boolean[], $15::text[]
    ) AS m (
        message_id, job_id, run, reason, error_type, error_message, headers, content_type, body,
        original_exchange, original_routing_key, failed_at, error_path, expired, event_id
    )
    -- An event that its job has not taken in waits for an operator, whatever state the job is in.
    LEFT JOIN j ON j.id = m.job_id
        AND (m.event_id IS NULL OR m.event_id = j.event_id OR m.event_id = ANY(j.earlier_events))
), written AS (
    INSERT INTO sync_failures AS f (
        message_id, job_id, reason, error_type, error_message, headers, content_type, body,
        original_exchange, original_routing_key, failed_at, error_path, expired, resolved_at, resolution
    )
    SELECT m.message_id, m.known_job_id, m.reason, m.error_type, m.error_message, m.headers,
        m.content_type, m.body, m.original_exchange, m.original_routing_key, m.failed_at,
        m.error_path, m.expired,
        CASE WHEN over.is_over THEN now() END,
        CASE
            WHEN over.is_over AND m.dismissed_at IS NULL THEN 'superseded'
            WHEN over.is_over THEN 'dismissed'
        END
    FROM m
    CROSS JOIN LATERAL (
        SELECT m.known_job_id IS NOT NULL AND (
            NOT m.is_open
            OR m.reason = 'delivery-limit' AND (
                m.failed_reason <> 'delivery-limit'
                OR m.copy > 1
                OR EXISTS (
                    SELECT FROM sync_failures o
                    WHERE o.job_id = m.known_job_id AND o.resolved_at IS NULL
                        AND o.message_id <> m.message_id
                )
            )
        ) AS is_over
    ) AS over
    ON CONFLICT (message_id) DO UPDATE SET
        failed_at = EXCLUDED.failed_at, headers = EXCLUDED.headers,
        error_message = EXCLUDED.error_message, error_path = EXCLUDED.error_path,
        resolved_at = NULL, resolution = NULL
    WHERE f.resolved_at < EXCLUDED.failed_at AND EXCLUDED.resolved_at IS NULL
    RETURNING f.job_id, f.xmax = 0 AS is_new -- an update leaves its transaction in xmax
)
INSERT INTO taken_in (unprocessable)
SELECT count(*)
FROM written
WHERE is_new AND job_id IS NULL
HAVING count(*) > 0
