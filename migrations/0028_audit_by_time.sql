-- As 0027, for the audit log.
CREATE INDEX audit_by_time ON audit_logs (created_at);
