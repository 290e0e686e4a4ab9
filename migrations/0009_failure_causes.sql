-- What made an attempt fail, as an enum. Advice to operators used to be derived from the message.
-- The release before neither writes nor reads these columns.

ALTER TABLE sync_attempts ADD COLUMN error_cause text;

-- Where in an unprocessable message the error is: a JSON path, or `$` for the whole message.
ALTER TABLE sync_failures ADD COLUMN error_path text;
