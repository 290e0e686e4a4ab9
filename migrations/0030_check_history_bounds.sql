-- This reads the tables and locks no writer out.
ALTER TABLE sync_attempts VALIDATE CONSTRAINT sync_attempts_bound;
ALTER TABLE audit_logs VALIDATE CONSTRAINT audit_logs_bound;
