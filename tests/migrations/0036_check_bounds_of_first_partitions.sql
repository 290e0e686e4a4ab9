-- The next migration need not check the rows.
DO $$
BEGIN
    ASSERT NOT EXISTS (SELECT FROM pg_constraint WHERE NOT convalidated AND conname LIKE '%\_first\_bound');
END;
$$;
