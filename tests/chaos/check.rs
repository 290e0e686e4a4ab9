//! The invariants after the faults have stopped, checked from outside: in the tables, in the
//! queues, and in what the simulator received.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use customerio_sync::job::{SyncPhase, tracked_event_id};
use lapin::options::{BasicAckOptions, BasicGetOptions};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    FAILURE_QUEUE, OUTCOME_QUEUE,
    load::Load,
    stage::Stage,
    support::{Received, wait_for},
};

/// Maximum time from the start of a call to its arrival at the simulator: the timeout of the call,
/// and the delays of proxy and simulator.
const CALL_DELAY_MAX: TimeDelta = TimeDelta::seconds(5);
/// Maximum time from the last fault until the replicas are idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
const IDLE_POLL_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, sqlx::FromRow)]
struct Job {
    id: Uuid,
    signup_id: Uuid,
    sync_phase: String,
    status: String,
    max_attempts: i32,
    run: i32,
    is_dismissed: bool,
    is_given_up: bool,
}

#[derive(Debug, sqlx::FromRow)]
struct Attempt {
    job_id: Uuid,
    run: i32,
    attempt: i32,
    started_at: DateTime<Utc>,
    duration_ms: f64,
    error_type: Option<String>,
    tier: Option<String>,
}

#[derive(Debug, sqlx::FromRow)]
struct Audit {
    action: String,
    job_id: Uuid,
    created_at: DateTime<Utc>,
    is_given_up: bool,
}

#[derive(Debug, sqlx::FromRow)]
struct Failure {
    message_id: String,
    job_id: Option<Uuid>,
    reason: String,
    original_routing_key: String,
    body: Vec<u8>,
    is_open: bool,
}

/// A call to the simulator.
#[derive(Debug)]
struct Call {
    at: DateTime<Utc>,
    events: Vec<String>,
}

/// Everything that the tables, the queues and the simulator contain after a round.
struct Facts {
    jobs: Vec<Job>,
    attempts: HashMap<Uuid, Vec<Attempt>>,
    audit: HashMap<Uuid, Vec<Audit>>,
    failures: Vec<Failure>,
    /// The ids of the messages in each queue that should be empty.
    left: BTreeMap<String, Vec<String>>,
    /// The messages in the failure queue.
    parked: Vec<Received>,
    outcomes: Vec<Received>,
    events: Vec<Value>,
    calls: Vec<Call>,
}

/// Waits until no job is open and no message is in transit or in the outbox.
///
/// Returns a violation if that takes longer than [`IDLE_TIMEOUT`], and one for each claimed job
/// without a message, unless a fault may have purged the message (`may_lose_messages`).
pub(crate) async fn wait_until_idle(stage: &Stage, may_lose_messages: bool) -> Vec<String> {
    let (began, mut violations) = (Instant::now(), Vec::new());
    let mut was_idle = false;
    loop {
        // A message is in the outbox first, then in a queue.
        let owed = stage.world.count("SELECT count(*) FROM outbox").await;
        let (open, queues) = (open_jobs(stage).await, unexpected_queues(stage).await);
        let is_idle = open == 0 && queues.is_empty() && owed == 0;
        // The counts are not of one moment: a message that moved meanwhile may be in none of them.
        if is_idle && was_idle {
            return violations;
        }
        was_idle = is_idle;
        if began.elapsed() > IDLE_TIMEOUT {
            violations.push(format!(
                "not idle after {IDLE_TIMEOUT:?}: {open} jobs are open, the outbox has {owed} \
                    rows, and these queues have an unexpected length: {queues:?}"
            ));
            return violations;
        }
        // The owner of a claim also has the job's message, unacknowledged. A claimed job without a
        // message waits for recovery.
        let abandoned = if queues.is_empty() { expire_claims(stage).await } else { Vec::new() };
        if !may_lose_messages {
            violations.extend(
                abandoned.iter().map(|job| format!("the job {job} is claimed but has no message")),
            );
        }
        tokio::time::sleep(IDLE_POLL_INTERVAL).await;
    }
}

/// Moves claims older than 20 seconds into the past, so that the round need not wait for the five
/// minutes after which recovery releases them. Returns their jobs.
async fn expire_claims(stage: &Stage) -> Vec<Uuid> {
    let sql = "
        UPDATE signup_customerio_sync_jobs SET claimed_at = claimed_at - interval '5 minutes'
        WHERE status = 'processing' AND claimed_at < now() - interval '20 seconds'
            AND claimed_at > now() - interval '5 minutes'
        RETURNING id";
    let mut connection = stage.connect_as_service().await;
    sqlx::query_scalar(sql).fetch_all(&mut connection).await.expect("PostgreSQL answers")
}

async fn open_jobs(stage: &Stage) -> i64 {
    let sql = "
        SELECT count(*) FROM signup_customerio_sync_jobs
        WHERE status IN ('pending', 'processing')";
    stage.world.count(sql).await
}

async fn open_failures(stage: &Stage) -> i64 {
    stage.world.count("SELECT count(*) FROM sync_failures WHERE resolved_at IS NULL").await
}

/// Returns the queues that have ready or unacknowledged messages, and the failure queue if its
/// length differs from the number of open failures.
async fn unexpected_queues(stage: &Stage) -> BTreeMap<String, i64> {
    let open_failures = open_failures(stage).await;
    let queues = stage.world.management("queues").await;
    let mut unexpected = BTreeMap::new();
    for queue in queues.as_array().expect("a list") {
        let name = queue["name"].as_str().expect("a name");
        let expected = if name == FAILURE_QUEUE { open_failures } else { 0 };
        let ready = i64::from(stage.world.depth(name).await);
        // The management API lags behind, but it counts unacknowledged messages. After a partition
        // it may have no counts of a node for minutes. Messages that are left in the queues are
        // counted again after the replicas have ended.
        let total = queue["messages"].as_i64().unwrap_or(ready);
        if name != OUTCOME_QUEUE && (ready != expected || total != expected) {
            unexpected.insert(name.to_owned(), ready.max(total));
        }
    }
    unexpected
}

/// Checks all invariants. A job may have at most `extra_calls` more calls than attempts.
pub(crate) async fn find_violations(stage: &Stage, load: &Load, extra_calls: usize) -> Vec<String> {
    let facts = Facts::gather(stage).await;
    let mut violations = Vec::new();
    facts.check_queues(&mut violations);
    facts.check_end_states(load, &mut violations);
    facts.check_unprocessable(load, &mut violations);
    facts.check_tracked_events(&mut violations);
    facts.check_calls(extra_calls, &mut violations);
    facts.check_runs(load, &mut violations);
    facts.check_attempts(&mut violations);
    facts.check_audit(&mut violations);
    facts.check_failures(&mut violations);
    facts.check_outcomes(&mut violations);
    check_lists(stage, &mut violations).await;
    violations
}

/// What the tables that triggers write must agree with: what would be wrong, and a query of how
/// much of it.
const LISTS: [(&str, &str); 6] = [
    (
        "open jobs are not listed as they are",
        "SELECT count(*)
        FROM (
            SELECT id, attempt_count, COALESCE(next_retry_at, updated_at) AS due_at,
                CASE WHEN dismissed_at IS NOT NULL THEN 'dismissed' ELSE status END AS state
            FROM signup_customerio_sync_jobs
            WHERE status IN ('pending', 'failed')
        ) AS j
        FULL JOIN open_jobs o ON o.id = j.id
        WHERE (o.state, o.attempt_count, o.due_at)
            IS DISTINCT FROM (j.state, j.attempt_count, j.due_at)",
    ),
    (
        "more or fewer completed jobs are counted",
        "SELECT abs(completed.count - counted.jobs)::int8
        FROM (
            SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'
        ) AS completed,
        (SELECT COALESCE(sum(jobs), 0) AS jobs FROM completed_counts) AS counted",
    ),
    ("jobs are listed as claimed", "SELECT count(*) FROM claimed_jobs"),
    (
        "counts of open jobs differ",
        "SELECT count(*)
        FROM (
            SELECT state, sync_phase, error_type, error_signature, count(*) AS jobs
            FROM open_jobs
            GROUP BY 1, 2, 3, 4
            EXCEPT ALL
            SELECT state, sync_phase, error_type, error_signature, sum(jobs)
            FROM open_counts
            GROUP BY 1, 2, 3, 4
        ) AS differing",
    ),
    (
        "counts of failures differ",
        "SELECT count(*)
        FROM (
            SELECT job_id IS NOT NULL, resolved_at IS NULL, count(*)
            FROM sync_failures
            GROUP BY 1, 2
            EXCEPT ALL
            SELECT has_job, is_open, sum(failures)
            FROM failure_counts
            GROUP BY 1, 2
        ) AS differing",
    ),
    (
        "more or fewer signups are counted",
        "SELECT abs(counted.signups - all_signups.count)
            + abs(counted.synced - all_signups.synced)
        FROM (
            SELECT COALESCE(sum(signups), 0)::int8 AS signups,
                COALESCE(sum(synced), 0)::int8 AS synced
            FROM signup_counts
        ) AS counted,
        (
            SELECT count(*), count(*) FILTER (WHERE customerio_synced) AS synced
            FROM signups
        ) AS all_signups",
    ),
];

async fn check_lists(stage: &Stage, violations: &mut Vec<String>) {
    for (what, sql) in LISTS {
        let count = stage.world.count(sql).await;
        if count != 0 {
            violations.push(format!("{count} {what}"));
        }
    }
}

/// Compares the profiles in the simulator with the model.
pub(crate) async fn find_wrong_profiles(stage: &Stage, load: &Load) -> Vec<String> {
    let completed = "
        SELECT signup_id, sync_phase FROM signup_customerio_sync_jobs WHERE status = 'completed'";
    let completed: Vec<(Uuid, String)> =
        sqlx::query_as(completed).fetch_all(&stage.world.pool).await.expect("the jobs");
    let profiles = stage.world.sim("people").await;
    let mut violations = load.model.violations(&profiles, &HashSet::from_iter(completed));
    let failures = &stage.world.sim("summary").await["attributeUpdateFailures"];
    if *failures != 0 {
        violations.push(format!("{failures} attribute update failures"));
    }
    violations
}

impl Facts {
    async fn gather(stage: &Stage) -> Self {
        let pool = &stage.world.pool;
        let jobs = "
            SELECT id, signup_id, sync_phase, status, max_attempts, run,
                dismissed_at IS NOT NULL AS is_dismissed,
                failed_reason IS NOT DISTINCT FROM 'delivery-limit' AS is_given_up
            FROM signup_customerio_sync_jobs";
        let attempts = "
            SELECT job_id, run, attempt, started_at, duration_ms, error_type, tier
            FROM sync_attempts ORDER BY job_id, run, attempt, id";
        let audit = "
            SELECT action, (details ->> 'jobId')::uuid AS job_id, created_at,
                details ->> 'reason' IS NOT DISTINCT FROM 'delivery-limit' AS is_given_up
            FROM audit_logs WHERE details ? 'jobId' ORDER BY id";
        let failures = "
            SELECT message_id, job_id, reason, original_routing_key, body,
                resolved_at IS NULL AS is_open
            FROM sync_failures";
        let attempts =
            sqlx::query_as::<_, Attempt>(attempts).fetch_all(pool).await.expect("the attempts");
        let audit = sqlx::query_as::<_, Audit>(audit).fetch_all(pool).await.expect("the audit log");
        let call = |call: &Value| Call {
            at: call["at"].as_str().and_then(|at| at.parse().ok()).expect("a time"),
            events: serde_json::from_value(call["events"].clone()).expect("a list of ids"),
        };
        Self {
            jobs: sqlx::query_as(jobs).fetch_all(pool).await.expect("the jobs"),
            attempts: by_job(attempts, |one| one.job_id),
            audit: by_job(audit, |one| one.job_id),
            failures: sqlx::query_as(failures).fetch_all(pool).await.expect("the failures"),
            left: left_messages(stage).await,
            parked: take_all(stage, FAILURE_QUEUE).await,
            outcomes: take_all(stage, OUTCOME_QUEUE).await,
            events: stage.world.events().await,
            calls: stage.world.calls().await.iter().map(call).collect(),
        }
    }

    fn attempts(&self, job: &Job) -> &[Attempt] {
        self.attempts.get(&job.id).map_or(&[], Vec::as_slice)
    }

    fn audit(&self, job: &Job) -> &[Audit] {
        self.audit.get(&job.id).map_or(&[], Vec::as_slice)
    }

    fn audit_count(&self, job: &Job, action: &str) -> usize {
        self.audit(job).iter().filter(|entry| entry.action == action).count()
    }

    /// Every queue is empty, except those that are checked message by message.
    fn check_queues(&self, violations: &mut Vec<String>) {
        let left = self.left.iter().filter(|(_, ids)| !ids.is_empty());
        violations.extend(left.map(|(queue, ids)| {
            let (count, ids) = (ids.len(), &ids[..ids.len().min(10)]);
            format!("{count} messages are left in {queue}, among them {ids:?}")
        }));
    }

    /// Well-formed events that exceeded their delivery limit before they had a job: signup and
    /// phase. They wait for an operator.
    fn given_up_events(&self, load: &Load) -> Vec<(Uuid, String)> {
        if !load.may_exceed_delivery_limit {
            return Vec::new();
        }
        let given_up = self.failures.iter().filter(|failure| {
            failure.job_id.is_none()
                && failure.reason == "delivery-limit"
                && !load.malformed.contains(&failure.body)
        });
        let job = |failure: &Failure| {
            let event: Value = serde_json::from_slice(&failure.body).ok()?;
            let phase = match failure.original_routing_key.as_str() {
                "signup.submitted" => SyncPhase::Initial,
                _ => SyncPhase::Enriched,
            };
            Some((event["signup_id"].as_str()?.parse().ok()?, phase.to_string()))
        };
        given_up.filter_map(job).collect()
    }

    /// Every published signup and phase has a job in an end state, or an event that was given up.
    /// No other job exists.
    fn check_end_states(&self, load: &Load, violations: &mut Vec<String>) {
        let published: BTreeSet<_> =
            load.jobs.iter().map(|(signup, phase)| (*signup, (*phase).to_owned())).collect();
        let existing: BTreeSet<_> =
            self.jobs.iter().map(|job| (job.signup_id, job.sync_phase.clone())).collect();
        let given_up = self.given_up_events(load);
        let lost = published.difference(&existing).filter(|one| !given_up.contains(one));
        violations.extend(lost.map(|one| format!("lost: there is no job for {one:?}")));
        let unknown = existing.difference(&published);
        violations.extend(unknown.map(|one| format!("there is a job for the unpublished {one:?}")));
        let open =
            self.jobs.iter().filter(|job| !["completed", "failed"].contains(&job.status.as_str()));
        violations.extend(open.map(|job| format!("not in an end state: {job:?}")));
    }

    /// Every malformed message is in the mirror exactly once, and no other message without a job,
    /// except events that were given up.
    fn check_unprocessable(&self, load: &Load, violations: &mut Vec<String>) {
        let unprocessable: Vec<_> =
            self.failures.iter().filter(|failure| failure.job_id.is_none()).collect();
        for body in &load.malformed {
            let rows = unprocessable.iter().filter(|failure| failure.body == *body).count();
            if rows != 1 {
                violations.push(format!(
                    "the mirror has {rows} rows for the malformed message {:?}",
                    String::from_utf8_lossy(body)
                ));
            }
        }
        let given_up = self.given_up_events(load).len();
        if unprocessable.len() != load.malformed.len() + given_up {
            violations.push(format!(
                "the mirror has {} messages without a job, {} malformed ones were published, and \
                    {given_up} were given up",
                unprocessable.len(),
                load.malformed.len()
            ));
        }
    }

    /// The event of every completed job was tracked exactly once, and every tracked event has the
    /// id that its job requires.
    fn check_tracked_events(&self, violations: &mut Vec<String>) {
        let mut tracked: HashMap<(String, String), Vec<String>> = HashMap::new();
        for event in &self.events {
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            let signup = event["attributes"]["signup_id"].as_str().unwrap_or_default().to_owned();
            tracked.entry((signup, text("name"))).or_default().push(text("id"));
        }
        for job in &self.jobs {
            let name = tracked_name(&job.sync_phase);
            let ids =
                tracked.remove(&(job.signup_id.to_string(), name.to_owned())).unwrap_or_default();
            if job.status == "completed" && ids.len() != 1 {
                violations
                    .push(format!("{} events were tracked for the completed {job:?}", ids.len()));
            }
            if ids.len() > 1 || ids.iter().any(|id| *id != job.event_id()) {
                violations.push(format!(
                    "tracked with the ids {ids:?} instead of {}: {job:?}",
                    job.event_id()
                ));
            }
        }
        violations.extend(
            tracked.keys().map(|key| format!("a tracked event belongs to no job: {key:?}")),
        );
    }

    /// Every call has the event id of a job, none is made after the end state of its job, and their
    /// number is limited.
    fn check_calls(&self, extra_calls: usize, violations: &mut Vec<String>) {
        let mut calls: HashMap<&str, Vec<DateTime<Utc>>> = HashMap::new();
        for call in &self.calls {
            for id in &call.events {
                calls.entry(id).or_default().push(call.at);
            }
        }
        for job in &self.jobs {
            let calls = calls.remove(job.event_id().as_str()).unwrap_or_default();
            let attempts = self.attempts(job).len();
            if calls.len() > attempts + extra_calls {
                violations.push(format!("{} calls for {attempts} attempts: {job:?}", calls.len()));
            }
            self.check_call_times(job, calls, violations);
        }
        violations.extend(calls.keys().map(|id| format!("a call has an event id of no job: {id}")));
    }

    /// No call arrives later than [`CALL_DELAY_MAX`] after an end state, unless the job was
    /// restarted since.
    fn check_call_times(&self, job: &Job, calls: Vec<DateTime<Utc>>, violations: &mut Vec<String>) {
        let mut ended = None;
        let mut entries = self.audit(job).iter().peekable();
        for at in calls {
            while let Some(entry) = entries.next_if(|entry| entry.created_at < at) {
                ended = match entry.action.as_str() {
                    "customerio_synced" | "customerio_sync_failed" => Some(entry.created_at),
                    "customerio_manual_retry" | "customerio_sync_restarted" => None,
                    _ => ended,
                };
            }
            if let Some(ended) = ended.filter(|ended| at > *ended + CALL_DELAY_MAX) {
                violations.push(format!("a call at {at}, after the end state at {ended}: {job:?}"));
            }
        }
    }

    /// A job is restarted only by operators, and once by each event that is new to it. Each restart
    /// has its audit entry.
    fn check_runs(&self, load: &Load, violations: &mut Vec<String>) {
        for job in &self.jobs {
            let by_events = self.audit_count(job, "customerio_sync_restarted");
            let by_operators = self.audit_count(job, "customerio_manual_retry");
            let restarted = load.restarted.iter();
            let new_events =
                restarted.filter(|(id, phase)| (*id, *phase) == (job.signup_id, &job.sync_phase));
            let new_events = new_events.count();
            if by_events > new_events {
                violations.push(format!(
                    "{by_events} restarts by events, of which {new_events} are new: {job:?}"
                ));
            }
            if usize::try_from(job.run) != Ok(by_events + by_operators) {
                violations.push(format!(
                    "run {} after {by_events} audited restarts by events and {by_operators} by \
                        operators: {job:?}",
                    job.run
                ));
            }
        }
    }

    /// The attempts of a run are numbered from 0 without a gap up to the maximum, none starts
    /// before its tier has passed, and the last one agrees with the job's status.
    fn check_attempts(&self, violations: &mut Vec<String>) {
        for job in &self.jobs {
            let attempts = self.attempts(job);
            for (index, attempt) in attempts.iter().enumerate() {
                let previous = index
                    .checked_sub(1)
                    .map(|previous| &attempts[previous])
                    .filter(|previous| previous.run == attempt.run);
                let number = previous.map_or(0, |previous| previous.attempt + 1);
                if attempt.attempt != number || number > job.max_attempts {
                    violations.push(format!(
                        "attempt {} where {number} was expected: {job:?} {attempts:?}",
                        attempt.attempt
                    ));
                }
                if let Some(previous) = previous {
                    check_retry(job, previous, attempt, violations);
                }
            }
            let last = attempts.last();
            let agrees = match job.status.as_str() {
                "completed" => last.is_some_and(|last| last.error_type.is_none()),
                _ if job.is_given_up => true,
                _ => last.is_none_or(|last| last.error_type.is_some() && last.tier.is_none()),
            };
            if !agrees {
                violations.push(format!(
                    "the last attempt does not agree with the status: {job:?} {last:?}"
                ));
            }
        }
    }

    /// Each end state has its audit entry, and there is no other entry of an end state.
    fn check_audit(&self, violations: &mut Vec<String>) {
        for job in &self.jobs {
            let successes = self.audit_count(job, "customerio_synced");
            if successes != usize::from(job.status == "completed") {
                violations.push(format!("{successes} audit entries of a success: {job:?}"));
            }
            let failed_runs = self
                .attempts(job)
                .iter()
                .filter(|attempt| attempt.error_type.is_some() && attempt.tier.is_none())
                .count();
            let failures = self
                .audit(job)
                .iter()
                .filter(|entry| entry.action == "customerio_sync_failed" && !entry.is_given_up);
            let failures = failures.count();
            if failures != failed_runs {
                violations.push(format!(
                    "{failures} audit entries of a failure for {failed_runs} failed runs: {job:?}"
                ));
            }
        }
    }

    /// The id of the failure of a parked message. A message that RabbitMQ dead-lettered at its
    /// delivery limit still has the id that it had, and no reason.
    fn failure_id(&self, parked: &Received) -> String {
        let given_up = self.failures.iter().find(|failure| {
            parked.header("x-reason").is_none()
                && failure.is_open
                && failure.reason == "delivery-limit"
                && failure.body == parked.body
        });
        given_up.map_or_else(|| parked.message_id(), |failure| failure.message_id.clone())
    }

    /// Failed jobs, open failures in the mirror, and messages in the failure queue are equal as
    /// sets.
    fn check_failures(&self, violations: &mut Vec<String>) {
        let is_failed = |job: &&Job| job.status == "failed" && !job.is_dismissed;
        let jobs: BTreeSet<_> = self.jobs.iter().filter(is_failed).map(|job| job.id).collect();
        let open = || self.failures.iter().filter(|failure| failure.is_open);
        let mirrored: Vec<_> = open().filter_map(|failure| failure.job_id).collect();
        let distinct: BTreeSet<_> = mirrored.iter().copied().collect();
        if distinct.len() != mirrored.len() || distinct != jobs {
            let (only_jobs, only_mirror) = (jobs.difference(&distinct), distinct.difference(&jobs));
            violations.push(format!(
                "jobs and mirror differ: {:?} only failed, {:?} only mirrored, {} mirrored twice",
                only_jobs.collect::<Vec<_>>(),
                only_mirror.collect::<Vec<_>>(),
                mirrored.len() - distinct.len(),
            ));
        }
        let ids: BTreeSet<_> = open().map(|failure| failure.message_id.clone()).collect();
        let parked: BTreeSet<_> = self.parked.iter().map(|one| self.failure_id(one)).collect();
        if parked.len() != self.parked.len() || parked != ids {
            let (only_parked, only_mirror) = (parked.difference(&ids), ids.difference(&parked));
            violations.push(format!(
                "failure queue and mirror differ: {:?} only parked, {:?} only mirrored, {} parked \
                    twice",
                only_parked.collect::<Vec<_>>(),
                only_mirror.collect::<Vec<_>>(),
                self.parked.len() - parked.len(),
            ));
        }
    }

    /// The outcome of each end state was published at least once, and repeats have the same message
    /// id.
    fn check_outcomes(&self, violations: &mut Vec<String>) {
        let mut published: BTreeSet<(String, String)> = BTreeSet::new();
        let mut bodies: HashMap<String, Value> = HashMap::new();
        for outcome in &self.outcomes {
            let body = outcome.json();
            let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
            published.insert((text("jobId"), text("type")));
            let first = bodies.entry(outcome.message_id()).or_insert_with(|| body.clone());
            if first["jobId"] != body["jobId"] || first["type"] != body["type"] {
                violations.push(format!("two outcomes have the same message id: {first} {body}"));
            }
        }
        for job in &self.jobs {
            let suffix = if job.status == "completed" {
                "customerio_synced"
            } else {
                "customerio_sync_failed"
            };
            let id = job.id.to_string();
            if !published.iter().any(|(job_id, kind)| *job_id == id && kind.ends_with(suffix)) {
                violations.push(format!("no outcome was published: {job:?}"));
            }
        }
    }
}

/// Checks that the previous attempt of the run named a tier, and that `attempt` waited for it.
fn check_retry(job: &Job, previous: &Attempt, attempt: &Attempt, violations: &mut Vec<String>) {
    let tier = previous.tier.as_deref().and_then(|tier| humantime::parse_duration(tier).ok());
    let Some(tier) = tier else {
        violations.push(format!("{attempt:?} follows {previous:?}, which has no tier: {job:?}"));
        return;
    };
    let ended =
        previous.started_at + TimeDelta::microseconds((previous.duration_ms * 1000.0) as i64);
    if attempt.started_at < ended + tier {
        violations.push(format!(
            "retried {} after the previous attempt, on the tier {tier:?}: {job:?}",
            attempt.started_at - ended
        ));
    }
}

impl Job {
    fn event_id(&self) -> String {
        let phase: SyncPhase = self.sync_phase.parse().expect("a phase");
        tracked_event_id(self.signup_id, phase).to_string()
    }
}

/// The name of the event that a phase must track.
pub(crate) fn tracked_name(phase: &str) -> &'static str {
    match phase {
        "initial" => "signup_submitted",
        _ => "signup_extraction_confirmed",
    }
}

fn by_job<T>(rows: Vec<T>, job: impl Fn(&T) -> Uuid) -> HashMap<Uuid, Vec<T>> {
    let mut by_job: HashMap<Uuid, Vec<T>> = HashMap::new();
    for row in rows {
        by_job.entry(job(&row)).or_default().push(row);
    }
    by_job
}

/// The names and the lengths of all queues, after the last consumer of each has gone and its
/// unacknowledged messages have been requeued.
async fn depths(stage: &Stage) -> BTreeMap<String, u32> {
    let mut depths = BTreeMap::new();
    for queue in stage.world.management("queues").await.as_array().expect("a list") {
        let name = queue["name"].as_str().expect("a name");
        let what = format!("{name} to have no consumer");
        let depth = wait_for(&what, || async {
            let queue = stage.world.queue(name).await;
            (queue.consumer_count() == 0).then(|| queue.message_count())
        });
        depths.insert(name.to_owned(), depth.await);
    }
    depths
}

/// Whether the replicas, which have ended, left more messages than there are open failures. A
/// replica may publish a copy that another one has published already, and end before it is consumed
/// or swept.
pub(crate) async fn are_copies_left(stage: &Stage) -> bool {
    let open_failures = open_failures(stage).await;
    depths(stage).await.into_iter().any(|(name, depth)| match name.as_str() {
        OUTCOME_QUEUE => false,
        FAILURE_QUEUE => i64::from(depth) != open_failures,
        _ => depth > 0,
    })
}

/// Takes the messages of the queues that should be empty. Returns their ids.
async fn left_messages(stage: &Stage) -> BTreeMap<String, Vec<String>> {
    let id = |message: &Received| format!("{:?}", message.properties.message_id());
    let mut left = BTreeMap::new();
    for name in depths(stage).await.into_keys() {
        if ![FAILURE_QUEUE, OUTCOME_QUEUE].contains(&name.as_str()) {
            let messages = take_all(stage, &name).await;
            left.insert(name, messages.iter().map(id).collect());
        }
    }
    left
}

async fn take_all(stage: &Stage, queue: &str) -> Vec<Received> {
    let channel = stage.world.channel().await;
    let mut taken = Vec::new();
    while let Some(message) =
        channel.basic_get(queue.into(), BasicGetOptions::default()).await.expect("the queue exists")
    {
        message.delivery.acker.ack(BasicAckOptions::default()).await.expect("acknowledged");
        taken.push(Received::new(message.delivery));
    }
    taken
}
