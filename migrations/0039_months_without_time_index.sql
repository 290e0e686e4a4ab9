-- Replaces the index by time with a summary. The first and the default partition are detached meanwhile, so
-- their indexes stay. In a new database, the first partition is dropped: there are only the months and the
-- default partition.
DO $$
DECLARE
    one record;
    old record;
    is_new boolean;
    bound timestamptz;
BEGIN
    FOR one IN
        SELECT name, time_column,
            CASE name WHEN 'sync_attempts' THEN 'attempts_by_start' ELSE 'audit_by_time' END AS by_time
        FROM history_tables()
        ORDER BY name DESC -- the order in which the service writes them
    LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', one.name);
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM %I)', one.name) INTO is_new;
        IF is_new THEN
            BEGIN
                FOR old IN
                    SELECT partition
                    FROM history_partitions(one.name::regclass)
                    WHERE partition <> (one.name || '_default')::regclass
                LOOP
                    EXECUTE format('DROP TABLE %s', old.partition);
                END LOOP;
            EXCEPTION
                WHEN dependent_objects_still_exist THEN
                    NULL; -- The partitions stay.
            END;
        END IF;
        bound := (
            SELECT upper_bound
            FROM history_partitions(one.name::regclass)
            WHERE partition = to_regclass(one.name || '_first')
        );
        IF bound IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %I DETACH PARTITION %I', one.name, one.name || '_first');
        END IF;
        EXECUTE format('ALTER TABLE %I DETACH PARTITION %I', one.name, one.name || '_default');
        EXECUTE format('DROP INDEX %I', one.by_time);
        EXECUTE format(
            'CREATE INDEX %I ON %I USING brin (%I) WITH (autosummarize = on)',
            one.by_time, one.name, one.time_column
        );
        IF bound IS NOT NULL THEN
            EXECUTE format(
                'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (MINVALUE) TO (%L)',
                one.name, one.name || '_first', bound
            );
            EXECUTE format(
                'ALTER TABLE %I DROP CONSTRAINT IF EXISTS %I', one.name || '_first', one.name || '_first_bound'
            );
        END IF;
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I DEFAULT', one.name, one.name || '_default');
    END LOOP;
END;
$$;
SELECT add_history_partitions();
