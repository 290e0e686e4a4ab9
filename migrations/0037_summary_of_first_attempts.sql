-- The first partition gets the summary before it is attached to a table that requires it. This keeps writers
-- waiting, so each table has a migration of its own.
DO $$
BEGIN
    IF to_regclass('sync_attempts_first') IS NOT NULL THEN
        CREATE INDEX ON sync_attempts_first USING brin (started_at) WITH (autosummarize = on);
    END IF;
END;
$$;
