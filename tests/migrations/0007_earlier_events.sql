UPDATE signup_customerio_sync_jobs SET earlier_events = '{e-0}' WHERE status = 'pending';
