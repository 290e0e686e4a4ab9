-- No column that the completion of a job changes is in an index.
DO $$
BEGIN
    ASSERT NOT EXISTS (
        SELECT
        FROM pg_index i
        JOIN pg_attribute a ON a.attrelid = i.indrelid
        WHERE i.indrelid IN ('signup_customerio_sync_jobs'::regclass, 'signups'::regclass)
            AND a.attname IN (
                'status', 'last_attempt_at', 'contact_id', 'completed_at', 'claim', 'claimed_at',
                'settled_by', 'updated_at', 'customerio_synced', 'customerio_synced_at',
                'customerio_contact_id'
            )
            AND (
                a.attnum = ANY(i.indkey)
                OR pg_get_indexdef(i.indexrelid) ~ ('\m' || a.attname || '\M')
            )
    );
END;
$$;
