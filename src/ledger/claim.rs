//! Claims the jobs of a batch of messages: signups, jobs and claims, in one transaction and a fixed
//! number of statements.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Error, Ledger,
    arrival::{Arrival, Disposition, Source, disposition},
    audit::{self, AuditAction, AuditEntry},
    failures::FailureResolution,
    restart,
    row::JobRow,
};
use crate::{
    event::{BetSlip, Customer, Event, EventDetails},
    job::{ClaimedJob, ErrorType, Job, JobReport, Status, job_id},
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
    /// No two messages of the batch may be for the same signup, so that the locks are acquired in
    /// order. A commit whose confirmation is lost may have happened: if the call is repeated with
    /// the same `claim`, it finds the jobs claimed by it.
    #[expect(
        clippy::disallowed_methods,
        reason = "an edge: the lease starts before the claim is written"
    )]
    pub async fn claim(&self, claim: Uuid, arrivals: &[Arrival]) -> Result<ClaimedBatch, Error> {
        let confirmed_at = Instant::now();
        let events: Vec<_> = arrivals.iter().filter_map(NewEvent::of).collect();
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning to claim jobs"))?;
        if !events.is_empty() {
            upsert_signups(&mut transaction, &events).await?;
            insert_jobs(&mut transaction, &events, claim, self.max_attempts).await?;
        }
        let mut rows = self.lock_jobs(&mut transaction, arrivals).await?;
        let decide = |(arrival, row): (&Arrival, &Option<JobRow>)| match row {
            None => Disposition::Unknown,
            Some(row) if row.claim == Some(claim) => Disposition::Claim,
            Some(row) => disposition(arrival, &row.snapshot()),
        };
        let dispositions: Vec<_> = arrivals.iter().zip(&rows).map(decide).collect();
        let claims: Vec<_> = arrivals
            .iter()
            .zip(&mut rows)
            .zip(&dispositions)
            // A job that was just created is claimed already.
            .filter_map(|((arrival, row), disposition)| {
                Some((arrival, row.as_mut().filter(|r| r.claim != Some(claim))?, disposition))
            })
            .filter_map(|(arrival, row, disposition)| JobClaim::of(arrival, row, *disposition))
            .collect();
        claim_jobs(&mut transaction, claim, &claims).await?;
        record_restarts(&mut transaction, &claims).await?;
        drop(claims);
        remember_events(&mut transaction, arrivals, &rows, &dispositions).await?;
        transaction.commit().await.map_err(Error::doing("committing claimed jobs"))?;

        let outcomes =
            rows.iter_mut().zip(dispositions).map(|(row, one)| outcome(row.as_mut(), one));
        Ok(ClaimedBatch { claim, confirmed_at, outcomes: outcomes.collect() })
    }

    /// Locks the jobs that the messages are for, and returns them in the order of the messages.
    async fn lock_jobs(
        &self,
        connection: &mut PgConnection,
        arrivals: &[Arrival],
    ) -> Result<Vec<Option<JobRow>>, Error> {
        let signups: Vec<_> = arrivals.iter().map(Arrival::signup_id).collect();
        let phases: Vec<_> =
            arrivals.iter().map(|arrival| arrival.phase().as_str().to_owned()).collect();
        let rows = sqlx::query_file_as!(
            JobRow,
            "src/ledger/lock_jobs.sql",
            &signups,
            &phases,
            self.claim_lease.as_secs_f64(),
        )
        .fetch_all(connection)
        .await
        .map_err(Error::doing("reading jobs"))?;
        let mut by_signup: HashMap<_, _> =
            rows.into_iter().map(|row| (row.signup_id, row)).collect();
        Ok(signups.iter().map(|id| by_signup.remove(id)).collect())
    }
}

/// An event with the message that carries it.
struct NewEvent<'a> {
    event: &'a Event,
    arrival: &'a Arrival,
}

impl<'a> NewEvent<'a> {
    fn of(arrival: &'a Arrival) -> Option<Self> {
        match &arrival.source {
            Source::Event(event) => Some(Self { event, arrival }),
            Source::Job(_) | Source::Operator { .. } => None,
        }
    }

    fn submitted(&self) -> Option<(&'a str, Option<&'a str>, Value)> {
        match &self.event.details {
            EventDetails::Submitted { operator_id, operator_name, attributes } => Some((
                operator_id,
                operator_name.as_deref(),
                Value::Object(attributes.as_map().clone()),
            )),
            EventDetails::Confirmed { .. } => None,
        }
    }

    fn confirmed(&self) -> Option<(Option<&'a str>, &'a BetSlip)> {
        match &self.event.details {
            EventDetails::Confirmed { extraction_id, bet_slip } => {
                Some((extraction_id.as_deref(), bet_slip))
            }
            EventDetails::Submitted { .. } => None,
        }
    }

    fn bet_slip<T>(&self, field: impl Fn(&'a BetSlip) -> T) -> Option<T> {
        self.confirmed().map(|(_, bet_slip)| field(bet_slip))
    }

    fn states_customer(&self) -> bool {
        self.submitted().is_some() || self.event.customer != Customer::default()
    }
}

/// Writes the data of the events to their signups.
async fn upsert_signups(
    connection: &mut PgConnection,
    events: &[NewEvent<'_>],
) -> Result<(), Error> {
    let mut events: Vec<_> = events.iter().collect();
    // The lock order (locks.rs).
    events.sort_unstable_by_key(|new| new.event.signup_id);
    let customer = |field: fn(&Customer) -> &Option<String>| -> Vec<Option<&str>> {
        events.iter().map(|new| field(&new.event.customer).as_deref()).collect()
    };
    sqlx::query_file!(
        "src/ledger/upsert_signups.sql",
        &column!(events, new => new.event.signup_id) as _,
        &column!(events, new => new.submitted().map(|(operator_id, ..)| operator_id)) as _,
        &column!(events, new => new.submitted().and_then(|(_, operator_name, _)| operator_name))
            as _,
        &customer(|customer| &customer.id) as _,
        &customer(|customer| &customer.email) as _,
        &customer(|customer| &customer.first_name) as _,
        &customer(|customer| &customer.last_name) as _,
        &customer(|customer| &customer.phone) as _,
        &customer(|customer| &customer.state) as _,
        &column!(events, new => new.submitted().map(|(.., attributes)| attributes)) as _,
        &column!(events, new => new.states_customer()) as _,
        &column!(events, new => new.event.occurred_at) as _,
        &column!(events, new => new.confirmed().and_then(|(extraction_id, _)| extraction_id)) as _,
        &column!(events, new => new.bet_slip(|bet_slip| bet_slip.bet_amount)) as _,
        &column!(events, new => new.bet_slip(|bet_slip| bet_slip.team_bet_on.as_str())) as _,
        &column!(events, new => new.bet_slip(|bet_slip| bet_slip.odds.clone())) as _,
        &column!(events, new => new.bet_slip(|bet_slip| bet_slip.confidence)) as _,
        &column!(events, new => new.arrival.phase().as_str()) as _,
        &column!(events, new => new.event.id.as_str()) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("writing signups"))?;
    Ok(())
}

/// Creates the missing jobs, already claimed. An existing job is not changed.
async fn insert_jobs(
    connection: &mut PgConnection,
    events: &[NewEvent<'_>],
    claim: Uuid,
    max_attempts: i32,
) -> Result<(), Error> {
    sqlx::query!(
        r#"
        WITH created AS (
            INSERT INTO signup_customerio_sync_jobs (
                id, signup_id, sync_phase, status, max_attempts, event_id, occurred_at, traceparent,
                stated_at, tracestate, claim, claimed_at, claimed_by
            )
            SELECT id, signup_id, sync_phase, 'processing', $10, event_id,
                CASE WHEN is_ahead THEN now() ELSE COALESCE(occurred_at, now()) END, traceparent,
                CASE WHEN is_ahead THEN occurred_at END, tracestate, $9, now(), claimed_by
            FROM UNNEST(
                $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[], $6::text[],
                $7::text[], $8::text[]
            ) AS e (
                id, signup_id, sync_phase, event_id, occurred_at, traceparent, tracestate,
                claimed_by
            )
            CROSS JOIN LATERAL (SELECT occurred_at > now() + interval '5 minutes') AS a (is_ahead)
            ORDER BY signup_id
            ON CONFLICT (signup_id, sync_phase) DO NOTHING
            RETURNING id
        )
        -- The integrity check compares the jobs with this count (integrity.rs).
        INSERT INTO taken_in (jobs)
        SELECT count(*)
        FROM created
        HAVING count(*) > 0
        "#,
        &column!(events, new => job_id(new.event.signup_id, new.arrival.phase())) as _,
        &column!(events, new => new.event.signup_id) as _,
        &column!(events, new => new.arrival.phase().as_str()) as _,
        &column!(events, new => new.event.id.as_str()) as _,
        &column!(events, new => new.event.occurred_at) as _,
        &column!(events, new => new.arrival.trace.traceparent.as_deref()) as _,
        &column!(events, new => new.arrival.trace.tracestate.as_deref()) as _,
        &column!(events, new => new.arrival.claimant(0).to_string()) as _,
        claim,
        max_attempts,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("creating jobs"))?;
    Ok(())
}

/// A claim on an existing job: its new row, and the message that claims it.
struct JobClaim<'a> {
    row: &'a JobRow,
    arrival: &'a Arrival,
    /// The previous status, if a new event restarts the job.
    restarted_from: Option<Status>,
}

impl<'a> JobClaim<'a> {
    /// Changes `row` to its state after the claim. A restart begins a new run for the new event.
    fn of(arrival: &'a Arrival, row: &'a mut JobRow, disposition: Disposition) -> Option<Self> {
        let restarted_from = (disposition == Disposition::Restart).then_some(row.status);
        match (disposition, &arrival.source) {
            (Disposition::Restart, Source::Event(event)) => {
                row.run += 1;
                row.attempt_count = 0;
                row.manual_retry = false;
                row.first_failed_at = None;
                row.error_type = None;
                row.error_message = None;
                row.event_id.clone_from(&event.id);
                // An older event leaves the time as it is: the job sends what newer events stated.
                let (time, stated_at) = event_time(event.occurred_at, row.now);
                row.occurred_at = row.occurred_at.max(time);
                row.stated_at = stated_at;
                row.traceparent.clone_from(&arrival.trace.traceparent);
                row.tracestate.clone_from(&arrival.trace.tracestate);
            }
            (Disposition::Claim, _) => {}
            _ => return None,
        }
        Some(Self { row, arrival, restarted_from })
    }
}

async fn claim_jobs(
    connection: &mut PgConnection,
    claim: Uuid,
    claims: &[JobClaim<'_>],
) -> Result<(), Error> {
    if claims.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        UPDATE signup_customerio_sync_jobs j
        SET status = 'processing', claim = $1, claimed_at = now(), claimed_by = c.claimed_by,
            run = c.run, attempt_count = c.attempt_count, manual_retry = c.manual_retry,
            event_id = c.event_id,
            -- Fifty are far more than any upstream service sends for one signup, and they keep the
            -- row small if one malfunctions.
            earlier_events = CASE
                WHEN c.event_id = j.event_id THEN j.earlier_events
                ELSE (j.event_id || j.earlier_events)[:50]
            END,
            occurred_at = c.occurred_at, stated_at = c.stated_at, traceparent = c.traceparent,
            tracestate = c.tracestate,
            first_failed_at = c.first_failed_at, error_type = c.error_type,
            error_message = c.error_message,
            error_signature = CASE WHEN c.error_message IS NOT NULL THEN j.error_signature END,
            next_retry_at = NULL, failed_at = NULL, failed_reason = NULL, dismissed_at = NULL,
            dismissed_reason = NULL, updated_at = now()
        FROM UNNEST(
            $2::uuid[], $3::text[], $4::int4[], $5::int4[], $6::bool[], $7::text[],
            $8::timestamptz[], $9::text[], $10::text[], $11::timestamptz[], $12::text[],
            $13::text[], $14::timestamptz[]
        ) AS c (
            id, claimed_by, run, attempt_count, manual_retry, event_id, occurred_at, traceparent,
            tracestate, first_failed_at, error_type, error_message, stated_at
        )
        WHERE j.id = c.id
        "#,
        claim,
        &column!(claims, c => c.row.id) as _,
        &column!(claims, c => c.arrival.claimant(c.row.run).to_string()) as _,
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
    )
    .execute(connection)
    .await
    .map_err(Error::doing("claiming jobs"))?;
    Ok(())
}

/// Maximum time that the clock of a publisher may be ahead.
const AHEAD_MAX: TimeDelta = TimeDelta::minutes(5);

/// The time of an event, and the time that it stated if that is too far ahead and was replaced.
fn event_time(
    stated: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> (DateTime<Utc>, Option<DateTime<Utc>>) {
    match stated {
        Some(time) if time > now + AHEAD_MAX => (now, Some(time)),
        Some(time) => (time, None),
        None => (now, None),
    }
}

/// Records the events that wrote data for completed jobs, so that a repeat of one writes nothing.
async fn remember_events(
    connection: &mut PgConnection,
    arrivals: &[Arrival],
    rows: &[Option<JobRow>],
    dispositions: &[Disposition],
) -> Result<(), Error> {
    let of_completed =
        arrivals.iter().zip(rows).zip(dispositions).filter_map(|((arrival, row), disposition)| {
            match (&arrival.source, row, disposition) {
                (Source::Event(event), Some(row), Disposition::AlreadyCompleted) => {
                    (!row.knows(&event.id)).then_some((row.id, event.id.as_str()))
                }
                _ => None,
            }
        });
    let new: Vec<_> = of_completed.collect();
    if new.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        UPDATE signup_customerio_sync_jobs j
        SET earlier_events = (e.event_id || j.earlier_events)[:50]
        FROM UNNEST($1::uuid[], $2::text[]) AS e (id, event_id)
        WHERE j.id = e.id
        "#,
        &column!(new, one => one.0) as _,
        &column!(new, one => one.1) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("recording the events of completed jobs"))?;
    Ok(())
}

/// Records in the audit log the jobs that new events restarted, and resolves the failures of those
/// that had failed.
async fn record_restarts(
    connection: &mut PgConnection,
    claims: &[JobClaim<'_>],
) -> Result<(), Error> {
    let restarts: Vec<_> =
        claims.iter().filter_map(|claim| Some((claim.row, claim.restarted_from?))).collect();
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

fn outcome(row: Option<&mut JobRow>, disposition: Disposition) -> ClaimOutcome {
    let Some(row) = row else { return ClaimOutcome::Unknown };
    match disposition {
        Disposition::Claim | Disposition::Restart => {
            ClaimOutcome::Claimed(Box::new(ClaimedJob { job: row.job(), signup: row.signup() }))
        }
        Disposition::Settled => ClaimOutcome::Settled(Box::new(row.report())),
        Disposition::AlreadyCompleted => ClaimOutcome::AlreadyCompleted,
        Disposition::Superseded => ClaimOutcome::Superseded,
        Disposition::NotDue(wait) => ClaimOutcome::NotDue { job: Box::new(row.job()), wait },
        Disposition::InFlight => ClaimOutcome::InFlight { job: Box::new(row.job()) },
        Disposition::Unknown => ClaimOutcome::Unknown,
    }
}
