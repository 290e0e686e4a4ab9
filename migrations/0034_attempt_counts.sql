-- The attempts of the last hour, by the minute in which they started. Each batch adds its own as rows, and
-- the leader of the integrity check sums them, so that the overview reads neither attempts nor audit log.
-- Replicas of the previous release add none.
CREATE TABLE attempt_counts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    minute timestamptz NOT NULL,
    completed bigint NOT NULL,
    retried bigint NOT NULL,
    failed bigint NOT NULL
);

INSERT INTO attempt_counts (minute, completed, retried, failed)
SELECT date_bin('1 minute', started_at, 'epoch'), count(*) FILTER (WHERE error_type IS NULL),
    count(*) FILTER (WHERE tier IS NOT NULL), count(*) FILTER (WHERE error_type IS NOT NULL AND tier IS NULL)
FROM sync_attempts
WHERE started_at >= now() - interval '1 hour'
GROUP BY 1;

-- Who may write attempts may count them.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS grantee
        FROM pg_class, aclexplode(relacl)
        WHERE oid = 'sync_attempts'::regclass AND privilege_type = 'INSERT' AND grantee <> relowner
    LOOP
        EXECUTE 'GRANT SELECT, INSERT, DELETE ON attempt_counts TO ' || granted.grantee;
    END LOOP;
END;
$$;
