-- Causes of the failures that are open now, where the HTTP status does not imply the cause, and paths
-- of the open unprocessable messages. In a transaction of its own, so that it blocks no new attempt.
UPDATE sync_attempts a
SET error_cause = CASE
    WHEN a.error_message LIKE 'signup not known yet%' THEN 'signup_unknown'
    WHEN a.error_message LIKE '%Customer.io allows%' THEN 'limit_exceeded'
    WHEN a.error_message LIKE 'customer.id is missing%' THEN 'identifier_missing'
    WHEN a.error_message LIKE 'Customer.io refused%' THEN 'item_refused'
    ELSE 'response_unclear'
END
FROM signup_customerio_sync_jobs j
WHERE a.job_id = j.id AND j.status = 'failed' AND a.tier IS NULL
    AND a.error_type = 'other' AND a.run = j.run
    AND (
        a.error_message LIKE 'signup not known yet%'
        OR a.error_message LIKE '%Customer.io allows%'
        OR a.error_message LIKE 'customer.id is missing%'
        OR a.error_message LIKE 'Customer.io refused%'
        OR a.error_message LIKE '%which can''t be read'
        OR a.error_message LIKE '%which names no item of the call'
    );

UPDATE sync_failures
SET error_path = split_part(error_message, ': ', 1)
WHERE job_id IS NULL AND resolved_at IS NULL AND reason = 'unprocessable'
    AND error_path IS NULL AND error_message LIKE '%: %';
