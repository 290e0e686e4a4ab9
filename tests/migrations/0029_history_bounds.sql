-- What is written while the next migrations run is below the bound.
INSERT INTO audit_logs (action, actor, details)
VALUES ('bulk_retry_started', 'anna', '{}');
