-- The time that an event stated, if it was so far ahead that the time of arrival replaced it. Absent
-- for all others, and for jobs of the release before, which neither reads nor writes it.
ALTER TABLE signup_customerio_sync_jobs
    ADD COLUMN stated_at timestamptz;
