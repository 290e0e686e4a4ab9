-- The index has the entries of the samples before.
DO $$
BEGIN
    ASSERT (SELECT count(*) FROM audit_logs) > 0;
END;
$$;
