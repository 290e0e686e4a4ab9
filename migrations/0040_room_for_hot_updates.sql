-- A signup that is inserted by its first event gets three new versions, and grows by half, within
-- moments if both of its events wait. With this room on its page, nine of ten of the versions that went to
-- another page, with new index entries, stay on it. Pages that are filled from now on are affected.
ALTER TABLE signups SET (fillfactor = 30);
ALTER TABLE signup_customerio_sync_jobs SET (fillfactor = 45);
