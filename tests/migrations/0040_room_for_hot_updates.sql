-- Pages keep room for the next versions of their rows.
DO $$
BEGIN
    ASSERT (SELECT reloptions @> '{fillfactor=30}' FROM pg_class WHERE oid = 'signups'::regclass);
    ASSERT (
        SELECT reloptions @> '{fillfactor=45}'
        FROM pg_class
        WHERE oid = 'signup_customerio_sync_jobs'::regclass
    );
END;
$$;
