-- An operator has ended a pause.
INSERT INTO call_hold (ends_at, resumed_at)
VALUES (now(), now())
ON CONFLICT (is_only) DO UPDATE SET resumed_at = excluded.resumed_at;
