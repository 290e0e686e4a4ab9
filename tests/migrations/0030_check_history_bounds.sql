-- The partition needs no check of its rows.
DO $$
BEGIN
    ASSERT NOT EXISTS (SELECT FROM pg_constraint WHERE NOT convalidated AND conname IN ('attempts_bound', 'audit_bound'));
END;
$$;
