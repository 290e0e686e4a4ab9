-- No column that the completion of a job changes is in an index.
DO $$
BEGIN
    ASSERT NOT EXISTS (
        SELECT
        FROM pg_index i
        JOIN pg_attribute a ON a.attrelid = i.indrelid
        WHERE i.indrelid = 'signup_customerio_sync_jobs'::regclass
            AND a.attname IN (
                'status', 'last_attempt_at', 'contact_id', 'completed_at', 'claim', 'claimed_at',
                'settled_by', 'updated_at', 'next_retry_at', 'error_type', 'error_signature',
                'failed_at', 'failed_reason', 'warning'
            )
            AND (
                a.attnum = ANY(i.indkey)
                OR pg_get_indexdef(i.indexrelid) ~ ('\m' || a.attname || '\M')
            )
    );
END;
$$;
