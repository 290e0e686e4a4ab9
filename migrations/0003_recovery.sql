-- Jobs whose message was lost are found and sent again, one replica at a time.

ALTER TABLE signup_customerio_sync_jobs
    ADD COLUMN resent_at timestamptz; -- when its message was last sent again because none seemed to be left
