UPDATE signup_customerio_sync_jobs SET tracestate = 'vendor=1' WHERE status = 'completed';
