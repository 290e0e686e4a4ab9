UPDATE signup_customerio_sync_jobs SET settled_by = '0191e4a0-0000-7000-8000-000000000002' WHERE status = 'completed';
