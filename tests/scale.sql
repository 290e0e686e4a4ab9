-- Creates :jobs jobs. Every tenth has failed.
INSERT INTO signups (
    id, operator_id, email, first_name, last_name, customerio_synced, customerio_synced_at, customerio_contact_id,
    customerio_sync_failed, customerio_sync_error, created_at
)
SELECT gen_random_uuid(), 'op', 'person' || n || '@example.com', 'First' || n % 1000, 'Last' || n % 777,
    n % 10 <> 0, CASE WHEN n % 10 <> 0 THEN now() END, CASE WHEN n % 10 <> 0 THEN 'c' END,
    n % 10 = 0, CASE WHEN n % 10 = 0 THEN 'x' END, now() - n * interval '1 s'
FROM generate_series(1, :jobs) AS n;

INSERT INTO signup_customerio_sync_jobs (
    id, signup_id, sync_phase, status, attempt_count, last_attempt_at, error_type, error_message, error_signature,
    failed_at, failed_reason, completed_at, created_at
)
SELECT gen_random_uuid(), id, CASE WHEN n % 20 = 0 THEN 'enriched' ELSE 'initial' END,
    CASE WHEN has_failed THEN 'failed' ELSE 'completed' END,
    CASE WHEN has_failed THEN n / 10 % 6 ELSE 0 END, now() - n * interval '1 s',
    CASE WHEN has_failed THEN (ARRAY['server_error', 'other', 'network'])[1 + n / 10 % 3] END,
    CASE WHEN has_failed THEN 'Customer.io answered ' || (500 + n / 10 % 3) END,
    CASE WHEN has_failed THEN 'Customer.io answered ' || (500 + n / 10 % 3) END,
    CASE WHEN has_failed THEN now() - n * interval '1 s' END, CASE WHEN has_failed THEN 'permanent' END,
    CASE WHEN NOT has_failed THEN now() END, now() - n * interval '1 s'
FROM (
    SELECT id, substring(email FROM '[0-9]+')::int AS n, customerio_sync_failed AS has_failed
    FROM signups
    WHERE starts_with(email, 'person')
) AS numbered;
