-- The next migration of the partition need not read it.
DO $$
BEGIN
    ASSERT (SELECT count(*) FROM pg_indexes WHERE tablename = 'audit_logs_first' AND indexdef LIKE '%USING brin%') = 1;
END;
$$;
