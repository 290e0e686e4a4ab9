-- The jobs :first to :last with their signups, attempts and audit entries, two per second back in time.
-- Every tenth has failed and is in the mirror.
INSERT INTO signups (
    id, operator_id, customer_id, email, first_name, last_name, customerio_synced, customerio_synced_at,
    customerio_contact_id, customerio_sync_failed, customerio_sync_error, created_at
)
SELECT md5('s' || n)::uuid, 'op', 'c-' || n, 'person' || n || '@example.com', 'First' || n % 1000, 'Last' || n % 777,
    n % 10 <> 0, CASE WHEN n % 10 <> 0 THEN now() END, CASE WHEN n % 10 <> 0 THEN 'c' END,
    n % 10 = 0, CASE WHEN n % 10 = 0 THEN 'Customer.io answered ' || (500 + n / 10 % 3) END,
    now() - n * interval '0.5 s'
FROM generate_series(:first, :last) AS n;

INSERT INTO signup_customerio_sync_jobs (
    id, signup_id, sync_phase, status, attempt_count, last_attempt_at, error_type, error_message, error_signature,
    first_failed_at, failed_at, failed_reason, completed_at, created_at, event_id
)
SELECT md5('j' || n)::uuid, md5('s' || n)::uuid, CASE WHEN n % 20 = 0 THEN 'enriched' ELSE 'initial' END,
    CASE WHEN has_failed THEN 'failed' ELSE 'completed' END, CASE WHEN has_failed THEN n / 10 % 6 ELSE 0 END, at,
    CASE WHEN has_failed THEN (ARRAY['server_error', 'other', 'network'])[1 + n / 10 % 3] END,
    error, error, CASE WHEN has_failed THEN at END, CASE WHEN has_failed THEN at END,
    CASE WHEN has_failed THEN 'permanent' END, CASE WHEN NOT has_failed THEN at END, at, 'e-' || n
FROM (
    SELECT n, n % 10 = 0 AS has_failed, now() - n * interval '0.5 s' AS at,
        CASE WHEN n % 10 = 0 THEN 'Customer.io answered ' || (500 + n / 10 % 3) END AS error
    FROM generate_series(:first, :last) AS n
) AS job;

INSERT INTO sync_attempts (job_id, run, attempt, started_at, duration_ms, http_status, error_type, error_message)
SELECT md5('j' || n)::uuid, 0, CASE WHEN n % 10 = 0 THEN n / 10 % 6 ELSE 0 END, now() - n * interval '0.5 s', 1,
    CASE WHEN n % 10 = 0 THEN 500 + n / 10 % 3 ELSE 200 END, CASE WHEN n % 10 = 0 THEN 'server_error' END,
    CASE WHEN n % 10 = 0 THEN 'Customer.io answered ' || (500 + n / 10 % 3) END
FROM generate_series(:first, :last) AS n;

INSERT INTO audit_logs (action, signup_id, actor, details, created_at)
SELECT CASE WHEN n % 10 = 0 THEN 'customerio_sync_failed' ELSE 'customerio_synced' END, md5('s' || n)::uuid,
    'customerio-sync', jsonb_build_object('jobId', md5('j' || n)::uuid, 'syncPhase', 'initial', 'run', 0),
    now() - n * interval '0.5 s'
FROM generate_series(:first, :last) AS n;

INSERT INTO sync_failures (
    message_id, job_id, reason, error_type, error_message, headers, body, original_exchange, original_routing_key,
    failed_at
)
SELECT md5('j' || n)::uuid || ':0:' || n / 10 % 6, md5('j' || n)::uuid, 'permanent', 'server_error',
    'Customer.io answered ' || (500 + n / 10 % 3), '{}', '{}', 'customerio-sync.jobs', '', now() - n * interval '0.5 s'
FROM generate_series(:first, :last) AS n
WHERE n % 10 = 0;

INSERT INTO taken_in (jobs) VALUES (:last - :first + 1);
