-- One bulk action per kind and status.
INSERT INTO bulk_actions
    (id, kind, actor, selection, reason, status, eligible, done, finished_at, cancelled_by)
VALUES
    ('00000000-0000-4000-b000-000000000001', 'dismiss_failures', 'ann', '{}', 'test accounts', 'running', 3000, 1000,
    NULL, NULL),
    ('00000000-0000-4000-b000-000000000002', 'dismiss_unprocessable', 'ann', '{"path": "customer.email"}', NULL,
    'completed', 2, 2, now(), NULL),
    ('00000000-0000-4000-b000-000000000003', 'replay_unprocessable', 'ben', '{"routingKey": "signup.submitted"}', NULL,
    'cancelled', 9, 4, now(), 'ann');
