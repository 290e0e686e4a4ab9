-- No column that the completion of a job changes is in an index.
CREATE FUNCTION assert_not_indexed(indexed_table regclass, columns text[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    ASSERT NOT EXISTS (
        SELECT
        FROM pg_index i
        JOIN pg_attribute a ON a.attrelid = i.indrelid
        WHERE i.indrelid = indexed_table AND a.attname = ANY(columns)
            AND (
                a.attnum = ANY(i.indkey)
                OR pg_get_indexdef(i.indexrelid) ~ ('\m' || a.attname || '\M')
            )
    );
END;
$$;
SELECT assert_not_indexed('signup_customerio_sync_jobs', ARRAY[
    'status', 'last_attempt_at', 'contact_id', 'completed_at', 'claim', 'claimed_at', 'settled_by',
    'updated_at', 'next_retry_at', 'error_type', 'error_signature', 'failed_at', 'failed_reason',
    'warning'
]);
