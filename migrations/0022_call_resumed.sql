-- When an operator last closed the circuit breaker or ended a pause, which all replicas follow.

ALTER TABLE call_hold
    ADD COLUMN resumed_at timestamptz;
