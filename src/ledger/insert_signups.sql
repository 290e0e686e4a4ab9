-- New signups. One that another transaction has inserted meanwhile stays as it is.
INSERT INTO signups (
    id, operator_id, operator_name, customer_id, email, first_name, last_name, phone, state,
    attributes, customer_as_of, submitted_at, extraction_id, bet_amount, team_bet_on, odds,
    confidence, confirmed_at, value_times, exact_numbers
)
SELECT *
FROM UNNEST(
    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
    $8::text[], $9::text[], $10::jsonb[], $11::timestamptz[], $12::timestamptz[], $13::text[],
    $14::float8[], $15::text[], $16::jsonb[], $17::float8[], $18::timestamptz[], $19::jsonb[],
    $20::jsonb[]
) AS e (
    id, operator_id, operator_name, customer_id, email, first_name, last_name, phone, state,
    attributes, customer_as_of, submitted_at, extraction_id, bet_amount, team_bet_on, odds,
    confidence, confirmed_at, value_times, exact_numbers
)
-- The lock order (locks.rs).
ORDER BY e.id
ON CONFLICT (id) DO NOTHING
