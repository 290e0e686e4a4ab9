-- Signups to which events added data. The caller owns the locks on them.
UPDATE signups s
SET operator_id = e.operator_id, operator_name = e.operator_name, customer_id = e.customer_id,
    email = e.email, first_name = e.first_name, last_name = e.last_name, phone = e.phone,
    state = e.state, attributes = e.attributes, customer_as_of = e.customer_as_of,
    submitted_at = e.submitted_at, extraction_id = e.extraction_id, bet_amount = e.bet_amount,
    team_bet_on = e.team_bet_on, odds = e.odds, confidence = e.confidence,
    confirmed_at = e.confirmed_at, value_times = e.value_times, exact_numbers = e.exact_numbers,
    updated_at = now()
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
WHERE s.id = e.id
