-- Data of tracing systems about the trace in traceparent. While the previous release runs beside this one, it may
-- restart a job for a new event without changing this column. Then the state of the earlier event stays, which affects
-- traces alone.

ALTER TABLE signup_customerio_sync_jobs
    ADD COLUMN tracestate text; -- of the event in event_id (W3C Trace Context)
