-- Signups to which events added data. The caller owns the locks on them.
UPDATE signups s
SET operator_id = e.operator_id, operator_name = e.operator_name, customer_id = e.customer_id,
    email = e.email, first_name = e.first_name, last_name = e.last_name, phone = e.phone,
    state = e.state, attributes = e.attributes, customer_as_of = e.customer_as_of,
    submitted_at = e.submitted_at, extraction_id = e.extraction_id, bet_amount = e.bet_amount,
    team_bet_on = e.team_bet_on, odds = e.odds, confidence = e.confidence,
    confirmed_at = e.confirmed_at, value_times = e.value_times, exact_numbers = e.exact_numbers,
    updated_at = now()
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
WHERE s.id = e.id
