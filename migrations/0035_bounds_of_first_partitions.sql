-- A month is dropped as a whole, so nothing looks up single rows of it by time. A summary per range of
-- pages (https://www.postgresql.org/docs/current/brin.html) will replace an index entry per row. The
-- partitions from before the tables were partitioned keep their index, since their rows are deleted in the
-- order of time. They get their bound as a constraint, as in 0029: then they can be detached and attached
-- without reading their rows.
DO $$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT t.name || '_first' AS partition, t.time_column, p.upper_bound
        FROM history_tables() AS t, history_partitions(t.name::regclass) AS p
        WHERE p.partition = to_regclass(t.name || '_first')
        ORDER BY t.name DESC -- the order in which the service writes them
    LOOP
        EXECUTE format(
            'ALTER TABLE %I ADD CONSTRAINT %I CHECK (%I < %L) NOT VALID',
            one.partition, one.partition || '_bound', one.time_column, one.upper_bound
        );
    END LOOP;
END;
$$;
