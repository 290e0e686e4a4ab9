-- This reads the partitions and locks no writer out.
DO $$
DECLARE
    partition text;
BEGIN
    FOR partition IN
        SELECT conrelid::regclass::text
        FROM pg_constraint
        WHERE conname IN ('sync_attempts_first_bound', 'audit_logs_first_bound')
            AND connamespace = current_schema()::regnamespace
    LOOP
        EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', partition, partition || '_bound');
    END LOOP;
END;
$$;
