-- Messages that expired in a work queue. The release before knows their reason as 'unprocessable': it refuses to read
-- one that it does not know.
ALTER TABLE sync_failures
    ADD COLUMN expired boolean NOT NULL DEFAULT false;
