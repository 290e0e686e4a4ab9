-- Details that the other columns can't hold; NULL for most signups. The release before neither reads
-- nor writes these columns, but it writes the others: value_times names the times that it belongs
-- to, and an exact number is used only if, rounded, it equals its column.
ALTER TABLE signups
    -- Times of values that are older than the newest event of their kind, by the name of the
    -- profile's attribute.
    ADD COLUMN value_times jsonb,
    -- Numbers of the bet slip that a double can't represent.
    ADD COLUMN exact_numbers jsonb,
    -- All rows are valid, so none has to be read under the lock.
    ADD CONSTRAINT signups_value_times_is_object CHECK (jsonb_typeof(value_times) = 'object')
        NOT VALID,
    ADD CONSTRAINT signups_exact_numbers_is_object CHECK (jsonb_typeof(exact_numbers) = 'object')
        NOT VALID;
-- What a completed job left undone.
ALTER TABLE signup_customerio_sync_jobs
    ADD COLUMN warning text;
