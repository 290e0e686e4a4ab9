//! The meaning of an arriving message for its job: a pure decision on the job's current state.

use std::time::Duration;

use uuid::Uuid;

use crate::{
    event::Event,
    job::{AttemptId, Claimant, JobMessage, Status, SyncPhase},
    runtime::trace::TraceContext,
};

/// Number of events before the newest that a job remembers. It is far more than any upstream
/// service sends for one signup, and keeps the row small if one malfunctions. The SQL that writes
/// `earlier_events` has the same number.
pub const EARLIER_EVENTS_MAX: usize = 50;

/// A message for a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// Its origin and content.
    pub source: Source,
    /// Whether RabbitMQ has delivered it before.
    pub redelivered: bool,
    /// The trace context that the message carries.
    pub trace: TraceContext,
}

/// The origin of a message, with its content.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// An upstream service.
    Event(Box<Event>),
    /// A delay tier, or an operator's retry.
    Job(JobMessage),
    /// An operator who runs the job now, without a message.
    Operator {
        /// The attempt to make.
        message: JobMessage,
        /// Distinguishes this request from others.
        id: Uuid,
    },
}

impl Arrival {
    /// The signup that the message is for.
    pub fn signup_id(&self) -> Uuid {
        match &self.source {
            Source::Event(event) => event.signup_id,
            Source::Job(message) | Source::Operator { message, .. } => message.signup_id,
        }
    }

    /// The phase that the message is for.
    pub fn phase(&self) -> SyncPhase {
        match &self.source {
            Source::Event(event) => SyncPhase::of(&event.details),
            Source::Job(message) | Source::Operator { message, .. } => message.phase,
        }
    }

    /// The claimant that the job records when this message claims it in run `run`.
    pub(super) fn claimant(&self, run: i32) -> Claimant {
        match &self.source {
            Source::Event(event) => Claimant::Event(event.id.clone()),
            Source::Job(JobMessage { job_id, attempt, .. }) => {
                Claimant::Message(AttemptId { job_id: *job_id, run, attempt: *attempt })
            }
            Source::Operator { id, .. } => Claimant::Operator(*id),
        }
    }
}

/// The state of a job when a message for it arrives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct JobSnapshot<'a> {
    pub(super) id: Uuid,
    pub(super) status: Status,
    pub(super) run: i32,
    pub(super) attempt: i32,
    /// The event that created or last restarted it.
    pub(super) event_id: &'a str,
    /// The events before that one.
    pub(super) earlier_events: &'a [String],
    pub(super) claimed_by: Option<&'a Claimant>,
    /// Whether its claim is older than the lease.
    pub(super) is_stale: bool,
    /// Whether the process that owns its claim is gone. `None` if the claim does not name it.
    pub(super) owner_is_gone: Option<bool>,
    /// Time until it is due; zero if it is due.
    pub(super) due_in: Duration,
}

impl JobSnapshot<'_> {
    /// Whether an event with this id has written data for the job.
    pub(super) fn knows(&self, event_id: &str) -> bool {
        self.event_id == event_id || self.earlier_events.iter().any(|id| id == event_id)
    }
}

/// The action to take on a message and its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disposition {
    /// Claim the job for its current attempt.
    Claim,
    /// Claim the job for the first attempt of a new run.
    Restart,
    /// This message was settled before. Its consumer was lost before the acknowledgement, and maybe
    /// before the messages that must follow were on record.
    Settled,
    /// The job was completed by another message.
    AlreadyCompleted,
    /// Another message has advanced the job; this one is late.
    Superseded,
    /// The message is too early by this much.
    NotDue(Duration),
    /// Another message owns the job.
    InFlight,
    /// The message names a job that the signup does not have.
    Unknown,
}

/// Decides what to do with `arrival` and its job.
pub(super) fn disposition(arrival: &Arrival, job: &JobSnapshot<'_>) -> Disposition {
    let claimant = arrival.claimant(match &arrival.source {
        Source::Job(JobMessage { run: Some(run), .. }) => *run,
        _ => job.run,
    });
    let is_claimant = job.claimed_by == Some(&claimant);
    let is_settled = is_claimant && arrival.redelivered;
    match &arrival.source {
        Source::Job(message) | Source::Operator { message, .. } if message.job_id != job.id => {
            Disposition::Unknown
        }
        _ if job.status == Status::Completed && is_settled => Disposition::Settled,
        _ if job.status == Status::Completed => Disposition::AlreadyCompleted,
        Source::Event(event) if !job.knows(&event.id) => Disposition::Restart,
        Source::Event(event) if event.id != job.event_id => Disposition::Superseded,
        Source::Event(_) => of_same_event(arrival, job, is_claimant),
        Source::Job(message) | Source::Operator { message, .. } => {
            of_job_message(arrival, *message, job, is_claimant)
        }
    }
}

/// The event that created or last restarted the job arrives again.
fn of_same_event(arrival: &Arrival, job: &JobSnapshot<'_>, is_claimant: bool) -> Disposition {
    // An operator's request has no message of its own. If it leads to no attempt, the job still
    // waits for its event.
    let is_awaited = is_claimant
        || job.claimed_by.is_none_or(|claimant| matches!(claimant, Claimant::Operator(_)));
    match job.status {
        // Released, or never claimed.
        Status::Pending if is_awaited && job.attempt == 0 => Disposition::Claim,
        Status::Processing if is_awaited && job.attempt == 0 => {
            of_claimed(arrival, job, is_claimant)
        }
        Status::Pending | Status::Failed if is_claimant && arrival.redelivered => {
            Disposition::Settled
        }
        _ => Disposition::Superseded,
    }
}

fn of_job_message(
    arrival: &Arrival,
    message: JobMessage,
    job: &JobSnapshot<'_>,
    is_claimant: bool,
) -> Disposition {
    let is_current = message.attempt == job.attempt && message.run.is_none_or(|run| run == job.run);
    match job.status {
        Status::Pending if is_current && job.due_in > Duration::ZERO => {
            Disposition::NotDue(job.due_in)
        }
        Status::Pending if is_current => Disposition::Claim,
        Status::Processing if is_current => of_claimed(arrival, job, is_claimant),
        Status::Pending | Status::Failed if is_claimant && arrival.redelivered => {
            Disposition::Settled
        }
        _ => Disposition::Superseded,
    }
}

/// The job is claimed for the attempt that this message asks for. The claim is taken over if the
/// process that owns it is gone, or if nobody has renewed it: a batch renews its claims. If it is
/// not known who owns the claim, a redelivery of the claiming message means that its consumer is
/// gone.
fn of_claimed(arrival: &Arrival, job: &JobSnapshot<'_>, is_claimant: bool) -> Disposition {
    let owner_is_gone = job.owner_is_gone.unwrap_or(is_claimant && arrival.redelivered);
    if job.is_stale || owner_is_gone { Disposition::Claim } else { Disposition::InFlight }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventType, RawEvent, parse};
    use std::sync::LazyLock;

    const JOB: Uuid = Uuid::from_u128(1);
    const SIGNUP: Uuid = Uuid::from_u128(2);

    fn event(id: &str) -> Arrival {
        let body = format!(
            r#"{{"event_id":"{id}","signup_id":"{SIGNUP}","operator_id":"op",
                "customer":{{"email":"a@example.com"}}}}"#
        );
        let raw = RawEvent::new(EventType::Submitted, body.as_bytes());
        let event = parse(raw).expect("a valid event");
        let trace = TraceContext::default();
        Arrival { source: Source::Event(Box::new(event)), redelivered: false, trace }
    }

    fn message(run: impl Into<Option<i32>>, attempt: i32) -> Arrival {
        let message = JobMessage {
            job_id: JOB,
            signup_id: SIGNUP,
            phase: SyncPhase::Initial,
            run: run.into(),
            attempt,
        };
        let trace = TraceContext::default();
        Arrival { source: Source::Job(message), redelivered: false, trace }
    }

    fn again(arrival: Arrival) -> Arrival {
        Arrival { redelivered: true, ..arrival }
    }

    /// A job of event `e1` in its first run, last claimed by `claimed_by`.
    fn snapshot(
        status: Status,
        attempt: i32,
        claimed_by: &'static Claimant,
    ) -> JobSnapshot<'static> {
        JobSnapshot {
            id: JOB,
            status,
            run: 0,
            attempt,
            event_id: "e1",
            earlier_events: &[],
            claimed_by: Some(claimed_by),
            is_stale: false,
            owner_is_gone: None,
            due_in: Duration::ZERO,
        }
    }

    static E1: LazyLock<Claimant> = LazyLock::new(|| Claimant::Event("e1".to_owned()));
    static FIRST_RETRY: Claimant = message_claimant(1);

    const fn message_claimant(attempt: i32) -> Claimant {
        Claimant::Message(AttemptId { job_id: JOB, run: 0, attempt })
    }

    #[test]
    fn a_completed_job_never_runs_again() {
        let done = snapshot(Status::Completed, 0, &E1);
        assert_eq!(disposition(&event("e2"), &done), Disposition::AlreadyCompleted);
        assert_eq!(disposition(&message(0, 1), &done), Disposition::AlreadyCompleted);
        assert_eq!(
            disposition(&again(event("e1")), &done),
            Disposition::Settled,
            "the crash came before the acknowledgement"
        );
    }

    #[test]
    fn a_new_event_restarts_an_open_job() {
        for status in [Status::Pending, Status::Processing, Status::Failed] {
            assert_eq!(
                disposition(&event("e2"), &snapshot(status, 3, &FIRST_RETRY)),
                Disposition::Restart
            );
        }
    }

    #[test]
    fn an_event_that_a_newer_one_has_superseded_changes_nothing() {
        let seen = ["e0".to_owned()];
        for status in [Status::Pending, Status::Processing, Status::Failed] {
            let superseded =
                JobSnapshot { earlier_events: &seen, ..snapshot(status, 3, &FIRST_RETRY) };
            assert_eq!(disposition(&again(event("e0")), &superseded), Disposition::Superseded);
            assert_eq!(disposition(&event("e2"), &superseded), Disposition::Restart);
        }
    }

    #[test]
    fn the_same_event_changes_nothing_in_flight() {
        for status in [Status::Pending, Status::Processing, Status::Failed] {
            assert_eq!(
                disposition(&event("e1"), &snapshot(status, 2, &FIRST_RETRY)),
                Disposition::Superseded
            );
        }
        assert_eq!(
            disposition(&event("e1"), &snapshot(Status::Processing, 0, &E1)),
            Disposition::InFlight
        );
    }

    #[test]
    fn a_redelivery_takes_over_the_claim_of_its_message() {
        assert_eq!(
            disposition(&again(event("e1")), &snapshot(Status::Processing, 0, &E1)),
            Disposition::Claim
        );
        assert_eq!(
            disposition(&again(message(0, 1)), &snapshot(Status::Processing, 1, &FIRST_RETRY)),
            Disposition::Claim
        );
        assert_eq!(
            disposition(&again(message(0, 0)), &snapshot(Status::Processing, 0, &E1)),
            Disposition::InFlight
        );
    }

    #[test]
    fn only_the_claim_of_a_process_that_is_gone_is_taken_over() {
        let owned = |owner_is_gone| JobSnapshot {
            owner_is_gone: Some(owner_is_gone),
            ..snapshot(Status::Processing, 0, &E1)
        };
        for arrival in [event("e1"), again(event("e1")), message(0, 0), again(message(0, 0))] {
            let living = disposition(&arrival, &owned(false));
            assert_eq!(living, Disposition::InFlight, "{arrival:?}");
            assert_eq!(disposition(&arrival, &owned(true)), Disposition::Claim, "{arrival:?}");
        }
    }

    #[test]
    fn a_copy_of_a_settled_message_needs_no_answer() {
        let settled = |status| snapshot(status, 0, &E1);
        assert_eq!(disposition(&event("e1"), &settled(Status::Failed)), Disposition::Superseded);
        let completed = disposition(&event("e1"), &settled(Status::Completed));
        assert_eq!(completed, Disposition::AlreadyCompleted);
    }

    #[test]
    fn a_redelivery_of_a_settled_message_is_answered_from_the_ledger() {
        assert_eq!(
            disposition(&again(event("e1")), &snapshot(Status::Pending, 1, &E1)),
            Disposition::Settled
        );
        assert_eq!(
            disposition(&again(event("e1")), &snapshot(Status::Failed, 0, &E1)),
            Disposition::Settled
        );
        assert_eq!(
            disposition(&again(message(0, 1)), &snapshot(Status::Pending, 2, &FIRST_RETRY)),
            Disposition::Settled
        );
        assert_eq!(
            disposition(&again(message(0, 1)), &snapshot(Status::Failed, 1, &FIRST_RETRY)),
            Disposition::Settled
        );
    }

    #[test]
    fn a_released_job_is_claimed_by_its_message() {
        assert_eq!(
            disposition(&again(event("e1")), &snapshot(Status::Pending, 0, &E1)),
            Disposition::Claim
        );
        assert_eq!(
            disposition(&again(message(0, 1)), &snapshot(Status::Pending, 1, &FIRST_RETRY)),
            Disposition::Claim
        );
    }

    #[test]
    fn an_event_outlives_a_request_that_makes_no_attempt() {
        static REQUEST: Claimant = Claimant::Operator(Uuid::from_u128(9));
        assert_eq!(
            disposition(&event("e1"), &snapshot(Status::Processing, 0, &REQUEST)),
            Disposition::InFlight
        );
        assert_eq!(
            disposition(&event("e1"), &snapshot(Status::Pending, 0, &REQUEST)),
            Disposition::Claim,
            "it was released"
        );
        for status in [Status::Processing, Status::Pending] {
            assert_eq!(
                disposition(&event("e1"), &snapshot(status, 1, &REQUEST)),
                Disposition::Superseded,
                "its message is in a tier"
            );
        }
    }

    #[test]
    fn a_message_of_another_attempt_or_run_is_late() {
        assert_eq!(
            disposition(&message(0, 1), &snapshot(Status::Pending, 2, &E1)),
            Disposition::Superseded
        );
        let second_run = JobSnapshot { run: 1, ..snapshot(Status::Pending, 1, &E1) };
        assert_eq!(disposition(&message(0, 1), &second_run), Disposition::Superseded);
        assert_eq!(disposition(&message(1, 1), &second_run), Disposition::Claim);
        assert_eq!(
            disposition(&message(None, 1), &second_run),
            Disposition::Claim,
            "without a run, the message is for the current one"
        );
    }

    #[test]
    fn an_early_message_waits() {
        let wait = Duration::from_secs(3);
        let early = JobSnapshot { due_in: wait, ..snapshot(Status::Pending, 1, &E1) };
        assert_eq!(disposition(&message(0, 1), &early), Disposition::NotDue(wait));
    }

    #[test]
    fn a_claim_beyond_its_lease_is_taken_over() {
        static OTHER: Claimant = message_claimant(0);
        let stale = JobSnapshot { is_stale: true, ..snapshot(Status::Processing, 1, &OTHER) };
        assert_eq!(disposition(&message(0, 1), &stale), Disposition::Claim);
        let stale = JobSnapshot { is_stale: true, ..snapshot(Status::Processing, 0, &E1) };
        assert_eq!(disposition(&event("e1"), &stale), Disposition::Claim);
    }

    #[test]
    fn a_message_for_another_job_is_unknown() {
        let other = JobSnapshot { id: Uuid::from_u128(9), ..snapshot(Status::Pending, 1, &E1) };
        assert_eq!(disposition(&message(0, 1), &other), Disposition::Unknown);
    }
}
