-- What the overview shows: the signups of the last 24 hours, and the circuit breakers of all replicas.

-- Counts recent signups without reading the others. Building it reads the table once and blocks writes
-- to it meanwhile, for some seconds per ten million rows; messages wait in their queues. CREATE INDEX
-- CONCURRENTLY would not block writes, but it can't be used here: it waits for all older snapshots, among
-- them those of replicas that wait for this migration, which is a deadlock. For a very large table, create
-- the index by hand before the upgrade, with CONCURRENTLY; then this statement does nothing.
CREATE INDEX IF NOT EXISTS signups_by_time ON signups (created_at);

-- The circuit breaker of a replica, beside its lease. Absent for replicas of the release before, which
-- neither writes nor reads these columns. Texts without a constraint: a later release may write others.
-- Last in this transaction, since no replica can renew its lease until it ends.
ALTER TABLE call_shares
    ADD COLUMN replica_name text,
    ADD COLUMN breaker_state text,
    ADD COLUMN breaker_reason text,
    ADD COLUMN breaker_since timestamptz,
    ADD COLUMN breaker_next_probe_at timestamptz;
