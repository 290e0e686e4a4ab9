-- Attempts and the audit log are partitioned by month. Their rows are written once, so whole months are
-- dropped when they are older than their retention, and the indexes of the present month stay small
-- (https://www.postgresql.org/docs/current/ddl-partitioning.html). The existing tables become the first
-- partitions. Every row finds a partition: those that no month takes in go to the default one.

-- Partitioned tables can have no identity column before PostgreSQL 17. The ids order rows that were
-- written in the same microsecond. Every role that may insert rows may use them.
CREATE SEQUENCE sync_attempts_ids;
CREATE SEQUENCE audit_logs_ids;
GRANT USAGE ON SEQUENCE sync_attempts_ids, audit_logs_ids TO PUBLIC;

-- The tables that are partitioned by month.
CREATE FUNCTION history_tables()
RETURNS TABLE (name text, time_column text, is_append_only boolean)
LANGUAGE sql IMMUTABLE
AS $$
    VALUES ('sync_attempts', 'started_at', false), ('audit_logs', 'created_at', true)
$$;

-- The partitions of a table with their bounds, which are null at its ends and for the default one.
CREATE FUNCTION history_partitions(parent regclass)
RETURNS TABLE (partition regclass, lower_bound timestamptz, upper_bound timestamptz)
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT c.oid::regclass,
        substring(bounds.text FROM 'FROM \(''([^'']+)''\)')::timestamptz,
        substring(bounds.text FROM 'TO \(''([^'']+)''\)')::timestamptz
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS text) AS bounds
    WHERE i.inhparent = parent
$$;

-- The audit log is append-only, except for its retention, which has the rights of the owner.
CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('customerio_sync.expires', true) = 'on'
        AND EXISTS (
            SELECT
            FROM pg_class
            WHERE oid = TG_RELID AND pg_get_userbyid(relowner) = current_user
        )
    THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;

DO $$
DECLARE
    one record;
    granted record;
BEGIN
    FOR one IN
        SELECT name, time_column
        FROM history_tables()
    LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', one.name);
        EXECUTE format(
            'SELECT setval(%L, COALESCE(max(id), 0) + 1, false) FROM %I', one.name || '_ids', one.name
        );
        EXECUTE format('ALTER TABLE %I ALTER id DROP IDENTITY', one.name);
        EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', one.name, one.name || '_pkey');
        EXECUTE format('ALTER TABLE %I RENAME TO %I', one.name, one.name || '_first');
        EXECUTE format(
            'CREATE TABLE %I (LIKE %I INCLUDING CONSTRAINTS INCLUDING DEFAULTS) PARTITION BY RANGE (%I)',
            one.name, one.name || '_first', one.time_column
        );
        EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', one.name, one.name || '_bound');
        EXECUTE format(
            'ALTER TABLE %I ALTER id SET DEFAULT nextval(%L)', one.name, one.name || '_ids'
        );
        EXECUTE format('ALTER SEQUENCE %I OWNED BY %I.id', one.name || '_ids', one.name);
        -- The rights of the table that was replaced.
        FOR granted IN
            SELECT privilege_type AS privilege,
                CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS grantee
            FROM pg_class, aclexplode(relacl)
            WHERE oid = (one.name || '_first')::regclass AND grantee <> relowner
        LOOP
            EXECUTE format('GRANT %s ON %I TO %s', granted.privilege, one.name, granted.grantee);
        END LOOP;
    END LOOP;
END;
$$;

ALTER INDEX attempts_of_job RENAME TO first_attempts_of_job;
ALTER INDEX attempts_by_start RENAME TO first_attempts_by_start;
DROP INDEX attempts_by_time; -- the one that was summarized by ranges of pages
CREATE INDEX attempts_of_job ON sync_attempts (job_id, id);
CREATE INDEX attempts_by_start ON sync_attempts (started_at);

ALTER INDEX audit_of_signup RENAME TO first_audit_of_signup;
ALTER INDEX audit_by_time RENAME TO first_audit_by_time;
CREATE INDEX audit_of_signup ON audit_logs (signup_id, id);
CREATE INDEX audit_by_time ON audit_logs (created_at);

-- The constraint shows that no row needs to be checked.
DO $$
DECLARE
    one record;
    bound timestamptz;
BEGIN
    FOR one IN
        SELECT name
        FROM history_tables()
    LOOP
        SELECT substring(pg_get_constraintdef(oid) FROM '''([^'']+)''')::timestamptz
        INTO STRICT bound
        FROM pg_constraint
        WHERE conname = one.name || '_bound' AND conrelid = (one.name || '_first')::regclass;
        EXECUTE format(
            'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (MINVALUE) TO (%L)',
            one.name, one.name || '_first', bound
        );
        EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', one.name || '_first', one.name || '_bound');
        EXECUTE format('CREATE TABLE %I PARTITION OF %I DEFAULT', one.name || '_default', one.name);
    END LOOP;
END;
$$;

-- The first partition has one already.
CREATE TRIGGER audit_logs_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_logs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_logs_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_logs_default
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Creates the partitions of this month and the next two, as far as they are missing, and returns their
-- number. Rows of theirs in the default partition move to them; a month that has many there stays in it.
-- A month whose lock is not granted soon is left for the next call. The service calls it, so it has the
-- rights of its owner.
CREATE FUNCTION add_history_partitions() RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
SET lock_timeout = '200ms'
AS $$
DECLARE
    one record;
    month timestamptz;
    next_month timestamptz;
    lower timestamptz;
    partition text;
    rest text;
    waiting integer;
    added integer := 0;
BEGIN
    -- Only superusers may set a parameter of an extension in the definition of a function.
    PERFORM set_config('customerio_sync.expires', 'on', true);
    FOR one IN
        SELECT name, time_column, is_append_only, months
        FROM history_tables(), generate_series(0, 2) AS months
        ORDER BY name, months
    LOOP
        month := date_trunc('month', now(), 'UTC');
        next_month := (month AT TIME ZONE 'UTC' + make_interval(months => one.months + 1)) AT TIME ZONE 'UTC';
        month := (month AT TIME ZONE 'UTC' + make_interval(months => one.months)) AT TIME ZONE 'UTC';
        lower := greatest(month, (SELECT max(upper_bound) FROM history_partitions(one.name::regclass)));
        partition := one.name || to_char(month AT TIME ZONE 'UTC', '_YYYY_MM');
        rest := one.name || '_default';
        CONTINUE WHEN to_regclass(partition) IS NOT NULL OR lower >= next_month;
        BEGIN
            EXECUTE format(
                'SELECT count(*) FROM (SELECT FROM %I WHERE %I >= $1 AND %I < $2 LIMIT 10001) AS r',
                rest, one.time_column, one.time_column
            )
            INTO waiting USING lower, next_month;
            CONTINUE WHEN waiting > 10000;
            EXECUTE format(
                'CREATE TABLE %I (LIKE %I INCLUDING CONSTRAINTS INCLUDING DEFAULTS)', partition, one.name
            );
            EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', rest);
            EXECUTE format(
                'WITH moved AS (DELETE FROM %I WHERE %I >= %L AND %I < %L RETURNING *) INSERT INTO %I SELECT * FROM moved',
                rest, one.time_column, lower, one.time_column, next_month, partition
            );
            EXECUTE format(
                'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', one.name, partition, lower, next_month
            );
            IF one.is_append_only THEN
                EXECUTE format(
                    'CREATE TRIGGER %I BEFORE UPDATE OR DELETE OR TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()',
                    one.name || '_append_only', partition
                );
            END IF;
            added := added + 1;
        EXCEPTION
            WHEN lock_not_available THEN
                NULL; -- at the next call
        END;
    END LOOP;
    PERFORM set_config('customerio_sync.expires', '', true);
    RETURN added;
END;
$$;
SELECT add_history_partitions();

-- Drops a partition of `history` whose rows are all older than `oldest`. If there is none, deletes up to
-- `rows_max` such rows of the partitions that are no month: the first one and the default one. Returns
-- the number of partitions and of rows. The service calls it, so it has the rights of its owner, and
-- only those may call it who may delete rows.
CREATE FUNCTION expire_history(
    history text, oldest timestamptz, rows_max integer, OUT partitions integer, OUT rows_deleted integer
)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
SET lock_timeout = '200ms'
AS $$
DECLARE
    one record;
    timed text := (SELECT time_column FROM history_tables() WHERE name = history);
    deleted integer;
BEGIN
    IF timed IS NULL OR oldest > now() THEN
        RAISE EXCEPTION 'expected a table of history and a time in the past, found % and %', history, oldest
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    partitions := 0;
    rows_deleted := 0;
    PERFORM set_config('customerio_sync.expires', 'on', true);
    FOR one IN
        SELECT partition, COALESCE(upper_bound <= oldest, false) AS is_over
        FROM history_partitions(history::regclass)
        WHERE upper_bound <= oldest OR lower_bound IS NULL
        ORDER BY upper_bound
    LOOP
        IF one.is_over THEN
            EXECUTE format('DROP TABLE %s', one.partition);
            partitions := partitions + 1;
            EXIT;
        END IF;
        EXECUTE format(
            'DELETE FROM %s WHERE ctid = ANY(ARRAY(SELECT ctid FROM %s WHERE %I < $1 ORDER BY %I LIMIT $2))',
            one.partition, one.partition, timed, timed
        )
        USING oldest, rows_max - rows_deleted;
        GET DIAGNOSTICS deleted = ROW_COUNT;
        rows_deleted := rows_deleted + deleted;
        EXIT WHEN rows_deleted >= rows_max;
    END LOOP;
    PERFORM set_config('customerio_sync.expires', '', true);
END;
$$;
REVOKE ALL ON FUNCTION add_history_partitions(), expire_history(text, timestamptz, integer) FROM PUBLIC;
DO $$
DECLARE
    granted record;
    path text := format('%I, pg_temp', current_schema());
BEGIN
    FOR granted IN
        SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS grantee,
            CASE privilege_type
                WHEN 'INSERT' THEN 'add_history_partitions()'
                ELSE 'expire_history(text, timestamptz, integer)'
            END AS function
        FROM pg_class, aclexplode(relacl)
        WHERE oid = 'sync_attempts'::regclass AND privilege_type IN ('INSERT', 'DELETE')
            AND grantee <> relowner
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', granted.function, granted.grantee);
    END LOOP;
    -- What runs with the rights of its owner finds nothing in the temporary schema of its caller.
    EXECUTE 'ALTER FUNCTION add_history_partitions() SET search_path TO ' || path;
    EXECUTE 'ALTER FUNCTION expire_history(text, timestamptz, integer) SET search_path TO ' || path;
    EXECUTE 'ALTER FUNCTION list_open_job() SET search_path TO ' || path;
    EXECUTE 'ALTER FUNCTION count_completed_jobs() SET search_path TO ' || path;
END;
$$;
