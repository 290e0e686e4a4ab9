-- A job in the index.
INSERT INTO signups (id, operator_id, email, customerio_synced, customerio_synced_at, customerio_contact_id) VALUES
    ('00000000-0000-4000-8000-000000000016', 'op-1', 'index@example.com', true, now(), 'c-16');
INSERT INTO signup_customerio_sync_jobs
    (id, signup_id, sync_phase, status, event_id, completed_at, claimed_by, mock)
VALUES
    ('00000000-0000-4000-9000-000000000016', '00000000-0000-4000-8000-000000000016', 'initial', 'completed', 'e-16',
    now(), 'event:e-16', true);
