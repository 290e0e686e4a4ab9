-- What the columns beside them can't say; absent for most signups. The release before neither reads
-- nor writes these columns. It writes the others, so a number in exact_numbers counts only while it
-- is the value of its column when it is rounded.
ALTER TABLE signups
    -- Times of values that are older than the newest event of their kind, by the name of the
    -- profile's attribute.
    ADD COLUMN value_times jsonb,
    -- Numbers of the bet slip that a double can't represent.
    ADD COLUMN exact_numbers jsonb,
    -- The first e-mail address, if it has changed.
    ADD COLUMN first_email text,
    -- All rows are valid, so none has to be read under the lock.
    ADD CONSTRAINT signups_value_times_is_object CHECK (jsonb_typeof(value_times) = 'object')
        NOT VALID,
    ADD CONSTRAINT signups_exact_numbers_is_object CHECK (jsonb_typeof(exact_numbers) = 'object')
        NOT VALID;
-- What a completed job did not do.
ALTER TABLE signup_customerio_sync_jobs
    ADD COLUMN warning text;
