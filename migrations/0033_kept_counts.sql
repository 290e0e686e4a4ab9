-- Counts of open jobs, of failures and of recent signups are kept by triggers. Each statement adds its
-- changes as rows, so that transactions do not wait for each other, and the leader of the integrity
-- check sums them. A count is the sum of all rows. What an operator, a leader or a gauge asks takes the
-- same time with a million open failures.

CREATE TABLE open_counts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    state text NOT NULL,
    sync_phase text NOT NULL,
    error_type text,
    error_signature text,
    jobs bigint NOT NULL
);

CREATE TABLE failure_counts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    has_job boolean NOT NULL,
    is_open boolean NOT NULL,
    failures bigint NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now()
);

-- The signups of the last day, by the minute in which they were created.
CREATE TABLE signup_counts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    minute timestamptz NOT NULL,
    signups bigint NOT NULL,
    synced bigint NOT NULL
);

-- The functions have the rights of their owner: the previous release may lack those on new tables.
CREATE FUNCTION count_open_jobs() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO open_counts (state, sync_phase, error_type, error_signature, jobs)
        SELECT state, sync_phase, error_type, error_signature, count(*)
        FROM new_rows
        GROUP BY state, sync_phase, error_type, error_signature;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO open_counts (state, sync_phase, error_type, error_signature, jobs)
        SELECT state, sync_phase, error_type, error_signature, -count(*)
        FROM old_rows
        GROUP BY state, sync_phase, error_type, error_signature;
    ELSE
        INSERT INTO open_counts (state, sync_phase, error_type, error_signature, jobs)
        SELECT state, sync_phase, error_type, error_signature, sum(change)
        FROM (
            SELECT state, sync_phase, error_type, error_signature, 1 AS change
            FROM new_rows
            UNION ALL
            SELECT state, sync_phase, error_type, error_signature, -1
            FROM old_rows
        ) AS changes
        GROUP BY state, sync_phase, error_type, error_signature
        HAVING sum(change) <> 0;
    END IF;
    RETURN NULL;
END;
$$;

CREATE FUNCTION count_failures() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO failure_counts (has_job, is_open, failures)
        SELECT job_id IS NOT NULL, resolved_at IS NULL, count(*)
        FROM new_rows
        GROUP BY 1, 2;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO failure_counts (has_job, is_open, failures)
        SELECT job_id IS NOT NULL, resolved_at IS NULL, -count(*)
        FROM old_rows
        GROUP BY 1, 2;
    ELSE
        INSERT INTO failure_counts (has_job, is_open, failures)
        SELECT has_job, is_open, sum(change)
        FROM (
            SELECT job_id IS NOT NULL AS has_job, resolved_at IS NULL AS is_open, 1 AS change
            FROM new_rows
            UNION ALL
            SELECT job_id IS NOT NULL, resolved_at IS NULL, -1
            FROM old_rows
        ) AS changes
        GROUP BY has_job, is_open
        HAVING sum(change) <> 0;
    END IF;
    RETURN NULL;
END;
$$;

CREATE FUNCTION count_signups() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO signup_counts (minute, signups, synced)
        SELECT date_bin('1 minute', created_at, 'epoch'), count(*), count(*) FILTER (WHERE customerio_synced)
        FROM new_rows
        WHERE created_at >= now() - interval '25 hours'
        GROUP BY 1;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO signup_counts (minute, signups, synced)
        SELECT date_bin('1 minute', created_at, 'epoch'), -count(*), -count(*) FILTER (WHERE customerio_synced)
        FROM old_rows
        WHERE created_at >= now() - interval '25 hours'
        GROUP BY 1;
    ELSE
        INSERT INTO signup_counts (minute, signups, synced)
        SELECT date_bin('1 minute', created_at, 'epoch'), sum(change),
            COALESCE(sum(change) FILTER (WHERE customerio_synced), 0)
        FROM (
            SELECT created_at, customerio_synced, 1 AS change
            FROM new_rows
            UNION ALL
            SELECT created_at, customerio_synced, -1
            FROM old_rows
        ) AS changes
        WHERE created_at >= now() - interval '25 hours'
        GROUP BY 1
        HAVING sum(change) <> 0 OR sum(change) FILTER (WHERE customerio_synced) <> 0;
    END IF;
    RETURN NULL;
END;
$$;

-- The triggers keep writers waiting until this is committed, so each row is counted once.
DO $$
DECLARE
    one record;
    path text := format('%I, pg_temp', current_schema());
BEGIN
    FOR one IN
        SELECT *
        FROM (
            VALUES ('signups', 'count_signups'), ('open_jobs', 'count_open_jobs'), ('sync_failures', 'count_failures')
        ) AS v (name, function)
    LOOP
        EXECUTE format(
            'CREATE TRIGGER %1$I AFTER INSERT ON %2$I REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION %3$I()',
            one.function || '_inserted', one.name, one.function
        );
        EXECUTE format(
            'CREATE TRIGGER %1$I AFTER UPDATE ON %2$I REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION %3$I()',
            one.function || '_updated', one.name, one.function
        );
        EXECUTE format(
            'CREATE TRIGGER %1$I AFTER DELETE ON %2$I REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION %3$I()',
            one.function || '_deleted', one.name, one.function
        );
        EXECUTE format('ALTER FUNCTION %I() SET search_path TO %s', one.function, path);
    END LOOP;
END;
$$;

INSERT INTO open_counts (state, sync_phase, error_type, error_signature, jobs)
SELECT state, sync_phase, error_type, error_signature, count(*)
FROM open_jobs
GROUP BY state, sync_phase, error_type, error_signature;

INSERT INTO failure_counts (has_job, is_open, failures)
SELECT job_id IS NOT NULL, resolved_at IS NULL, count(*)
FROM sync_failures
GROUP BY 1, 2;

INSERT INTO signup_counts (minute, signups, synced)
SELECT date_bin('1 minute', created_at, 'epoch'), count(*), count(*) FILTER (WHERE customerio_synced)
FROM signups
WHERE created_at >= now() - interval '25 hours'
GROUP BY 1;
