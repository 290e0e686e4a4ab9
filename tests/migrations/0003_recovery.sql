-- A job whose message was resent.
UPDATE signup_customerio_sync_jobs SET resent_at = now() WHERE status = 'pending';
