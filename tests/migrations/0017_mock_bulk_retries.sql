-- A bulk retry of jobs that were completed in mock mode.
INSERT INTO bulk_retries (id, actor, selection, status, eligible, mock, next_step_at, mock_step_at) VALUES
    ('00000000-0000-4000-a000-000000000014', 'ann', '{"syncPhase": "initial"}', 'running', 1, true, 'infinity', now());
