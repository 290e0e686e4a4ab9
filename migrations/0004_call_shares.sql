-- The calls a second that Customer.io allows, shared by the replicas: each leases a part of them for a short time.

CREATE TABLE call_shares (
    replica uuid PRIMARY KEY,
    calls_per_second double precision NOT NULL CHECK (calls_per_second >= 0), -- what it may be using at most
    expires_at timestamptz NOT NULL
);

-- Renews the share of a replica that uses current_share now, and answers what it may use from now on: an even part of
-- all_calls, or less until the others have come down to theirs. A share that comes down stays counted in full until its
-- replica reports the smaller one, so that the sum never exceeds all_calls. It is one function, and so one statement: a
-- replica that freezes can't hold the lock.
CREATE FUNCTION renew_call_share(
    renewing uuid, all_calls double precision, current_share double precision, lease interval
) RETURNS double precision
LANGUAGE plpgsql AS $$
DECLARE
    others integer;
    taken double precision;
    granted double precision;
BEGIN
    LOCK TABLE call_shares IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM call_shares WHERE expires_at <= clock_timestamp();
    SELECT count(*), COALESCE(sum(calls_per_second), 0)
    INTO others, taken
    FROM call_shares
    WHERE replica <> renewing;
    granted := GREATEST(LEAST(all_calls / (others + 1), all_calls - taken), 0);
    INSERT INTO call_shares AS s (replica, calls_per_second, expires_at)
    VALUES (renewing, GREATEST(granted, current_share), clock_timestamp() + lease)
    ON CONFLICT (replica) DO UPDATE
    SET calls_per_second = excluded.calls_per_second, expires_at = excluded.expires_at;
    RETURN granted;
END
$$;
