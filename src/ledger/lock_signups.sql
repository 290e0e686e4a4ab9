-- The signups that messages are for, locked in the lock order (locks.rs), and the time. There is one
-- row even if there is no signup.
SELECT now() AS "now!", id AS "id?", operator_id AS "operator_id?",
    operator_name AS "operator_name?", customer_id AS "customer_id?", email AS "email?",
    first_name AS "first_name?", last_name AS "last_name?", phone AS "phone?", state AS "state?",
    attributes AS "attributes?: _", customer_as_of AS "customer_as_of?",
    submitted_at AS "submitted_at?", extraction_id AS "extraction_id?",
    bet_amount AS "bet_amount?", team_bet_on AS "team_bet_on?", odds AS "odds?: _",
    confidence AS "confidence?", confirmed_at AS "confirmed_at?", value_times AS "value_times?: _",
    exact_numbers AS "exact_numbers?: _", contact_id AS "contact_id?",
    customerio_contact_id IS NOT NULL AS "is_contact_accepted?"
FROM (VALUES (1)) AS one
LEFT JOIN (
    SELECT *,
        -- Accepted, or else used in an attempt that may have been accepted.
        COALESCE(customerio_contact_id, (
            SELECT contact_id
            FROM signup_customerio_sync_jobs
            WHERE signup_id = signups.id AND failed_reason IS DISTINCT FROM 'permanent'
                AND contact_id IS NOT NULL AND NOT mock
            ORDER BY last_attempt_at
            LIMIT 1
        )) AS contact_id
    FROM signups
    WHERE id = ANY($1)
    ORDER BY id
    FOR NO KEY UPDATE
) AS s ON true
