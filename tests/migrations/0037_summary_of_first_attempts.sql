-- The next migration of the partition need not read it.
DO $$
BEGIN
    ASSERT (SELECT count(*) FROM pg_indexes WHERE tablename = 'sync_attempts_first' AND indexdef LIKE '%USING brin%') = 1;
END;
$$;
