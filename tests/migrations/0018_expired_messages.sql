-- A message that expired in a work queue.
INSERT INTO sync_failures (
    message_id, reason, error_message, headers, body, original_exchange, original_routing_key, failed_at, expired
) VALUES (
    'message:00000000-0000-4000-a000-000000000018:expired', 'unprocessable', 'the message expired', '{}', '{}',
    'signup.events', 'signup.submitted', now(), true
);
