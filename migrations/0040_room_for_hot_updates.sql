-- If both events of a signup are waiting, its row is inserted and then updated three times within moments,
-- and grows by half. With this much free space, nine in ten of the versions that used to go to another
-- page, with new index entries, stay on theirs. The setting affects only pages that are filled from now on.
ALTER TABLE signups SET (fillfactor = 30);
ALTER TABLE signup_customerio_sync_jobs SET (fillfactor = 45);
