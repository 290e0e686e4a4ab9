-- A job that was completed in mock mode.
INSERT INTO signups (id, operator_id, email, customerio_synced, customerio_synced_at, customerio_contact_id) VALUES
    ('00000000-0000-4000-8000-000000000014', 'op-1', 'mock@example.com', true, now(), 'c-14');
INSERT INTO signup_customerio_sync_jobs
    (id, signup_id, sync_phase, status, event_id, completed_at, claimed_by, mock)
VALUES
    ('00000000-0000-4000-9000-000000000014', '00000000-0000-4000-8000-000000000014', 'initial', 'completed', 'e-14',
    now(), 'event:e-14', true);
