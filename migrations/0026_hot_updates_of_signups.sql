-- As 0025, for signups and for the check that locks them. The service locks signups first, so this
-- does as well.
LOCK TABLE signups IN ACCESS EXCLUSIVE MODE;
ALTER TABLE signups SET (fillfactor = 55);
ALTER TABLE audit_logs DROP CONSTRAINT audit_logs_signup_id_fkey;
