-- Jobs that were completed in mock mode, without a call to Customer.io, are marked, so that they can be sent later.
-- The release before inserts and settles jobs without the mark. The constraint needs no scan: no row has the mark yet.

ALTER TABLE signup_customerio_sync_jobs
    ADD COLUMN mock boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT jobs_only_completed_is_mock CHECK (completed_at IS NOT NULL OR NOT mock) NOT VALID;
