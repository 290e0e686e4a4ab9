-- Attempts of the failed job, as a release without causes recorded them: one per known message, and
-- two whose cause the message does not tell.
INSERT INTO sync_attempts (job_id, run, attempt, started_at, duration_ms, http_status, error_type, error_message)
VALUES
    ('00000000-0000-4000-9000-000000000004', 0, 0, now(), 0, NULL, 'other', 'signup not known yet'),
    ('00000000-0000-4000-9000-000000000004', 0, 1, now(), 0, NULL, 'other', 'customer.id is missing, and it identifies'),
    ('00000000-0000-4000-9000-000000000004', 0, 2, now(), 0, NULL, 'other', 'customer.id is 161 bytes, Customer.io allows 150'),
    ('00000000-0000-4000-9000-000000000004', 0, 3, now(), 9, 207, 'other', 'Customer.io refused the event: invalid: name'),
    ('00000000-0000-4000-9000-000000000004', 0, 4, now(), 9, 200, 'other', 'Customer.io answered 200: <p>, which can''t be read'),
    ('00000000-0000-4000-9000-000000000004', 0, 5, now(), 9, 401, 'other', 'Customer.io answered 401: who are you'),
    ('00000000-0000-4000-9000-000000000004', 0, 5, now(), 9, NULL, 'network', 'the call timed out');

INSERT INTO sync_failures
    (message_id, job_id, reason, error_type, error_message, headers, body, original_exchange, original_routing_key,
    failed_at)
VALUES
    ('unprocessable:2', NULL, 'unprocessable', NULL, 'customer.email: found 7, expected a text', '{}', '{}',
    'signup.events', 'signup.submitted', now());
