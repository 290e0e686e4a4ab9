//! Takes a batch of messages in: signups, jobs and claims, in one transaction and a fixed number of
//! statements.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Error, Ledger,
    arrival::{Arrival, Meaning, Source, meaning},
    audit, restart,
    row::Row,
};
use crate::{
    event::{BetSlip, Customer, Details, Event},
    job::{Job, Report, Work, job_id},
};

/// What was opened for a batch of messages.
#[derive(Debug)]
pub struct Batch {
    /// The fence: whoever settles the claimed jobs must name it.
    pub claim: Uuid,
    /// The claims were made, or seen to hold, after this moment.
    pub held_at: Instant,
    /// One answer a message, in the order of the messages.
    pub opened: Vec<Opened>,
}

/// What a message led to.
#[derive(Debug, Clone, PartialEq)]
pub enum Opened {
    /// The job is ours: call, then settle.
    Claimed(Box<Work>),
    /// This very message was settled before; what follows from it has to be published (again).
    Settled(Box<Report>),
    /// The job is done, by another message. Nothing to do.
    AlreadyCompleted,
    /// Another message has taken the job further. Nothing to do.
    Superseded,
    /// The job is not due yet.
    NotDue {
        /// The job.
        job: Box<Job>,
        /// Time until it is.
        wait: Duration,
    },
    /// Another message holds the job.
    InFlight {
        /// The job.
        job: Box<Job>,
    },
    /// There is no such job.
    Unknown,
}

impl Ledger {
    /// Opens a batch, and claims jobs with `claim`. No two of its messages may be about the same
    /// signup, so that locks are taken in one order. A commit whose answer is lost may have
    /// happened: opened again with the same claim, the jobs are found claimed by it.
    pub async fn open(&self, claim: Uuid, arrivals: &[Arrival]) -> Result<Batch, Error> {
        let held_at = Instant::now();
        let events: Vec<_> = arrivals.iter().filter_map(NewEvent::of).collect();
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning to open jobs"))?;
        if !events.is_empty() {
            upsert_signups(&mut transaction, &events).await?;
            insert_jobs(&mut transaction, &events, claim, self.max_attempts).await?;
        }
        let mut rows = self.lock_jobs(&mut transaction, arrivals).await?;
        let meanings = arrivals
            .iter()
            .zip(&rows)
            .map(|(arrival, row)| match row {
                None => Ok(Meaning::Unknown),
                Some(row) if row.claim == Some(claim) => Ok(Meaning::Take),
                Some(row) => Ok(meaning(arrival, &row.standing()?)),
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let claims: Vec<_> = arrivals
            .iter()
            .zip(&mut rows)
            .zip(&meanings)
            // A job that was made just now is claimed already.
            .filter_map(|((arrival, row), meaning)| {
                Some((arrival, row.as_mut().filter(|r| r.claim != Some(claim))?, meaning))
            })
            .filter_map(|(arrival, row, meaning)| Claim::of(arrival, row, *meaning))
            .collect();
        claim_jobs(&mut transaction, claim, &claims).await?;
        tell_restarts(&mut transaction, &claims).await?;
        transaction.commit().await.map_err(Error::doing("committing opened jobs"))?;

        let opened =
            rows.iter_mut().zip(meanings).map(|(row, meaning)| answer(row.as_mut(), meaning));
        Ok(Batch { claim, held_at, opened: opened.collect::<Result<_, _>>()? })
    }

    /// The jobs that the messages are about, locked, in the order of the messages.
    async fn lock_jobs(
        &self,
        connection: &mut PgConnection,
        arrivals: &[Arrival],
    ) -> Result<Vec<Option<Row>>, Error> {
        let signups: Vec<_> = arrivals.iter().map(Arrival::signup_id).collect();
        let phases: Vec<_> =
            arrivals.iter().map(|arrival| arrival.phase().as_str().to_owned()).collect();
        let rows = sqlx::query_file_as!(
            Row,
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

/// An event with the message it came in.
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
            Details::Submitted { operator_id, operator_name, attributes } => Some((
                operator_id,
                operator_name.as_deref(),
                Value::Object(attributes.as_map().clone()),
            )),
            Details::Confirmed { .. } => None,
        }
    }

    fn confirmed(&self) -> Option<(Option<&'a str>, &'a BetSlip)> {
        match &self.event.details {
            Details::Confirmed { extraction_id, bet_slip } => {
                Some((extraction_id.as_deref(), bet_slip))
            }
            Details::Submitted { .. } => None,
        }
    }

    fn bet_slip<T>(&self, field: impl Fn(&'a BetSlip) -> T) -> Option<T> {
        self.confirmed().map(|(_, bet_slip)| field(bet_slip))
    }

    fn speaks_of_the_customer(&self) -> bool {
        self.submitted().is_some() || self.event.customer != Customer::default()
    }
}

/// Writes what the events say of their signups.
async fn upsert_signups(
    connection: &mut PgConnection,
    events: &[NewEvent<'_>],
) -> Result<(), Error> {
    let mut events: Vec<_> = events.iter().collect();
    // One order for all transactions, so that two that share signups wait for each other and don't
    // deadlock.
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
        &column!(events, new => new.speaks_of_the_customer()) as _,
        &column!(events, new => new.event.occurred_at) as _,
        &column!(events, new => new.confirmed().and_then(|(extraction_id, _)| extraction_id)) as _,
        &column!(events, new => new.bet_slip(|bet_slip| bet_slip.bet_amount)) as _,
        &column!(events, new => new.bet_slip(|bet_slip| bet_slip.team_bet_on.as_str())) as _,
        &column!(events, new => new.bet_slip(|bet_slip| bet_slip.odds.clone())) as _,
        &column!(events, new => new.bet_slip(|bet_slip| bet_slip.confidence)) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("writing signups"))?;
    Ok(())
}

/// Makes the jobs that are missing, claimed from the start. A job that is there is left as it is.
async fn insert_jobs(
    connection: &mut PgConnection,
    events: &[NewEvent<'_>],
    claim: Uuid,
    max_attempts: i32,
) -> Result<(), Error> {
    sqlx::query!(
        r#"
        WITH made AS (
            INSERT INTO signup_customerio_sync_jobs (
                id, signup_id, sync_phase, status, max_attempts, event_id, occurred_at, traceparent,
                claim, claimed_at, claimed_by
            )
            SELECT id, signup_id, sync_phase, 'processing', $9, event_id, COALESCE(occurred_at,
            now()), traceparent,
                $8, now(), claimed_by
            FROM UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[],
            $6::text[], $7::text[])
                AS e (id, signup_id, sync_phase, event_id, occurred_at, traceparent, claimed_by)
            ORDER BY signup_id
            ON CONFLICT (signup_id, sync_phase) DO NOTHING
            RETURNING id
        )
        -- What the jobs are held against, see integrity.rs.
        INSERT INTO taken_in (jobs)
        SELECT count(*)
        FROM made
        HAVING count(*) > 0
        "#,
        &column!(events, new => job_id(new.event.signup_id, new.arrival.phase())) as _,
        &column!(events, new => new.event.signup_id) as _,
        &column!(events, new => new.arrival.phase().as_str()) as _,
        &column!(events, new => new.event.id.as_str()) as _,
        &column!(events, new => new.event.occurred_at) as _,
        &column!(events, new => new.arrival.traceparent.as_deref()) as _,
        &column!(events, new => new.arrival.claimant(0)) as _,
        claim,
        max_attempts,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("making jobs"))?;
    Ok(())
}

/// A claim on a job that was there before: its row as it is to be, and the message that claims it.
struct Claim<'a> {
    row: &'a Row,
    arrival: &'a Arrival,
    /// The status that the job had, if a new event starts it afresh.
    restarted_from: Option<String>,
}

impl<'a> Claim<'a> {
    /// Brings `row` to where the claim puts it: a restart begins a new run of the new event.
    fn of(arrival: &'a Arrival, row: &'a mut Row, meaning: Meaning) -> Option<Self> {
        let restarted_from = (meaning == Meaning::Restart).then(|| row.status.clone());
        match (meaning, &arrival.source) {
            (Meaning::Restart, Source::Event(event)) => {
                row.run += 1;
                row.attempt_count = 0;
                row.manual_retry = false;
                row.first_failed_at = None;
                row.error_type = None;
                row.error_message = None;
                row.event_id.clone_from(&event.id);
                row.occurred_at = event.occurred_at.unwrap_or(row.now);
                row.traceparent.clone_from(&arrival.traceparent);
            }
            (Meaning::Take, _) => {}
            _ => return None,
        }
        Some(Self { row, arrival, restarted_from })
    }
}

async fn claim_jobs(
    connection: &mut PgConnection,
    claim: Uuid,
    claims: &[Claim<'_>],
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
            -- Fifty are far more than any upstream sends for one signup,
            -- and keep the row small if one runs wild.
            earlier_events = CASE
                WHEN c.event_id = j.event_id THEN j.earlier_events
                ELSE (j.event_id || j.earlier_events)[:50]
            END,
            occurred_at = c.occurred_at, traceparent = c.traceparent,
            first_failed_at = c.first_failed_at,
            error_type = c.error_type, error_message = c.error_message,
            error_signature = CASE WHEN c.error_message IS NOT NULL THEN j.error_signature END,
            next_retry_at = NULL, failed_at = NULL, failed_reason = NULL, dismissed_at = NULL,
            dismissed_reason = NULL,
            updated_at = now()
        FROM UNNEST(
            $2::uuid[], $3::text[], $4::int4[], $5::int4[], $6::bool[], $7::text[],
            $8::timestamptz[], $9::text[],
            $10::timestamptz[], $11::text[], $12::text[]
        ) AS c (
            id, claimed_by, run, attempt_count, manual_retry, event_id, occurred_at, traceparent,
            first_failed_at, error_type, error_message
        )
        WHERE j.id = c.id
        "#,
        claim,
        &column!(claims, c => c.row.id) as _,
        &column!(claims, c => c.arrival.claimant(c.row.run)) as _,
        &column!(claims, c => c.row.run) as _,
        &column!(claims, c => c.row.attempt_count) as _,
        &column!(claims, c => c.row.manual_retry) as _,
        &column!(claims, c => c.row.event_id.as_str()) as _,
        &column!(claims, c => c.row.occurred_at) as _,
        &column!(claims, c => c.row.traceparent.as_deref()) as _,
        &column!(claims, c => c.row.first_failed_at) as _,
        &column!(claims, c => c.row.error_type.as_deref()) as _,
        &column!(claims, c => c.row.error_message.as_deref()) as _,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("claiming jobs"))?;
    Ok(())
}

/// Writes down that new events have started jobs afresh. The failures of those that had failed are
/// resolved by that.
async fn tell_restarts(connection: &mut PgConnection, claims: &[Claim<'_>]) -> Result<(), Error> {
    let restarts: Vec<_> = claims
        .iter()
        .filter_map(|claim| Some((claim.row, claim.restarted_from.as_deref()?)))
        .collect();
    let failed: Vec<_> =
        restarts.iter().filter(|(_, status)| *status == "failed").map(|(row, _)| row.id).collect();
    restart::resolve_failures(connection, &failed, "superseded").await?;
    let entry = |(row, status): &(&Row, &str)| audit::Entry {
        action: "customerio_sync_restarted",
        signup_id: Some(row.signup_id),
        details: json!({ "jobId": row.id, "syncPhase": row.sync_phase, "run": row.run,
        "statusBefore": status }),
    };
    audit::insert(connection, audit::SERVICE, &restarts.iter().map(entry).collect::<Vec<_>>()).await
}

fn answer(row: Option<&mut Row>, meaning: Meaning) -> Result<Opened, Error> {
    let Some(row) = row else { return Ok(Opened::Unknown) };
    let job = row.job()?;
    Ok(match meaning {
        Meaning::Take | Meaning::Restart => {
            Opened::Claimed(Box::new(Work { job, signup: row.signup() }))
        }
        Meaning::Settled => Opened::Settled(Box::new(row.report()?)),
        Meaning::AlreadyCompleted => Opened::AlreadyCompleted,
        Meaning::Superseded => Opened::Superseded,
        Meaning::NotDue(wait) => Opened::NotDue { job: Box::new(job), wait },
        Meaning::InFlight => Opened::InFlight { job: Box::new(job) },
        Meaning::Unknown => Opened::Unknown,
    })
}
