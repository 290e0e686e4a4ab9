-- Retention finds old attempts by time, and from the next migrations on, tables of history are
-- partitioned by time. Building an index keeps writers waiting, so each has a migration of its own.
CREATE INDEX attempts_by_start ON sync_attempts (started_at);
