-- New signups. One that another transaction has inserted meanwhile stays as it is.
INSERT INTO signups (
    id, operator_id, operator_name, customer_id, email, first_name, last_name, phone, state,
    attributes, customer_as_of, submitted_at, extraction_id, bet_amount, team_bet_on, odds,
    confidence, confirmed_at, value_times, exact_numbers
)
SELECT *
FROM (
    SELECT UNNEST($1::uuid[]) AS id, UNNEST($2::text[]) AS operator_id,
        UNNEST($3::text[]) AS operator_name, UNNEST($4::text[]) AS customer_id,
        UNNEST($5::text[]) AS email, UNNEST($6::text[]) AS first_name,
        UNNEST($7::text[]) AS last_name, UNNEST($8::text[]) AS phone, UNNEST($9::text[]) AS state,
        UNNEST($10::jsonb[]) AS attributes, UNNEST($11::timestamptz[]) AS customer_as_of,
        UNNEST($12::timestamptz[]) AS submitted_at, UNNEST($13::text[]) AS extraction_id,
        UNNEST($14::float8[]) AS bet_amount, UNNEST($15::text[]) AS team_bet_on,
        UNNEST($16::jsonb[]) AS odds, UNNEST($17::float8[]) AS confidence,
        UNNEST($18::timestamptz[]) AS confirmed_at, UNNEST($19::jsonb[]) AS value_times,
        UNNEST($20::jsonb[]) AS exact_numbers
) AS e
-- The lock order (locks.rs).
ORDER BY e.id
ON CONFLICT (id) DO NOTHING
