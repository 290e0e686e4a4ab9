-- Only the partitions whose rows are deleted one by one have an index by time; a summary of it is
-- everywhere, also in a month that is added later, and every row is still in its partition.
DO $$
DECLARE
    one record;
    month text := 'sync_attempts' || to_char((now() + interval '2 months') AT TIME ZONE 'UTC', '_YYYY_MM');
BEGIN
    EXECUTE 'DROP TABLE ' || month;
    ASSERT add_history_partitions() = 1;
    FOR one IN
        SELECT p.partition::text AS partition, p.lower_bound IS NULL AS is_no_month,
            count(*) FILTER (WHERE a.amname = 'btree' AND i.indkey[0] = t.attnum) AS indexes,
            count(*) FILTER (WHERE a.amname = 'brin' AND i.indkey[0] = t.attnum AND i.indisvalid) AS summaries
        FROM history_tables() AS h,
            history_partitions(h.name::regclass) AS p,
            pg_attribute t, pg_index i, pg_class c, pg_am a
        WHERE t.attrelid = p.partition AND t.attname = h.time_column AND i.indrelid = p.partition
            AND c.oid = i.indexrelid AND a.oid = c.relam
        GROUP BY 1, 2
    LOOP
        ASSERT one.summaries = 1, one;
        ASSERT one.indexes = one.is_no_month::int, one;
    END LOOP;
END;
$$;
