-- Sessions of browsers. Their signatures depend on a salt that all replicas share, so that a leaked cookie can't be
-- used to guess a token. A session that was ended is refused by every replica until it would have expired.

CREATE TABLE session_salt (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only), -- no more than one row
    salt bytea NOT NULL CHECK (octet_length(salt) = 32)
);

CREATE TABLE ended_sessions (
    id uuid PRIMARY KEY,
    expires_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- Replicas read what was ended since their last read.
CREATE INDEX ended_sessions_in_order ON ended_sessions (ended_at, id);
-- Expired rows are deleted.
CREATE INDEX ended_sessions_by_expiry ON ended_sessions (expires_at);
