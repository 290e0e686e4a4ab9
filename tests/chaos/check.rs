//! What has to hold when the faults have stopped, read from outside: the tables, the queues, and
//! what the simulator got.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use customerio_sync::job::{SyncPhase, tracked_event_id};
use lapin::options::{BasicAckOptions, BasicGetOptions};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    FAILED, OUTCOMES,
    load::Load,
    stage::Stage,
    support::{Taken, wait_for},
};

/// A call may arrive so much later than it was made: its own time-out, and how long proxy and
/// simulator hold it.
const LATE: TimeDelta = TimeDelta::seconds(5);
/// No round takes longer to come to rest.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, sqlx::FromRow)]
struct Job {
    id: Uuid,
    signup_id: Uuid,
    sync_phase: String,
    status: String,
    max_attempts: i32,
    run: i32,
    is_dismissed: bool,
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
}

#[derive(Debug, sqlx::FromRow)]
struct Failure {
    message_id: String,
    job_id: Option<Uuid>,
    body: Vec<u8>,
    is_open: bool,
}

/// A call to the simulator.
#[derive(Debug)]
struct Call {
    at: DateTime<Utc>,
    events: Vec<String>,
}

/// All that is known when everything has come to rest.
struct Facts {
    jobs: Vec<Job>,
    attempts: HashMap<Uuid, Vec<Attempt>>,
    audit: HashMap<Uuid, Vec<Audit>>,
    failures: Vec<Failure>,
    /// How many messages are in each queue.
    depths: BTreeMap<String, u32>,
    /// The ids of the messages in the failure queue.
    parked: Vec<String>,
    outcomes: Vec<Taken>,
    events: Vec<Value>,
    calls: Vec<Call>,
}

/// Waits until nothing is under way any more. Says what is, if that takes too long, and which jobs
/// went on by the recovery alone, unless a purge may have taken their message (`is_purged`).
pub(crate) async fn wait_for_rest(stage: &Stage, is_purged: bool) -> Vec<String> {
    let (began, mut found) = (Instant::now(), Vec::new());
    loop {
        let (open, queues) = (open_jobs(stage).await, full_queues(stage).await);
        if open == 0 && queues.is_empty() {
            return found;
        }
        if began.elapsed() > PATIENCE {
            found.push(format!(
                "after {PATIENCE:?}, {open} jobs are open, and these queues are not as they \
                    should be: {queues:?}"
            ));
            return found;
        }
        // Who holds a job holds its message, too. Where there is none, the job waits for the
        // recovery.
        let left = if queues.is_empty() { let_claims_age(stage).await } else { Vec::new() };
        if !is_purged {
            found
                .extend(left.iter().map(|job| {
                    format!("nobody has a message for the job {job}, which is claimed")
                }));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Moves the claims of more than twenty seconds into the past, so that the five minutes after which
/// the recovery takes them away need not be waited for; whose claims they are.
async fn let_claims_age(stage: &Stage) -> Vec<Uuid> {
    let age =
        "UPDATE signup_customerio_sync_jobs SET claimed_at = claimed_at - interval '5 minutes'
        WHERE status = 'processing' AND claimed_at < now() - interval '20 seconds'
            AND claimed_at > now() - interval '5 minutes'
        RETURNING id";
    sqlx::query_scalar(age).fetch_all(&stage.world.pool).await.expect("PostgreSQL answers")
}

async fn open_jobs(stage: &Stage) -> i64 {
    stage
        .world
        .count(
            "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status IN ('pending', \
            'processing')",
        )
        .await
}

/// Queues that hold something, ready or not; the failure queue if it holds more or less than the
/// open failures.
async fn full_queues(stage: &Stage) -> BTreeMap<String, i64> {
    let open =
        stage.world.count("SELECT count(*) FROM sync_failures WHERE resolved_at IS NULL").await;
    let queues = stage.world.management("queues").await;
    let mut full = BTreeMap::new();
    for queue in queues.as_array().expect("a list") {
        let name = queue["name"].as_str().expect("a name");
        let wanted = if name == FAILED { open } else { 0 };
        let ready = i64::from(stage.world.depth(name).await);
        // The management API lags behind, but sees what is not acknowledged. A node that was split
        // off may tell it nothing for minutes; what is left in the queues is counted once more when
        // the replicas have ended.
        let all = queue["messages"].as_i64().unwrap_or(ready);
        if name != OUTCOMES && (ready != wanted || all != wanted) {
            full.insert(name.to_owned(), ready.max(all));
        }
    }
    full
}

/// Everything that does not hold.
pub(crate) async fn violations(stage: &Stage, load: &Load, interruptions: usize) -> Vec<String> {
    let facts = Facts::gather(stage).await;
    let mut found = Vec::new();
    facts.check_queues(&mut found);
    facts.check_end_states(load, &mut found);
    facts.check_tracked_events(&mut found);
    facts.check_calls(interruptions, &mut found);
    facts.check_runs(load, &mut found);
    facts.check_attempts(&mut found);
    facts.check_audit(&mut found);
    facts.check_failures(&mut found);
    facts.check_outcomes(&mut found);
    found
}

impl Facts {
    async fn gather(stage: &Stage) -> Self {
        let pool = &stage.world.pool;
        let jobs =
            "SELECT id, signup_id, sync_phase, status, max_attempts, run, dismissed_at IS NOT \
                NULL AS is_dismissed
            FROM signup_customerio_sync_jobs";
        let attempts = "SELECT job_id, run, attempt, started_at, duration_ms, error_type, tier
            FROM sync_attempts ORDER BY job_id, run, attempt, id";
        let audit = "SELECT action, (details ->> 'jobId')::uuid AS job_id, created_at
            FROM audit_logs WHERE details ? 'jobId' ORDER BY id";
        let failures =
            "SELECT message_id, job_id, body, resolved_at IS NULL AS is_open FROM sync_failures";
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
            depths: depths(stage).await,
            parked: take_all(stage, FAILED).await.iter().map(Taken::message_id).collect(),
            outcomes: take_all(stage, OUTCOMES).await,
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

    /// No queue holds anything, but for those that are checked message by message.
    fn check_queues(&self, found: &mut Vec<String>) {
        let left = self
            .depths
            .iter()
            .filter(|(name, depth)| **depth > 0 && ![FAILED, OUTCOMES].contains(&name.as_str()));
        found.extend(left.map(|(name, depth)| format!("{depth} messages are left in {name}")));
    }

    /// Every confirmed publish is in exactly one end state.
    fn check_end_states(&self, load: &Load, found: &mut Vec<String>) {
        let published: BTreeSet<_> =
            load.jobs.iter().map(|(signup, phase)| (*signup, (*phase).to_owned())).collect();
        let made: BTreeSet<_> =
            self.jobs.iter().map(|job| (job.signup_id, job.sync_phase.clone())).collect();
        found.extend(
            published.difference(&made).map(|one| format!("lost: no job was made for {one:?}")),
        );
        found.extend(made.difference(&published).map(|one| format!("nobody published {one:?}")));
        let open =
            self.jobs.iter().filter(|job| !["completed", "failed"].contains(&job.status.as_str()));
        found.extend(open.map(|job| format!("not ended: {job:?}")));
        for body in &load.malformed {
            let rows = self
                .failures
                .iter()
                .filter(|failure| failure.job_id.is_none() && failure.body == *body)
                .count();
            if rows != 1 {
                found.push(format!(
                    "{rows} rows in the mirror for {:?}",
                    String::from_utf8_lossy(body)
                ));
            }
        }
        let unprocessable = self.failures.iter().filter(|failure| failure.job_id.is_none()).count();
        if unprocessable != load.malformed.len() {
            found.push(format!(
                "{unprocessable} messages were not understood, of {} that can't be",
                load.malformed.len()
            ));
        }
    }

    /// Every completed job's event was tracked exactly once, with the id that it has to have.
    fn check_tracked_events(&self, found: &mut Vec<String>) {
        let mut tracked: HashMap<(String, String), Vec<String>> = HashMap::new();
        for event in &self.events {
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            let signup = event["attributes"]["signup_id"].as_str().unwrap_or_default().to_owned();
            tracked.entry((signup, text("name"))).or_default().push(text("id"));
        }
        for job in &self.jobs {
            let name = if job.sync_phase == "initial" {
                "signup_submitted"
            } else {
                "signup_extraction_confirmed"
            };
            let ids =
                tracked.remove(&(job.signup_id.to_string(), name.to_owned())).unwrap_or_default();
            if job.status == "completed" && ids.len() != 1 {
                found.push(format!("{} events were tracked for the completed {job:?}", ids.len()));
            }
            if ids.len() > 1 || ids.iter().any(|id| *id != job.event_id()) {
                found.push(format!(
                    "tracked with the ids {ids:?} in place of {}: {job:?}",
                    job.event_id()
                ));
            }
        }
        found.extend(
            tracked
                .keys()
                .map(|key| format!("an event was tracked of which nobody has a job: {key:?}")),
        );
    }

    /// The id is the same on every call; none is made after an end state; there are no more than
    /// there may be.
    fn check_calls(&self, interruptions: usize, found: &mut Vec<String>) {
        let mut calls: HashMap<&str, Vec<DateTime<Utc>>> = HashMap::new();
        for call in &self.calls {
            for id in &call.events {
                calls.entry(id).or_default().push(call.at);
            }
        }
        for job in &self.jobs {
            let calls = calls.remove(job.event_id().as_str()).unwrap_or_default();
            let most = self.attempts(job).len() + interruptions;
            if calls.len() > most {
                found.push(format!(
                    "{} calls for {} attempts: {job:?}",
                    calls.len(),
                    self.attempts(job).len()
                ));
            }
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
                if let Some(ended) = ended.filter(|ended| at > *ended + LATE) {
                    found.push(format!("called at {at} although it had ended at {ended}: {job:?}"));
                }
            }
        }
        found.extend(
            calls.keys().map(|id| format!("a call with an event id that no job has: {id}")),
        );
    }

    /// A job is started afresh by operators, and once by each event that is new to it; a repeat
    /// starts nothing.
    fn check_runs(&self, load: &Load, found: &mut Vec<String>) {
        for job in &self.jobs {
            let count = |action: &str| {
                self.audit(job).iter().filter(|entry| entry.action == action).count()
            };
            let (by_events, by_hand) =
                (count("customerio_sync_restarted"), count("customerio_manual_retry"));
            let most =
                usize::from(job.sync_phase == "initial" && load.restarted.contains(&job.signup_id));
            if by_events > most {
                found.push(format!(
                    "{by_events} restarts by events, of {most} that are new to it: {job:?}"
                ));
            }
            if usize::try_from(job.run) != Ok(by_events + by_hand) {
                found.push(format!(
                    "{by_events} and {by_hand} restarts are in the audit log: {job:?}"
                ));
            }
        }
    }

    /// Attempts of a run are counted from 0 without a gap, no more than may be, none earlier than
    /// its tier.
    fn check_attempts(&self, found: &mut Vec<String>) {
        for job in &self.jobs {
            let attempts = self.attempts(job);
            for (index, attempt) in attempts.iter().enumerate() {
                let before = index
                    .checked_sub(1)
                    .map(|before| &attempts[before])
                    .filter(|one| one.run == attempt.run);
                let number = before.map_or(0, |before| before.attempt + 1);
                if attempt.attempt != number || number > job.max_attempts {
                    found.push(format!(
                        "attempt {} where {number} was to come: {job:?} {attempts:?}",
                        attempt.attempt
                    ));
                }
                let Some(before) = before else { continue };
                let Some(tier) =
                    before.tier.as_deref().and_then(|tier| humantime::parse_duration(tier).ok())
                else {
                    found.push(format!(
                        "an attempt after one that was the last: {job:?} {attempts:?}"
                    ));
                    continue;
                };
                let ended = before.started_at
                    + TimeDelta::microseconds((before.duration_ms * 1000.0) as i64);
                if attempt.started_at < ended + tier {
                    found.push(format!(
                        "tried again {} after, on the tier {tier:?}: {job:?}",
                        attempt.started_at - ended
                    ));
                }
            }
            let last = attempts.last();
            let is_right = match job.status.as_str() {
                "completed" => last.is_some_and(|last| last.error_type.is_none()),
                _ => last.is_none_or(|last| last.error_type.is_some() && last.tier.is_none()),
            };
            if !is_right {
                found
                    .push(format!("the last attempt does not tell how it ended: {job:?} {last:?}"));
            }
        }
    }

    /// Each end state has its entry, and no other.
    fn check_audit(&self, found: &mut Vec<String>) {
        for job in &self.jobs {
            let count = |action: &str| {
                self.audit(job).iter().filter(|entry| entry.action == action).count()
            };
            let synced = usize::from(job.status == "completed");
            if count("customerio_synced") != synced {
                found.push(format!("{} entries of success: {job:?}", count("customerio_synced")));
            }
            let failed = self
                .attempts(job)
                .iter()
                .filter(|one| one.error_type.is_some() && one.tier.is_none())
                .count();
            if count("customerio_sync_failed") != failed {
                let told = count("customerio_sync_failed");
                found.push(format!(
                    "{told} entries of failure, {failed} attempts that were the last: {job:?}"
                ));
            }
        }
    }

    /// Failure queue, mirror and jobs agree as sets.
    fn check_failures(&self, found: &mut Vec<String>) {
        let failed = |job: &&Job| job.status == "failed" && !job.is_dismissed;
        let jobs: BTreeSet<_> = self.jobs.iter().filter(failed).map(|job| job.id).collect();
        let open = || self.failures.iter().filter(|failure| failure.is_open);
        let mirrored: Vec<_> = open().filter_map(|failure| failure.job_id).collect();
        let distinct: BTreeSet<_> = mirrored.iter().copied().collect();
        if distinct.len() != mirrored.len() || distinct != jobs {
            let (only_jobs, only_mirror) = (jobs.difference(&distinct), distinct.difference(&jobs));
            found.push(format!(
                "jobs and mirror differ: {:?} failed only, {:?} mirrored only, {} mirrored twice",
                only_jobs.collect::<Vec<_>>(),
                only_mirror.collect::<Vec<_>>(),
                mirrored.len() - distinct.len(),
            ));
        }
        let ids: BTreeSet<_> = open().map(|failure| failure.message_id.clone()).collect();
        let parked: BTreeSet<_> = self.parked.iter().cloned().collect();
        if parked.len() != self.parked.len() || parked != ids {
            let (only_parked, only_mirror) = (parked.difference(&ids), ids.difference(&parked));
            found.push(format!(
                "failure queue and mirror differ: {:?} parked only, {:?} mirrored only, {} parked \
                    twice",
                only_parked.collect::<Vec<_>>(),
                only_mirror.collect::<Vec<_>>(),
                self.parked.len() - parked.len(),
            ));
        }
    }

    /// Each end state was told at least once, and repeats have the same id.
    fn check_outcomes(&self, found: &mut Vec<String>) {
        let mut told: BTreeSet<(String, String)> = BTreeSet::new();
        let mut bodies: HashMap<String, Value> = HashMap::new();
        for outcome in &self.outcomes {
            let body = outcome.json();
            let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
            told.insert((text("jobId"), text("type")));
            let first = bodies.entry(outcome.message_id()).or_insert_with(|| body.clone());
            if first["jobId"] != body["jobId"] || first["type"] != body["type"] {
                found.push(format!("one id for two outcomes: {first} {body}"));
            }
        }
        for job in &self.jobs {
            let kind = if job.status == "completed" {
                "customerio_synced"
            } else {
                "customerio_sync_failed"
            };
            if !told.iter().any(|(id, told)| *id == job.id.to_string() && told.ends_with(kind)) {
                found.push(format!("nobody was told: {job:?}"));
            }
        }
    }
}

impl Job {
    fn event_id(&self) -> String {
        let phase: SyncPhase = self.sync_phase.parse().expect("a phase");
        tracked_event_id(self.signup_id, phase).to_string()
    }
}

fn by_job<T>(rows: Vec<T>, job: impl Fn(&T) -> Uuid) -> HashMap<Uuid, Vec<T>> {
    let mut by_job: HashMap<Uuid, Vec<T>> = HashMap::new();
    for row in rows {
        by_job.entry(job(&row)).or_default().push(row);
    }
    by_job
}

/// How many messages are in each queue once nobody holds any.
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

async fn take_all(stage: &Stage, queue: &str) -> Vec<Taken> {
    let channel = stage.world.channel().await;
    let mut taken = Vec::new();
    while let Some(message) = channel
        .basic_get(queue.into(), BasicGetOptions::default())
        .await
        .expect("the queue is there")
    {
        message.delivery.acker.ack(BasicAckOptions::default()).await.expect("acknowledged");
        taken.push(Taken::new(message.delivery));
    }
    taken
}
