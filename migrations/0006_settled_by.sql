-- A commit whose answer is lost may have happened. Whoever settles again finds out by this.

ALTER TABLE signup_customerio_sync_jobs
    ADD COLUMN settled_by uuid; -- the claim that was settled last
