-- What the ledger writes for a batch of 200 events, two of each of 100 signups: the claim, the result, and
-- the outbox.
\set batch random(1, 9000000000000000000)
SET customerio_sync.writes_claims = 'on';
BEGIN;
INSERT INTO signups (id, operator_id, operator_name, customer_id, email, first_name, last_name, phone, state,
    attributes, submitted_at, customer_as_of)
SELECT md5(:batch::int8 || 's' || n)::uuid, 'op-12', 'Acme Sports', 'c-' || n, 'person' || n || '@example.com', 'Ann',
    'Lee', '+15550100', 'NJ', '{"plan": "gold"}', now(), now()
FROM generate_series(1, 100) AS n;
INSERT INTO signup_customerio_sync_jobs (id, signup_id, sync_phase, status, event_id, claim, claimed_at, claimed_by)
SELECT md5(:batch::int8 || 'j' || n)::uuid, md5(:batch::int8 || 's' || 1 + n % 100)::uuid,
    CASE WHEN n <= 100 THEN 'initial' ELSE 'enriched' END, 'processing', md5(:batch::int8 || 'e' || n),
    md5(:batch::int8 || 'c')::uuid, now(), 'event:' || md5(:batch::int8 || 'e' || n)
FROM generate_series(1, 200) AS n;
INSERT INTO claims (claim, jobs)
SELECT md5(:batch::int8 || 'c')::uuid, array_agg(md5(:batch::int8 || 'j' || n)::uuid)
FROM generate_series(1, 200) AS n;
INSERT INTO taken_in (jobs) VALUES (200);
COMMIT;
BEGIN;
UPDATE signup_customerio_sync_jobs j
SET status = 'completed', last_attempt_at = now(), contact_id = 'c', completed_at = now(), claim = NULL,
    claimed_at = NULL, settled_by = md5(:batch::int8 || 'c')::uuid, updated_at = now()
FROM (SELECT md5(:batch::int8 || 'j' || n)::uuid AS id FROM generate_series(1, 200) AS n) AS o
WHERE j.id = o.id AND j.claim = md5(:batch::int8 || 'c')::uuid;
UPDATE signups s
SET customerio_synced = true, customerio_synced_at = now(), customerio_contact_id = 'c', updated_at = now()
FROM (SELECT md5(:batch::int8 || 's' || n)::uuid AS id FROM generate_series(1, 100) AS n) AS o
WHERE s.id = o.id;
INSERT INTO sync_attempts (job_id, run, attempt, started_at, duration_ms, http_status)
SELECT md5(:batch::int8 || 'j' || n)::uuid, 0, 0, now(), 1, 200
FROM generate_series(1, 200) AS n;
INSERT INTO audit_logs (action, signup_id, actor, details)
SELECT 'customerio_synced', md5(:batch::int8 || 's' || 1 + n % 100)::uuid, 'customerio-sync', jsonb_build_object(
    'jobId', md5(:batch::int8 || 'j' || n), 'syncPhase', 'initial', 'contactId', 'c', 'run', 0, 'attemptCount', 0
)
FROM generate_series(1, 200) AS n;
DELETE FROM claims WHERE claim = md5(:batch::int8 || 'c')::uuid;
INSERT INTO outbox (kind, job_ids, runs, attempts, writer, due_at)
SELECT 'outcomes', array_agg(md5(:batch::int8 || 'j' || n)::uuid), array_agg(0), array_agg(0),
    md5(:batch::int8 || 'c')::uuid, now() + interval '30 seconds'
FROM generate_series(1, 200) AS n;
COMMIT;
DELETE FROM outbox WHERE writer = md5(:batch::int8 || 'c')::uuid;
