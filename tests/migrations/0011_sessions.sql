INSERT INTO session_salt (salt) VALUES (sha256('sample'));
INSERT INTO ended_sessions (id, expires_at)
VALUES ('0191e4a0-0000-4000-8000-000000000003', now() + interval '12 hours');
