-- The index has the attempts of the samples before.
DO $$
BEGIN
    ASSERT (SELECT count(*) FROM sync_attempts) > 0;
END;
$$;
