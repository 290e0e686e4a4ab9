//! The effect of a batch of messages on their signups and jobs. It changes rows in memory, and
//! remembers which have to be written.
//!
//! The messages are admitted one by one, in the order in which they arrived. Several events of one
//! job lead to one claim, by the newest: the others are superseded.

use std::collections::BTreeMap;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use uuid::Uuid;

use super::{
    arrival::{Arrival, Disposition, Source, disposition},
    row::JobRow,
};
use crate::{
    event::Event,
    job::{ClaimedJob, Reason, Signup, Status, SyncPhase},
};

/// Maximum time that the clock of a publisher may be ahead.
const AHEAD_MAX: TimeDelta = TimeDelta::minutes(5);

/// The rows that the messages of a batch are for.
#[derive(Debug)]
pub(super) struct WorkingSet<'a> {
    /// The claim of the batch.
    pub(super) claim: Uuid,
    /// The time of the transaction, by the database's clock.
    pub(super) now: DateTime<Utc>,
    pub(super) max_attempts: i32,
    pub(super) signups: BTreeMap<Uuid, SignupState>,
    pub(super) jobs: BTreeMap<(Uuid, SyncPhase), JobState<'a>>,
    /// Events that wrote data, but are not the newest of their job: job and event id, in the order
    /// of their arrival.
    pub(super) earlier_events: Vec<(Uuid, String)>,
}

/// A signup, and whether it has to be written.
#[derive(Debug)]
pub(super) struct SignupState {
    pub(super) signup: Signup,
    pub(super) change: SignupChange,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignupChange {
    /// It is as it was read.
    Unchanged,
    /// It has to be inserted.
    New,
    /// It has to be updated.
    Changed,
}

/// A job, and whether it has to be written.
#[derive(Debug)]
pub(super) struct JobState<'a> {
    pub(super) row: JobRow,
    pub(super) change: JobChange,
    /// The message that claims it, with its index in the batch.
    pub(super) claimant: Option<(usize, &'a Arrival)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobChange {
    /// It is as it was read.
    Unchanged,
    /// It has to be inserted.
    Created,
    /// It has to be claimed.
    Claimed,
    /// It has to be claimed in a new run. It had this status.
    RestartedFrom(Status),
}

impl<'a> JobState<'a> {
    /// A job as it was read.
    pub(super) fn read(row: JobRow) -> Self {
        Self { row, change: JobChange::Unchanged, claimant: None }
    }

    /// Whether a run of the job begins in this batch.
    fn begins_run(&self) -> bool {
        matches!(self.change, JobChange::Created | JobChange::RestartedFrom(_))
    }

    /// Gives the job to a newer event, in a new run unless one begins in this batch anyway.
    fn restart(&mut self, event: &Event, times: EventTimes, arrival: &Arrival, max_attempts: i32) {
        let begins_run = self.begins_run();
        let row = &mut self.row;
        if !begins_run {
            self.change = JobChange::RestartedFrom(row.status);
            // Customer.io has refused the person under this identifier.
            if row.failed_reason.as_deref() == Some(Reason::Permanent.as_str()) {
                row.contact_id = None;
            }
            row.run += 1;
            row.attempt_count = 0;
            // The ladder may have changed.
            row.max_attempts = max_attempts;
            row.manual_retry = false;
            row.first_failed_at = None;
            row.error_type = None;
            row.error_message = None;
        }
        let earlier = std::mem::replace(&mut row.event_id, event.id.clone());
        row.earlier_events.get_or_insert_default().push(earlier);
        // An older event leaves the time as it is: the tracked event is as recent as the data.
        row.occurred_at = row.occurred_at.max(times.time);
        row.stated_at = times.replaced;
        row.traceparent.clone_from(&arrival.trace.traceparent);
        row.tracestate.clone_from(&arrival.trace.tracestate);
    }

    fn claim_by(&mut self, index: usize, arrival: &'a Arrival, claim: Uuid) {
        self.claimant = Some((index, arrival));
        // A claim of the same id was committed before.
        if self.change == JobChange::Unchanged && self.row.claim != Some(claim) {
            self.change = JobChange::Claimed;
        }
    }
}

/// When an event happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EventTimes {
    time: DateTime<Utc>,
    /// The time that it stated, if that is too far ahead.
    replaced: Option<DateTime<Utc>>,
}

impl EventTimes {
    fn of(event: &Event, now: DateTime<Utc>) -> Self {
        // PostgreSQL stores microseconds.
        match event.occurred_at.map(|time| time.trunc_subsecs(6)) {
            Some(time) if time > now + AHEAD_MAX => Self { time: now, replaced: Some(time) },
            Some(time) => Self { time, replaced: None },
            None => Self { time: now, replaced: None },
        }
    }
}

impl<'a> WorkingSet<'a> {
    /// Admits the message with this index. A later message may take the job over from it
    /// ([`Self::is_claimed_by`]).
    pub(super) fn admit(&mut self, index: usize, arrival: &'a Arrival) -> Disposition {
        let event = match &arrival.source {
            Source::Event(event) => Some(&**event),
            Source::Job(_) | Source::Operator { .. } => None,
        };
        let Some(job) = self.jobs.get_mut(&(arrival.signup_id(), arrival.phase())) else {
            let Some(event) = event else { return Disposition::Unknown };
            self.create(index, arrival, event);
            return Disposition::Claim;
        };
        let new_event = event.filter(|event| !job.row.snapshot().knows(&event.id));
        let is_claimed = job.claimant.is_some() || job.row.claim == Some(self.claim);
        let admitted = match (new_event, event) {
            (Some(_), _) if is_claimed => Disposition::Restart,
            (None, _) if job.claimant.is_some() => Disposition::Superseded,
            // The claim was committed before, but its confirmation was lost.
            (None, None) if is_claimed => Disposition::Claim,
            (None, Some(event)) if is_claimed && event.id == job.row.event_id => Disposition::Claim,
            _ => disposition(arrival, &job.row.snapshot()),
        };
        if let Some(event) = new_event {
            self.add_event(arrival, event, admitted);
        }
        if matches!(admitted, Disposition::Claim | Disposition::Restart)
            && let Some(job) = self.jobs.get_mut(&(arrival.signup_id(), arrival.phase()))
        {
            job.claim_by(index, arrival, self.claim);
        }
        admitted
    }

    /// Whether the message with this index claims its job.
    pub(super) fn is_claimed_by(&self, index: usize, arrival: &Arrival) -> bool {
        let job = self.jobs.get(&(arrival.signup_id(), arrival.phase()));
        job.and_then(|job| job.claimant).is_some_and(|(claimant, _)| claimant == index)
    }

    /// The job that a message is for.
    pub(super) fn row(&self, arrival: &Arrival) -> Option<&JobRow> {
        Some(&self.jobs.get(&(arrival.signup_id(), arrival.phase()))?.row)
    }

    /// The job that a message is for, with its signup.
    pub(super) fn claimed_job(&self, arrival: &Arrival) -> Option<ClaimedJob> {
        let signup = self.signups.get(&arrival.signup_id())?.signup.clone();
        Some(ClaimedJob { job: self.row(arrival)?.job(), signup })
    }

    /// Adds an event that is new to its job.
    fn add_event(&mut self, arrival: &Arrival, event: &Event, admitted: Disposition) {
        let times = EventTimes::of(event, self.now);
        self.add_data(event, times);
        let Some(job) = self.jobs.get_mut(&(event.signup_id, arrival.phase())) else { return };
        if admitted != Disposition::Restart {
            self.earlier_events.push((job.row.id, event.id.clone()));
            job.row.earlier_events.get_or_insert_default().push(event.id.clone());
            return;
        }
        if job.begins_run() {
            self.earlier_events.push((job.row.id, job.row.event_id.clone()));
        }
        job.restart(event, times, arrival, self.max_attempts);
    }

    fn add_data(&mut self, event: &Event, times: EventTimes) {
        let state = self.signups.entry(event.signup_id).or_insert_with(|| SignupState {
            signup: Signup::default(),
            change: SignupChange::New,
        });
        state.signup.apply(event, times.time);
        if state.change == SignupChange::Unchanged {
            state.change = SignupChange::Changed;
        }
    }

    /// Creates the job of an event, claimed by it.
    fn create(&mut self, index: usize, arrival: &'a Arrival, event: &Event) {
        let times = EventTimes::of(event, self.now);
        self.add_data(event, times);
        let phase = arrival.phase();
        let row = JobRow {
            // The ids of new jobs are next to each other in the indexes: they start with the
            // time (RFC 9562, section 5.7).
            id: Uuid::now_v7(),
            signup_id: event.signup_id,
            sync_phase: phase,
            status: Status::Processing,
            run: 0,
            attempt_count: 0,
            max_attempts: self.max_attempts,
            manual_retry: false,
            event_id: event.id.clone(),
            earlier_events: None,
            occurred_at: times.time,
            stated_at: times.replaced,
            created_at: self.now,
            updated_at: self.now,
            first_failed_at: None,
            failed_at: None,
            failed_reason: None,
            completed_at: None,
            mock: false,
            error_type: None,
            error_message: None,
            traceparent: arrival.trace.traceparent.clone(),
            tracestate: arrival.trace.tracestate.clone(),
            claim: Some(self.claim),
            claimed_by: None,
            contact_id: None,
            is_stale: false,
            owner_is_gone: None,
            due_in_ms: 0.0,
        };
        let claimant = Some((index, arrival));
        let created = JobState { row, change: JobChange::Created, claimant };
        self.jobs.insert((event.signup_id, phase), created);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{EventType, RawEvent, parse},
        runtime::trace::TraceContext,
    };

    const SIGNUP: Uuid = Uuid::from_u128(7);
    const CLAIM: Uuid = Uuid::from_u128(9);

    fn event(id: &str, phone: &str) -> Arrival {
        let body = serde_json::json!({ "event_id": id, "signup_id": SIGNUP, "operator_id": "op-1",
            "customer": { "email": "ann@example.com", "phone": phone } })
        .to_string();
        let event = parse(RawEvent::new(EventType::Submitted, body.as_bytes())).expect("valid");
        let source = Source::Event(Box::new(event));
        Arrival { source, redelivered: false, trace: TraceContext::default() }
    }

    fn empty<'a>() -> WorkingSet<'a> {
        WorkingSet {
            claim: CLAIM,
            now: DateTime::from_timestamp(1_739_880_000, 0).expect("a time"),
            max_attempts: 5,
            signups: BTreeMap::new(),
            jobs: BTreeMap::new(),
            earlier_events: Vec::new(),
        }
    }

    fn admit<'a>(working_set: &mut WorkingSet<'a>, arrivals: &'a [Arrival]) -> Vec<Disposition> {
        let arrivals = arrivals.iter().enumerate();
        arrivals.map(|(index, arrival)| working_set.admit(index, arrival)).collect()
    }

    fn claimants(working_set: &WorkingSet<'_>, arrivals: &[Arrival]) -> Vec<bool> {
        let arrivals = arrivals.iter().enumerate();
        arrivals.map(|(index, arrival)| working_set.is_claimed_by(index, arrival)).collect()
    }

    /// The rows of `working_set` as another transaction reads them after its commit.
    fn committed<'a>(working_set: WorkingSet<'_>, job: impl Fn(&mut JobRow)) -> WorkingSet<'a> {
        let mut read = empty();
        for (key, mut state) in working_set.jobs {
            job(&mut state.row);
            read.jobs.insert(key, JobState::read(state.row));
        }
        for (id, state) in working_set.signups {
            read.signups.insert(id, SignupState { change: SignupChange::Unchanged, ..state });
        }
        read
    }

    #[test]
    fn events_of_one_job_are_claimed_together_by_the_newest() {
        let arrivals = [event("e1", "1"), event("e2", "2"), event("e3", "3")];
        let mut batch = empty();
        admit(&mut batch, &arrivals);
        assert_eq!(claimants(&batch, &arrivals), [false, false, true]);
        let job = batch.claimed_job(&arrivals[0]).expect("claimed");
        assert_eq!((job.job.run, job.signup.customer.phone.as_deref()), (0, Some("3")));
        let row = batch.row(&arrivals[0]).expect("a job");
        let earlier: Vec<_> = batch.earlier_events.iter().map(|(_, id)| id.as_str()).collect();
        assert_eq!((row.event_id.as_str(), earlier), ("e3", vec!["e1", "e2"]));

        let mut later = committed(batch, |row| {
            (row.status, row.claim) = (Status::Failed, None);
        });
        let arrivals = [event("e2", "2"), event("e4", "4"), event("e5", "5")];
        let admitted = admit(&mut later, &arrivals);
        assert_eq!(admitted[0], Disposition::Superseded, "it is known");
        assert_eq!(claimants(&later, &arrivals), [false, false, true]);
        let job = later.claimed_job(&arrivals[0]).expect("claimed");
        assert_eq!(job.job.run, 1, "one run begins");
        let changes: Vec<_> = later.jobs.values().map(|job| job.change).collect();
        assert_eq!(changes, [JobChange::RestartedFrom(Status::Failed)]);
    }

    #[test]
    fn a_copy_in_the_same_batch_changes_nothing() {
        let arrivals = [event("e1", "1"), event("e2", "2"), event("e1", "1")];
        let mut batch = empty();
        admit(&mut batch, &arrivals);
        assert_eq!(claimants(&batch, &arrivals), [false, true, false]);
        let job = batch.claimed_job(&arrivals[0]).expect("claimed");
        assert_eq!(job.signup.customer.phone.as_deref(), Some("2"));
    }

    #[test]
    fn a_claim_whose_confirmation_was_lost_is_found_again() {
        let arrivals = [event("e1", "1"), event("e2", "2")];
        let mut first = empty();
        admit(&mut first, &arrivals);
        let mut again = committed(first, |_| {});
        admit(&mut again, &arrivals);
        assert_eq!(claimants(&again, &arrivals), [false, true]);
        assert!(again.jobs.values().all(|job| job.change == JobChange::Unchanged));
        assert!(again.signups.values().all(|signup| signup.change == SignupChange::Unchanged));
    }

    #[test]
    fn events_of_a_completed_job_add_data_and_start_nothing() {
        let mut first = empty();
        let created = [event("e1", "1")];
        admit(&mut first, &created);
        let mut later = committed(first, |row| {
            (row.status, row.claim) = (Status::Completed, None);
        });
        let arrivals = [event("e2", "2"), event("e3", "3"), event("e2", "2")];
        let admitted = admit(&mut later, &arrivals);
        assert_eq!(admitted, [Disposition::AlreadyCompleted; 3]);
        let signup = &later.signups[&SIGNUP];
        assert_eq!(signup.change, SignupChange::Changed);
        assert_eq!(signup.signup.customer.phone.as_deref(), Some("3"));
        assert_eq!(later.earlier_events.len(), 2);
    }

    #[test]
    fn a_restart_forgets_an_identifier_that_was_refused() {
        let contact = |reason: Reason| {
            let mut first = empty();
            let created = [event("e1", "1")];
            admit(&mut first, &created);
            let mut later = committed(first, |row| {
                (row.status, row.claim) = (Status::Failed, None);
                row.failed_reason = Some(reason.as_str().to_owned());
                row.contact_id = Some("ann@example.com".to_owned());
            });
            let arrivals = [event("e2", "2")];
            admit(&mut later, &arrivals);
            later.row(&arrivals[0]).expect("a job").contact_id.clone()
        };
        assert_eq!(contact(Reason::Permanent), None);
        assert_eq!(contact(Reason::Exhausted).as_deref(), Some("ann@example.com"));
    }
}
