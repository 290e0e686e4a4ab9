-- Jobs that were completed in mock mode, without a call to Customer.io, are marked, so that they can be sent later.
-- The release before inserts and settles jobs without the mark. The constraint needs no scan: no row has the mark yet.

ALTER TABLE signup_customerio_sync_jobs
    ADD COLUMN mock boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT jobs_only_completed_is_mock CHECK (completed_at IS NOT NULL OR NOT mock) NOT VALID;

-- Normally it is empty.
CREATE INDEX mock_jobs ON signup_customerio_sync_jobs (completed_at) WHERE mock;

-- A bulk retry of such jobs. The release before would take it for one of failures, so it never becomes due there:
-- next_step_at is never reached, and mock_step_at is the due time. It refuses unknown keys in selection, so the key
-- mock is only in full_selection.
ALTER TABLE bulk_retries
    ADD COLUMN mock boolean NOT NULL DEFAULT false,
    ADD COLUMN mock_step_at timestamptz,
    ADD COLUMN full_selection jsonb NOT NULL GENERATED ALWAYS AS (
        CASE WHEN mock THEN selection || '{"mock": true}' ELSE selection END
    ) STORED,
    ADD CONSTRAINT bulk_retries_mock_has_its_own_due_time CHECK (
        mock = (mock_step_at IS NOT NULL) AND (NOT mock OR next_step_at = 'infinity')
    );
