-- One signup, in the form of lock_signups.sql.
SELECT now() AS "now!", id AS "id?", operator_id, operator_name, customer_id, email, first_name,
    last_name, phone, state, attributes AS "attributes?: _", customer_as_of, submitted_at,
    extraction_id, bet_amount, team_bet_on, odds AS "odds?: _", confidence, confirmed_at,
    value_times AS "value_times?: _", exact_numbers AS "exact_numbers?: _",
    customerio_contact_id AS contact_id,
    customerio_contact_id IS NOT NULL AS is_contact_accepted
FROM signups
WHERE id = $1
