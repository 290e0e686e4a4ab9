UPDATE call_shares
SET replica_name = 'host-1:1', breaker_state = 'open', breaker_reason = 'outage', breaker_since = now(),
    breaker_next_probe_at = now();
