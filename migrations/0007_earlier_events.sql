-- An event that a newer one has overtaken may be delivered once more. It is known by this, and starts nothing afresh.

ALTER TABLE signup_customerio_sync_jobs
    ADD COLUMN earlier_events text[]; -- those before event_id, newest first, as far as they are remembered
