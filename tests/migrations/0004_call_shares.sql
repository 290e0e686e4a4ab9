INSERT INTO call_shares (replica, calls_per_second, expires_at)
VALUES ('0191e4a0-0000-7000-8000-000000000001', 450, now() + interval '2 seconds');
