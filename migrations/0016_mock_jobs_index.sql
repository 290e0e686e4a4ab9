-- Normally it is empty. A migration of its own: building it reads the table, which the lock of the migration that adds
-- the column would keep from everybody else meanwhile.

CREATE INDEX mock_jobs ON signup_customerio_sync_jobs (completed_at) WHERE mock;
