-- A signup with values of different times and a number that a double can't represent.
UPDATE signups
SET value_times = jsonb_build_object(
        'customer', customer_as_of, 'submission', submitted_at,
        'values', '{"phone": "2025-02-18T12:00:00Z"}'::jsonb
    ),
    exact_numbers = '{"bet_amount": 100000000000000000001}', bet_amount = 100000000000000000000
WHERE id = (SELECT min(id::text)::uuid FROM signups WHERE bet_amount IS NOT NULL);
UPDATE signup_customerio_sync_jobs
SET warning = 'email_not_changed'
WHERE id = (SELECT min(id::text)::uuid FROM signup_customerio_sync_jobs WHERE status = 'completed');
