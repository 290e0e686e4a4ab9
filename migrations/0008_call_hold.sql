-- Customer.io tells one replica how long it wants to be left alone; all of them heed it.

CREATE TABLE call_hold (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only), -- one row at most
    ends_at timestamptz NOT NULL
);
