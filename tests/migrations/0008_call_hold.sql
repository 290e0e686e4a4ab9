INSERT INTO call_hold (ends_at) VALUES (now() + interval '30 seconds');
