-- No column of a signup that the completion of a job changes is in an index.
DO $$
BEGIN
    ASSERT NOT EXISTS (
        SELECT
        FROM pg_index i
        JOIN pg_attribute a ON a.attrelid = i.indrelid
        WHERE i.indrelid = 'signups'::regclass
            AND a.attname IN (
                'customerio_synced', 'customerio_synced_at', 'customerio_contact_id', 'updated_at'
            )
            AND (
                a.attnum = ANY(i.indkey)
                OR pg_get_indexdef(i.indexrelid) ~ ('\m' || a.attname || '\M')
            )
    );
END;
$$;
