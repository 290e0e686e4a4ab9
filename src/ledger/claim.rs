//! Claims the jobs of a batch of messages: signups, jobs and claims, in one transaction and a fixed
//! number of statements.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde_json::json;
use sqlx::types::Json;
use uuid::Uuid;

use super::{
    Error, Ledger,
    arrival::{Arrival, Disposition},
    audit::{self, AuditAction, AuditEntry},
    failures::FailureResolution,
    pool::Session,
    restart,
    row::{JobRow, SignupRow, StoredTimes},
    working_set::{JobChange, JobState, SignupChange, SignupState, WorkingSet},
};
use crate::{
    event::{BetSlip, Customer, Number},
    job::{ClaimedJob, ErrorType, Job, JobReport, Signup, Status, SyncPhase},
};

/// The claims of a batch of messages.
#[derive(Debug)]
pub struct ClaimedBatch {
    /// The fence: settling the claimed jobs requires it.
    pub claim: Uuid,
    /// The database confirmed the claims after this moment.
    pub confirmed_at: Instant,
    /// One outcome per message, in the order of the messages.
    pub outcomes: Vec<ClaimOutcome>,
}

/// The outcome of claiming the job of one message.
#[derive(Debug, Clone, PartialEq)]
pub enum ClaimOutcome {
    /// The job is claimed: call, then settle.
    Claimed(Box<ClaimedJob>),
    /// This message was settled before. The messages that must follow have to be published again.
    Settled(Box<JobReport>),
    /// Another message completed the job. Nothing to do.
    AlreadyCompleted,
    /// Another message has advanced the job. Nothing to do.
    Superseded,
    /// The job is not due yet.
    NotDue {
        /// The job.
        job: Box<Job>,
        /// Time until it is due.
        wait: Duration,
    },
    /// Another message owns the job.
    InFlight {
        /// The job.
        job: Box<Job>,
    },
    /// There is no such job.
    Unknown,
}

impl Ledger {
    /// Claims the jobs of a batch of messages with `claim`.
    ///
    /// Several messages of the batch may be for the same signup only if they are events of one
    /// phase: a batch has at most one job per signup, so that locks are acquired in order. A commit
    /// whose confirmation is lost may have happened: if the call is repeated with the same `claim`,
    /// it finds the jobs claimed by it.
    #[expect(
        clippy::disallowed_methods,
        reason = "an edge: the lease starts before the claim is written"
    )]
    pub async fn claim(
        &self,
        claim: Uuid,
        messages: &[impl Borrow<Arrival>],
    ) -> Result<ClaimedBatch, Error> {
        let arrivals: Vec<_> = messages.iter().map(Borrow::borrow).collect();
        loop {
            let confirmed_at = Instant::now();
            if let Some(outcomes) = self.try_claim(claim, &arrivals).await? {
                return Ok(ClaimedBatch { claim, confirmed_at, outcomes });
            }
        }
    }

    /// Returns `None` if another transaction has inserted one of the new signups meanwhile. It is
    /// there now, so another call finds it.
    async fn try_claim(
        &self,
        claim: Uuid,
        arrivals: &[&Arrival],
    ) -> Result<Option<Vec<ClaimOutcome>>, Error> {
        let mut transaction =
            self.pool.begin_by_key().await.map_err(Error::doing("beginning to claim jobs"))?;
        let mut working_set = self.lock(&mut transaction, claim, arrivals).await?;
        let mut answers = Vec::with_capacity(arrivals.len());
        for (index, arrival) in arrivals.iter().enumerate() {
            let disposition = working_set.admit(index, arrival);
            // Later messages may change the job, so the others are answered from its present state.
            answers.push(answer(working_set.row(arrival), disposition));
        }
        if !insert_signups(&mut transaction, &working_set).await? {
            transaction.rollback().await.map_err(Error::doing("beginning to claim jobs again"))?;
            return Ok(None);
        }
        update_signups(&mut transaction, &working_set).await?;
        insert_jobs(&mut transaction, &working_set).await?;
        claim_jobs(&mut transaction, &working_set).await?;
        list_claims(&mut transaction, &working_set).await?;
        record_restarts(&mut transaction, &working_set).await?;
        remember_events(&mut transaction, &working_set).await?;
        transaction.commit().await.map_err(Error::doing("committing claimed jobs"))?;
        let outcomes = arrivals.iter().copied().zip(answers).enumerate();
        let outcome = |(index, (arrival, answer)): (usize, (_, Option<ClaimOutcome>))| {
            answer.unwrap_or_else(|| claimed(&working_set, index, arrival))
        };
        Ok(Some(outcomes.map(outcome).collect()))
    }

    /// Locks and reads the signups and the jobs that the messages are for.
    async fn lock<'a>(
        &self,
        connection: &mut Session,
        claim: Uuid,
        arrivals: &[&'a Arrival],
    ) -> Result<WorkingSet<'a>, Error> {
        let ids: Vec<_> = arrivals.iter().map(|one| one.signup_id()).collect();
        let rows = sqlx::query_file_as!(SignupRow, "src/ledger/lock_signups.sql", &ids)
            .fetch_all(&mut *connection)
            .await
            .map_err(Error::doing("reading signups"))?;
        let Some(now) = rows.first().map(|row| row.now) else {
            return Err(Error::doing("reading the time")(sqlx::Error::RowNotFound));
        };
        let state = |row: SignupRow| {
            let id = row.id?;
            Some((id, SignupState { signup: row.signup(), change: SignupChange::Unchanged }))
        };
        let signups: BTreeMap<_, _> = rows.into_iter().filter_map(state).collect();
        let jobs = if signups.is_empty() {
            BTreeMap::new()
        } else {
            self.lock_jobs(connection, arrivals, &signups).await?
        };
        let (max_attempts, earlier_events) = (self.max_attempts, Vec::new());
        Ok(WorkingSet { claim, now, max_attempts, signups, jobs, earlier_events })
    }

    async fn lock_jobs<'a>(
        &self,
        connection: &mut Session,
        arrivals: &[&Arrival],
        signups: &BTreeMap<Uuid, SignupState>,
    ) -> Result<BTreeMap<(Uuid, SyncPhase), JobState<'a>>, Error> {
        let wanted: BTreeSet<_> =
            arrivals.iter().map(|one| (one.signup_id(), one.phase().as_str())).collect();
        let rows = sqlx::query_file_as!(
            JobRow,
            "src/ledger/lock_jobs.sql",
            &column!(wanted, one => one.0) as _,
            &column!(wanted, one => one.1) as _,
            self.claim_lease.as_secs_f64(),
        )
        .fetch_all(connection)
        .await
        .map_err(Error::doing("reading jobs"))?;
        // A signup that was inserted after the signups were read is inserted by this transaction as
        // well, which fails ([`insert_signups`]).
        let rows = rows.into_iter().filter(|row| signups.contains_key(&row.signup_id));
        let state = |row: JobRow| ((row.signup_id, row.sync_phase), JobState::read(row));
        Ok(rows.map(state).collect())
    }
}

/// Executes a statement with the columns of signups as its arguments.
macro_rules! with_signups {
    ($query:ident, $file:literal, $signups:expr) => {{
        let signups: Vec<(Uuid, &Signup)> = $signups;
        let customer = |field: fn(&Customer) -> &Option<String>| -> Vec<Option<&str>> {
            signups.iter().map(|(_, one)| field(&one.customer).as_deref()).collect()
        };
        let slips: Vec<_> = signups.iter().map(|(_, one)| one.bet_slip.as_ref()).collect();
        sqlx::$query!(
            $file,
            &column!(signups, one => one.0) as _,
            &column!(signups, one => one.1.operator_id.as_deref()) as _,
            &column!(signups, one => one.1.operator_name.as_deref()) as _,
            &customer(|customer| &customer.id) as _,
            &customer(|customer| &customer.email) as _,
            &customer(|customer| &customer.first_name) as _,
            &customer(|customer| &customer.last_name) as _,
            &customer(|customer| &customer.phone) as _,
            &customer(|customer| &customer.state) as _,
            &column!(signups, one => Json(&one.1.attributes)) as _,
            &column!(signups, one => one.1.stated.customer) as _,
            &column!(signups, one => one.1.stated.submission) as _,
            &column!(signups, one => one.1.extraction_id.as_deref()) as _,
            &column!(slips, one => one.map(|slip| slip.bet_amount.as_f64())) as _,
            &column!(slips, one => one.map(|slip| slip.team_bet_on.as_str())) as _,
            &column!(slips, one => one.map(|slip| Json(&slip.odds))) as _,
            &column!(slips, one => one.map(|slip| slip.confidence.as_f64())) as _,
            &column!(signups, one => one.1.stated.confirmation) as _,
            &column!(signups, one => StoredTimes::of(&one.1.stated).map(Json)) as _,
            &column!(slips, one => one.and_then(exact_numbers)) as _,
        )
    }};
}

/// Inserts the new signups. Returns false if another transaction has inserted one meanwhile.
async fn insert_signups(
    connection: &mut Session,
    working_set: &WorkingSet<'_>,
) -> Result<bool, Error> {
    let new = signups_to_write(working_set, SignupChange::New);
    let count = new.len();
    if count == 0 {
        return Ok(true);
    }
    let inserted = with_signups!(query_file, "src/ledger/insert_signups.sql", new)
        .execute(connection)
        .await
        .map_err(Error::doing("inserting signups"))?;
    Ok(inserted.rows_affected() == count as u64)
}

/// Updates the signups to which events added data.
async fn update_signups(
    connection: &mut Session,
    working_set: &WorkingSet<'_>,
) -> Result<(), Error> {
    let changed = signups_to_write(working_set, SignupChange::Changed);
    if changed.is_empty() {
        return Ok(());
    }
    with_signups!(query_file, "src/ledger/update_signups.sql", changed)
        .execute(connection)
        .await
        .map_err(Error::doing("updating signups"))?;
    Ok(())
}

/// The signups with this change, in the lock order (locks.rs).
fn signups_to_write<'a>(
    working_set: &'a WorkingSet<'_>,
    change: SignupChange,
) -> Vec<(Uuid, &'a Signup)> {
    let all = working_set.signups.iter();
    all.filter(|(_, state)| state.change == change)
        .map(|(id, state)| (*id, &state.signup))
        .collect()
}

/// The numbers of a bet slip that their columns round.
fn exact_numbers(slip: &BetSlip) -> Option<Json<BTreeMap<&'static str, &Number>>> {
    let numbers = [("bet_amount", &slip.bet_amount), ("confidence", &slip.confidence)];
    let exact: BTreeMap<_, _> =
        numbers.into_iter().filter(|(_, number)| number.is_rounded()).collect();
    (!exact.is_empty()).then_some(Json(exact))
}

/// Inserts the new jobs, already claimed. No other transaction can insert them: each owns the lock
/// on the signup, or has inserted it.
async fn insert_jobs(connection: &mut Session, working_set: &WorkingSet<'_>) -> Result<(), Error> {
    let claims = claims(working_set, |change| change == JobChange::Created);
    if claims.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        WITH created AS (
            INSERT INTO signup_customerio_sync_jobs (
                id, signup_id, sync_phase, status, max_attempts, event_id, occurred_at, traceparent,
                stated_at, tracestate, claim, claimed_at, claimed_by
            )
            SELECT id, signup_id, sync_phase, 'processing', $10, event_id, occurred_at, traceparent,
                stated_at, tracestate, $9, now(), claimed_by
            FROM (
                SELECT UNNEST($1::uuid[]) AS id, UNNEST($2::uuid[]) AS signup_id,
                    UNNEST($3::text[]) AS sync_phase, UNNEST($4::text[]) AS event_id,
                    UNNEST($5::timestamptz[]) AS occurred_at,
                    UNNEST($6::timestamptz[]) AS stated_at, UNNEST($7::text[]) AS traceparent,
                    UNNEST($8::text[]) AS tracestate, UNNEST($11::text[]) AS claimed_by
            ) AS e
            ORDER BY signup_id
            RETURNING id
        )
        -- The integrity check compares the jobs with this count (integrity.rs).
        INSERT INTO taken_in (jobs)
        SELECT count(*)
        FROM created
        "#,
        &column!(claims, c => c.row.id) as _,
        &column!(claims, c => c.row.signup_id) as _,
        &column!(claims, c => c.row.sync_phase.as_str()) as _,
        &column!(claims, c => c.row.event_id.as_str()) as _,
        &column!(claims, c => c.row.occurred_at) as _,
        &column!(claims, c => c.row.stated_at) as _,
        &column!(claims, c => c.row.traceparent.as_deref()) as _,
        &column!(claims, c => c.row.tracestate.as_deref()) as _,
        working_set.claim,
        working_set.max_attempts,
        &column!(claims, c => c.claimed_by()) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("creating jobs"))?;
    Ok(())
}

/// A job that the batch claims, and the message that claims it.
struct JobClaim<'a> {
    row: &'a JobRow,
    arrival: &'a Arrival,
}

impl JobClaim<'_> {
    fn claimed_by(&self) -> String {
        self.arrival.claimant(self.row.run).to_string()
    }
}

fn claims<'a>(
    working_set: &'a WorkingSet<'_>,
    is_wanted: impl Fn(JobChange) -> bool,
) -> Vec<JobClaim<'a>> {
    let claim = |job: &'a JobState<'_>| {
        let (_, arrival) = job.claimant?;
        Some(JobClaim { row: &job.row, arrival })
    };
    working_set.jobs.values().filter(|job| is_wanted(job.change)).filter_map(claim).collect()
}

/// Claims existing jobs, in a new run if a new event restarts them.
async fn claim_jobs(connection: &mut Session, working_set: &WorkingSet<'_>) -> Result<(), Error> {
    let claims = claims(working_set, |change| {
        matches!(change, JobChange::Claimed | JobChange::RestartedFrom(_))
    });
    if claims.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        UPDATE signup_customerio_sync_jobs j
        SET status = 'processing', claim = $1, claimed_at = now(), claimed_by = c.claimed_by,
            run = c.run, attempt_count = c.attempt_count, max_attempts = c.max_attempts,
            manual_retry = c.manual_retry,
            event_id = c.event_id,
            earlier_events = CASE
                WHEN c.event_id = j.event_id THEN j.earlier_events
                ELSE (j.event_id || j.earlier_events)[:50]
            END,
            occurred_at = c.occurred_at, stated_at = c.stated_at, traceparent = c.traceparent,
            tracestate = c.tracestate,
            first_failed_at = c.first_failed_at, error_type = c.error_type,
            contact_id = c.contact_id,
            error_message = c.error_message,
            error_signature = CASE WHEN c.error_message IS NOT NULL THEN j.error_signature END,
            next_retry_at = NULL, failed_at = NULL, failed_reason = NULL, dismissed_at = NULL,
            dismissed_reason = NULL, updated_at = now()
        FROM (
            SELECT UNNEST($2::uuid[]) AS id, UNNEST($3::text[]) AS claimed_by,
                UNNEST($4::int4[]) AS run, UNNEST($5::int4[]) AS attempt_count,
                UNNEST($6::bool[]) AS manual_retry, UNNEST($7::text[]) AS event_id,
                UNNEST($8::timestamptz[]) AS occurred_at, UNNEST($9::text[]) AS traceparent,
                UNNEST($10::text[]) AS tracestate, UNNEST($11::timestamptz[]) AS first_failed_at,
                UNNEST($12::text[]) AS error_type, UNNEST($13::text[]) AS error_message,
                UNNEST($14::timestamptz[]) AS stated_at, UNNEST($15::text[]) AS contact_id,
                UNNEST($16::int4[]) AS max_attempts
        ) AS c
        WHERE j.id = c.id
        "#,
        working_set.claim,
        &column!(claims, c => c.row.id) as _,
        &column!(claims, c => c.claimed_by()) as _,
        &column!(claims, c => c.row.run) as _,
        &column!(claims, c => c.row.attempt_count) as _,
        &column!(claims, c => c.row.manual_retry) as _,
        &column!(claims, c => c.row.event_id.as_str()) as _,
        &column!(claims, c => c.row.occurred_at) as _,
        &column!(claims, c => c.row.traceparent.as_deref()) as _,
        &column!(claims, c => c.row.tracestate.as_deref()) as _,
        &column!(claims, c => c.row.first_failed_at) as _,
        &column!(claims, c => c.row.error_type.map(ErrorType::as_str)) as _,
        &column!(claims, c => c.row.error_message.as_deref()) as _,
        &column!(claims, c => c.row.stated_at) as _,
        &column!(claims, c => c.row.contact_id.as_deref()) as _,
        &column!(claims, c => c.row.max_attempts) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("claiming jobs"))?;
    Ok(())
}

/// Lists the claimed jobs, so that they are found if this process ends.
async fn list_claims(connection: &mut Session, working_set: &WorkingSet<'_>) -> Result<(), Error> {
    let claims = claims(working_set, |change| change != JobChange::Unchanged);
    if claims.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        INSERT INTO claims AS c (claim, jobs)
        VALUES ($1, $2)
        ON CONFLICT (claim) DO UPDATE SET jobs = c.jobs || EXCLUDED.jobs
        "#,
        working_set.claim,
        &column!(claims, c => c.row.id) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("listing claimed jobs"))?;
    Ok(())
}

/// Records the events that wrote data without being the newest of their job, so that a repeat of
/// one writes nothing.
async fn remember_events(
    connection: &mut Session,
    working_set: &WorkingSet<'_>,
) -> Result<(), Error> {
    let events = &working_set.earlier_events;
    if events.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        UPDATE signup_customerio_sync_jobs j
        SET earlier_events = (e.ids || j.earlier_events)[:50]
        FROM (
            SELECT id, array_agg(event_id ORDER BY number DESC) AS ids
            FROM UNNEST($1::uuid[], $2::text[]) WITH ORDINALITY AS e (id, event_id, number)
            GROUP BY id
        ) AS e
        WHERE j.id = e.id
        "#,
        &column!(events, one => one.0) as _,
        &column!(events, one => one.1.as_str()) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("recording earlier events"))?;
    Ok(())
}

/// Records in the audit log the jobs that new events restarted, and resolves the failures of those
/// that had failed.
async fn record_restarts(
    connection: &mut Session,
    working_set: &WorkingSet<'_>,
) -> Result<(), Error> {
    let restarts: Vec<_> = working_set
        .jobs
        .values()
        .filter_map(|job| match job.change {
            JobChange::RestartedFrom(status) => Some((&job.row, status)),
            _ => None,
        })
        .collect();
    let failed: Vec<_> = restarts
        .iter()
        .filter(|(_, status)| *status == Status::Failed)
        .map(|(row, _)| (row.id, row.signup_id))
        .collect();
    restart::resolve_failures(connection, &failed, FailureResolution::Superseded).await?;
    let entry = |(row, status): &(&JobRow, Status)| AuditEntry {
        action: AuditAction::SyncRestarted,
        signup_id: Some(row.signup_id),
        details: json!({
            "jobId": row.id,
            "syncPhase": row.sync_phase,
            "run": row.run,
            "statusBefore": status,
        }),
    };
    audit::insert(connection, audit::SERVICE, &restarts.iter().map(entry).collect::<Vec<_>>()).await
}

/// The outcome of a message that claims no job. `None` for one that does.
fn answer(row: Option<&JobRow>, disposition: Disposition) -> Option<ClaimOutcome> {
    let Some(row) = row else { return Some(ClaimOutcome::Unknown) };
    Some(match disposition {
        Disposition::Claim | Disposition::Restart => return None,
        Disposition::Settled => ClaimOutcome::Settled(Box::new(row.report())),
        Disposition::AlreadyCompleted => ClaimOutcome::AlreadyCompleted,
        Disposition::Superseded => ClaimOutcome::Superseded,
        Disposition::NotDue(wait) => ClaimOutcome::NotDue { job: Box::new(row.job()), wait },
        Disposition::InFlight => ClaimOutcome::InFlight { job: Box::new(row.job()) },
        Disposition::Unknown => ClaimOutcome::Unknown,
    })
}

/// The outcome of a message that claimed a job, unless a later one of the batch took it over.
fn claimed(working_set: &WorkingSet<'_>, index: usize, arrival: &Arrival) -> ClaimOutcome {
    let is_claimed = working_set.is_claimed_by(index, arrival);
    let job = is_claimed.then(|| working_set.claimed_job(arrival)).flatten();
    job.map_or(ClaimOutcome::Superseded, |job| ClaimOutcome::Claimed(Box::new(job)))
}
