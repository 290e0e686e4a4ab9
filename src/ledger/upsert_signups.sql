-- The data of events, per signup. Events may arrive in any order: if two have the same field, the one
-- that happened later wins. A repeat of an event writes nothing: without a time of its own, it would
-- count as the latest. A time more than five minutes ahead is replaced by the time of arrival: it would
-- win against every other event until it has come.
INSERT INTO signups AS s (
    id, operator_id, operator_name, customer_id, email, first_name, last_name, phone, state,
    attributes, customer_as_of, submitted_at, extraction_id, bet_amount, team_bet_on, odds,
    confidence, confirmed_at
)
SELECT e.id, operator_id, operator_name, customer_id, email, first_name, last_name, phone, state,
    COALESCE(attributes, '{}'),
    CASE WHEN of_customer THEN at.time END,
    CASE WHEN bet_amount IS NULL THEN at.time END,
    extraction_id, bet_amount, team_bet_on, odds, confidence,
    CASE WHEN bet_amount IS NOT NULL THEN at.time END
FROM UNNEST(
    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
    $8::text[], $9::text[], $10::jsonb[], $11::bool[], $12::timestamptz[], $13::text[],
    $14::float8[], $15::text[], $16::jsonb[], $17::float8[], $18::text[], $19::text[]
) AS e (
    id, operator_id, operator_name, customer_id, email, first_name, last_name, phone, state,
    attributes, of_customer, occurred_at, extraction_id, bet_amount, team_bet_on, odds,
    confidence, sync_phase, event_id
)
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN e.occurred_at <= now() + interval '5 minutes' THEN e.occurred_at
        ELSE now()
    END AS time
) AS at
LEFT JOIN signup_customerio_sync_jobs j
    ON j.signup_id = e.id AND j.sync_phase = e.sync_phase
WHERE j.id IS NULL
    OR (j.event_id <> e.event_id AND e.event_id <> ALL (COALESCE(j.earlier_events, '{}')))
-- The lock order (locks.rs), which the join may have changed.
ORDER BY e.id
ON CONFLICT (id) DO UPDATE SET
    (
        operator_id, operator_name, customer_id, email, first_name, last_name, phone, state,
        attributes
    ) = (
        SELECT
            CASE
                WHEN later THEN COALESCE(EXCLUDED.operator_id, s.operator_id)
                ELSE COALESCE(s.operator_id, EXCLUDED.operator_id)
            END,
            CASE
                WHEN later THEN COALESCE(EXCLUDED.operator_name, s.operator_name)
                ELSE COALESCE(s.operator_name, EXCLUDED.operator_name)
            END,
            CASE
                WHEN later THEN COALESCE(EXCLUDED.customer_id, s.customer_id)
                ELSE COALESCE(s.customer_id, EXCLUDED.customer_id)
            END,
            CASE
                WHEN later THEN COALESCE(EXCLUDED.email, s.email)
                ELSE COALESCE(s.email, EXCLUDED.email)
            END,
            CASE
                WHEN later THEN COALESCE(EXCLUDED.first_name, s.first_name)
                ELSE COALESCE(s.first_name, EXCLUDED.first_name)
            END,
            CASE
                WHEN later THEN COALESCE(EXCLUDED.last_name, s.last_name)
                ELSE COALESCE(s.last_name, EXCLUDED.last_name)
            END,
            CASE
                WHEN later THEN COALESCE(EXCLUDED.phone, s.phone)
                ELSE COALESCE(s.phone, EXCLUDED.phone)
            END,
            CASE
                WHEN later THEN COALESCE(EXCLUDED.state, s.state)
                ELSE COALESCE(s.state, EXCLUDED.state)
            END,
            CASE
                WHEN later THEN s.attributes || EXCLUDED.attributes
                ELSE EXCLUDED.attributes || s.attributes
            END
        FROM (
            SELECT COALESCE(EXCLUDED.customer_as_of >= s.customer_as_of, true) AS later
        ) AS compared
    ),
    customer_as_of = GREATEST(s.customer_as_of, EXCLUDED.customer_as_of),
    submitted_at = GREATEST(s.submitted_at, EXCLUDED.submitted_at),
    (extraction_id, bet_amount, team_bet_on, odds, confidence) = (
        SELECT
            CASE WHEN later THEN EXCLUDED.extraction_id ELSE s.extraction_id END,
            CASE WHEN later THEN EXCLUDED.bet_amount ELSE s.bet_amount END,
            CASE WHEN later THEN EXCLUDED.team_bet_on ELSE s.team_bet_on END,
            CASE WHEN later THEN EXCLUDED.odds ELSE s.odds END,
            CASE WHEN later THEN EXCLUDED.confidence ELSE s.confidence END
        FROM (
            SELECT EXCLUDED.confirmed_at >= COALESCE(s.confirmed_at, '-infinity') AS later
        ) AS compared
    ),
    confirmed_at = GREATEST(s.confirmed_at, EXCLUDED.confirmed_at),
    updated_at = now()
