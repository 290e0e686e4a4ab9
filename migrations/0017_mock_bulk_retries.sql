-- A bulk retry of jobs that were completed in mock mode. The release before would take it for one of failures, so it
-- never becomes due there: next_step_at is never reached, and mock_step_at is the due time. It refuses unknown keys in
-- selection, so the key mock is only in full_selection. A migration of its own: a step of the release before locks this
-- table and then the jobs, and one transaction that changes both could deadlock with it. The constraint needs no scan:
-- no row has the mark yet.

ALTER TABLE bulk_retries
    ADD COLUMN mock boolean NOT NULL DEFAULT false,
    ADD COLUMN mock_step_at timestamptz,
    ADD COLUMN full_selection jsonb NOT NULL GENERATED ALWAYS AS (
        CASE WHEN mock THEN selection || '{"mock": true}' ELSE selection END
    ) STORED,
    ADD CONSTRAINT bulk_retries_mock_has_its_own_due_time CHECK (
        mock = (mock_step_at IS NOT NULL) AND (NOT mock OR next_step_at = 'infinity')
    ) NOT VALID;
