-- One job per status: completed, pending, processing, failed. The mirror has the failure of the
-- failed one, and an unprocessable message.
INSERT INTO signups (id, operator_id, email, customer_as_of, submitted_at) VALUES
    ('00000000-0000-4000-8000-000000000001', 'op-1', 'one@example.com', now(), now()),
    ('00000000-0000-4000-8000-000000000002', 'op-1', 'two@example.com', now(), now()),
    ('00000000-0000-4000-8000-000000000003', 'op-2', 'three@example.com', now(), now());
UPDATE signups
SET customerio_synced = true, customerio_synced_at = now(), customerio_contact_id = 'c-1'
WHERE email = 'one@example.com';
UPDATE signups
SET customerio_sync_failed = true, customerio_sync_error = 'refused', extraction_id = 'ex-1', bet_amount = 5,
    team_bet_on = 'Lakers', odds = '"+150"', confidence = 0.5, confirmed_at = now()
WHERE email = 'three@example.com';

INSERT INTO signup_customerio_sync_jobs
    (id, signup_id, sync_phase, status, attempt_count, event_id, completed_at, error_type, error_message,
    first_failed_at, failed_at, failed_reason, next_retry_at, claim, claimed_at, claimed_by)
VALUES
    ('00000000-0000-4000-9000-000000000001', '00000000-0000-4000-8000-000000000001', 'initial', 'completed', 0, 'e-1',
    now(), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'event:e-1'),
    ('00000000-0000-4000-9000-000000000002', '00000000-0000-4000-8000-000000000002', 'initial', 'pending', 2, 'e-2',
    NULL, 'network', 'reset', now(), NULL, NULL, now(), NULL, NULL, 'event:e-2'),
    ('00000000-0000-4000-9000-000000000003', '00000000-0000-4000-8000-000000000003', 'initial', 'processing', 0, 'e-3',
    NULL, NULL, NULL, NULL, NULL, NULL, NULL, gen_random_uuid(), now(), 'event:e-3'),
    ('00000000-0000-4000-9000-000000000004', '00000000-0000-4000-8000-000000000003', 'enriched', 'failed', 5, 'e-4',
    NULL, 'other', 'refused', now(), now(), 'exhausted', NULL, NULL, NULL, 'event:e-4');

INSERT INTO sync_attempts (job_id, run, attempt, started_at, duration_ms, http_status, error_type, error_message, tier)
VALUES
    ('00000000-0000-4000-9000-000000000001', 0, 0, now(), 12.5, 200, NULL, NULL, NULL),
    ('00000000-0000-4000-9000-000000000002', 0, 0, now(), 3000, NULL, 'network', 'reset', '5s');

INSERT INTO audit_logs (action, signup_id, actor, details) VALUES
    ('customerio_synced', '00000000-0000-4000-8000-000000000001', 'customerio-sync', '{"syncPhase": "initial"}');

INSERT INTO sync_failures
    (message_id, job_id, reason, error_type, error_message, headers, body, original_exchange, original_routing_key,
    failed_at)
VALUES
    ('00000000-0000-4000-9000-000000000004:0:5:failed', '00000000-0000-4000-9000-000000000004', 'exhausted', 'other',
    'refused', '{}', '{}', '', '', now()),
    ('unprocessable:1', NULL, 'unprocessable', NULL, 'not JSON', '{}', 'not json', 'signup.events', 'signup.submitted',
    now());
