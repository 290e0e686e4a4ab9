-- As 0037, for the audit log.
DO $$
BEGIN
    IF to_regclass('audit_logs_first') IS NOT NULL THEN
        CREATE INDEX ON audit_logs_first USING brin (created_at) WITH (autosummarize = on);
    END IF;
END;
$$;
