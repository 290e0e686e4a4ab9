//! What a message that arrives means for its job: a pure decision on the job as it stands.

use std::time::Duration;

use uuid::Uuid;

use crate::{
    event::{Details, Event},
    job::{JobMessage, Status, SyncPhase, Ticket},
};

/// A message for a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// What it says.
    pub source: Source,
    /// Whether the broker has delivered it before.
    pub redelivered: bool,
    /// The trace it belongs to.
    pub traceparent: Option<String>,
}

/// How the claimant begins that is no message.
const OPERATOR: &str = "operator:";

/// Where a message came from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// An upstream service.
    Event(Box<Event>),
    /// A delay tier, or an operator's retry.
    Job(JobMessage),
    /// An operator who wants the job to be run now, without a message.
    Operator {
        /// The try that is to be made.
        message: JobMessage,
        /// Tells this order from others.
        id: Uuid,
    },
}

impl Arrival {
    /// The signup it is about.
    pub fn signup_id(&self) -> Uuid {
        match &self.source {
            Source::Event(event) => event.signup_id,
            Source::Job(message) | Source::Operator { message, .. } => message.signup_id,
        }
    }

    /// The phase it is about.
    pub fn phase(&self) -> SyncPhase {
        match &self.source {
            Source::Event(event) => match event.details {
                Details::Submitted { .. } => SyncPhase::Initial,
                Details::Confirmed { .. } => SyncPhase::Enriched,
            },
            Source::Job(message) | Source::Operator { message, .. } => message.phase,
        }
    }

    /// What the job remembers of the message that claimed it.
    pub(super) fn claimant(&self, run: i32) -> String {
        match &self.source {
            Source::Event(event) => format!("event:{}", event.id),
            Source::Job(JobMessage { job_id, attempt, .. }) => {
                Ticket { job_id: *job_id, run, attempt: *attempt }.to_string()
            }
            Source::Operator { id, .. } => format!("{OPERATOR}{id}"),
        }
    }
}

/// A job as it stands when a message for it arrives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Standing<'a> {
    pub(super) id: Uuid,
    pub(super) status: Status,
    pub(super) run: i32,
    pub(super) attempt: i32,
    /// The event that made it, or started it afresh.
    pub(super) event_id: &'a str,
    /// The events that did so before.
    pub(super) earlier_events: &'a [String],
    pub(super) claimed_by: Option<&'a str>,
    /// Whether its claim is older than the lease.
    pub(super) is_stale: bool,
    /// Time until it is due; zero when it is.
    pub(super) due_in: Duration,
}

/// What a message means for its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Claim it for the try it stands at.
    Take,
    /// Claim it for the first try of a new run.
    Restart,
    /// This very message was settled before; what follows from that may not have been published.
    Settled,
    /// It is done, by another message.
    AlreadyCompleted,
    /// Another message has taken it further; this one is late.
    Superseded,
    /// Too early by this much.
    NotDue(Duration),
    /// Another message holds it.
    InFlight,
    /// The message names a job that the signup does not have.
    Unknown,
}

/// Decides what `arrival` means for the job `standing`.
pub(super) fn meaning(arrival: &Arrival, standing: &Standing<'_>) -> Meaning {
    let claimant = arrival.claimant(match &arrival.source {
        Source::Job(JobMessage { run: Some(run), .. }) => *run,
        _ => standing.run,
    });
    let is_claimant = standing.claimed_by == Some(claimant.as_str());
    match &arrival.source {
        Source::Job(message) | Source::Operator { message, .. }
            if message.job_id != standing.id =>
        {
            Meaning::Unknown
        }
        _ if standing.status == Status::Completed && !is_claimant => Meaning::AlreadyCompleted,
        _ if standing.status == Status::Completed => Meaning::Settled,
        Source::Event(event) if standing.earlier_events.contains(&event.id) => Meaning::Superseded,
        Source::Event(event) if event.id != standing.event_id => Meaning::Restart,
        Source::Event(_) => of_same_event(arrival, standing, is_claimant),
        Source::Job(message) | Source::Operator { message, .. } => {
            of_job_message(arrival, *message, standing, is_claimant)
        }
    }
}

/// The event that made the job arrives again.
fn of_same_event(arrival: &Arrival, standing: &Standing<'_>, is_claimant: bool) -> Meaning {
    // An operator's order brings no message of its own, so the job waits for its event still if
    // nothing comes of it.
    let is_awaited = is_claimant || standing.claimed_by.is_none_or(|by| by.starts_with(OPERATOR));
    match standing.status {
        // Given back, or never claimed.
        Status::Pending if is_awaited && standing.attempt == 0 => Meaning::Take,
        Status::Processing if is_awaited && standing.attempt == 0 => {
            of_claimed(arrival, standing, is_claimant)
        }
        Status::Pending | Status::Failed if is_claimant => Meaning::Settled,
        _ => Meaning::Superseded,
    }
}

fn of_job_message(
    arrival: &Arrival,
    message: JobMessage,
    standing: &Standing<'_>,
    is_claimant: bool,
) -> Meaning {
    let is_current =
        message.attempt == standing.attempt && message.run.is_none_or(|run| run == standing.run);
    match standing.status {
        Status::Pending if is_current && standing.due_in > Duration::ZERO => {
            Meaning::NotDue(standing.due_in)
        }
        Status::Pending if is_current => Meaning::Take,
        Status::Processing if is_current => of_claimed(arrival, standing, is_claimant),
        Status::Pending | Status::Failed if is_claimant => Meaning::Settled,
        _ => Meaning::Superseded,
    }
}

/// The job is claimed for the try that this message asks for. A redelivery of the claiming message
/// means that its consumer is gone; any other message waits until the claim has outlived its lease.
fn of_claimed(arrival: &Arrival, standing: &Standing<'_>, is_claimant: bool) -> Meaning {
    if standing.is_stale || (is_claimant && arrival.redelivered) {
        Meaning::Take
    } else {
        Meaning::InFlight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventType, RawEvent, parse};

    const JOB: Uuid = Uuid::from_u128(1);
    const SIGNUP: Uuid = Uuid::from_u128(2);

    fn event(id: &str) -> Arrival {
        let body = format!(
            r#"{{"event_id":"{id}","signup_id":"{SIGNUP}","operator_id":"op",
                "customer":{{"email":"a@example.com"}}}}"#
        );
        let raw = RawEvent {
            event_type: EventType::Submitted,
            content_type: None,
            message_id: None,
            body: body.as_bytes(),
        };
        let event = parse(raw).expect("a valid event");
        Arrival { source: Source::Event(Box::new(event)), redelivered: false, traceparent: None }
    }

    fn message(run: impl Into<Option<i32>>, attempt: i32) -> Arrival {
        let message = JobMessage {
            job_id: JOB,
            signup_id: SIGNUP,
            phase: SyncPhase::Initial,
            run: run.into(),
            attempt,
        };
        Arrival { source: Source::Job(message), redelivered: false, traceparent: None }
    }

    fn again(arrival: Arrival) -> Arrival {
        Arrival { redelivered: true, ..arrival }
    }

    /// A job of event `e1` in its first run, last claimed by `claimed_by`.
    fn standing(status: Status, attempt: i32, claimed_by: &'static str) -> Standing<'static> {
        Standing {
            id: JOB,
            status,
            run: 0,
            attempt,
            event_id: "e1",
            earlier_events: &[],
            claimed_by: Some(claimed_by),
            is_stale: false,
            due_in: Duration::ZERO,
        }
    }

    const E1: &str = "event:e1";
    const FIRST_RETRY: &str = "00000000-0000-0000-0000-000000000001:0:1";

    #[test]
    fn a_completed_job_is_not_made_again() {
        let done = standing(Status::Completed, 0, E1);
        assert_eq!(meaning(&event("e2"), &done), Meaning::AlreadyCompleted);
        assert_eq!(meaning(&message(0, 1), &done), Meaning::AlreadyCompleted);
        assert_eq!(
            meaning(&again(event("e1")), &done),
            Meaning::Settled,
            "the crash came before the acknowledgement"
        );
    }

    #[test]
    fn a_new_event_starts_an_open_job_afresh() {
        for status in [Status::Pending, Status::Processing, Status::Failed] {
            assert_eq!(meaning(&event("e2"), &standing(status, 3, FIRST_RETRY)), Meaning::Restart);
        }
    }

    #[test]
    fn an_event_that_was_overtaken_changes_nothing() {
        let seen = ["e0".to_owned()];
        for status in [Status::Pending, Status::Processing, Status::Failed] {
            let overtaken = Standing { earlier_events: &seen, ..standing(status, 3, FIRST_RETRY) };
            assert_eq!(meaning(&again(event("e0")), &overtaken), Meaning::Superseded);
            assert_eq!(meaning(&event("e2"), &overtaken), Meaning::Restart);
        }
    }

    #[test]
    fn the_same_event_changes_nothing_that_is_under_way() {
        for status in [Status::Pending, Status::Processing, Status::Failed] {
            assert_eq!(
                meaning(&event("e1"), &standing(status, 2, FIRST_RETRY)),
                Meaning::Superseded
            );
        }
        assert_eq!(meaning(&event("e1"), &standing(Status::Processing, 0, E1)), Meaning::InFlight);
    }

    #[test]
    fn a_redelivery_takes_over_the_claim_of_the_same_message() {
        assert_eq!(
            meaning(&again(event("e1")), &standing(Status::Processing, 0, E1)),
            Meaning::Take
        );
        assert_eq!(
            meaning(&again(message(0, 1)), &standing(Status::Processing, 1, FIRST_RETRY)),
            Meaning::Take
        );
        assert_eq!(
            meaning(&again(message(0, 0)), &standing(Status::Processing, 0, E1)),
            Meaning::InFlight
        );
    }

    #[test]
    fn a_redelivery_of_a_settled_message_is_told_again_from_the_ledger() {
        assert_eq!(
            meaning(&again(event("e1")), &standing(Status::Pending, 1, E1)),
            Meaning::Settled
        );
        assert_eq!(
            meaning(&again(event("e1")), &standing(Status::Failed, 0, E1)),
            Meaning::Settled
        );
        assert_eq!(
            meaning(&again(message(0, 1)), &standing(Status::Pending, 2, FIRST_RETRY)),
            Meaning::Settled
        );
        assert_eq!(
            meaning(&again(message(0, 1)), &standing(Status::Failed, 1, FIRST_RETRY)),
            Meaning::Settled
        );
    }

    #[test]
    fn a_job_that_was_given_back_is_taken_by_its_message() {
        assert_eq!(meaning(&again(event("e1")), &standing(Status::Pending, 0, E1)), Meaning::Take);
        assert_eq!(
            meaning(&again(message(0, 1)), &standing(Status::Pending, 1, FIRST_RETRY)),
            Meaning::Take
        );
    }

    #[test]
    fn an_event_is_not_given_up_for_an_order_that_may_come_to_nothing() {
        const ORDER: &str = "operator:00000000-0000-0000-0000-000000000009";
        assert_eq!(
            meaning(&event("e1"), &standing(Status::Processing, 0, ORDER)),
            Meaning::InFlight
        );
        assert_eq!(
            meaning(&event("e1"), &standing(Status::Pending, 0, ORDER)),
            Meaning::Take,
            "it was given back"
        );
        for status in [Status::Processing, Status::Pending] {
            assert_eq!(
                meaning(&event("e1"), &standing(status, 1, ORDER)),
                Meaning::Superseded,
                "a tier has its message"
            );
        }
    }

    #[test]
    fn a_message_of_another_attempt_or_run_is_late() {
        assert_eq!(meaning(&message(0, 1), &standing(Status::Pending, 2, E1)), Meaning::Superseded);
        let second_run = Standing { run: 1, ..standing(Status::Pending, 1, E1) };
        assert_eq!(meaning(&message(0, 1), &second_run), Meaning::Superseded);
        assert_eq!(meaning(&message(1, 1), &second_run), Meaning::Take);
        assert_eq!(
            meaning(&message(None, 1), &second_run),
            Meaning::Take,
            "without a run, the current one is meant"
        );
    }

    #[test]
    fn a_message_that_is_early_waits() {
        let wait = Duration::from_secs(3);
        let early = Standing { due_in: wait, ..standing(Status::Pending, 1, E1) };
        assert_eq!(meaning(&message(0, 1), &early), Meaning::NotDue(wait));
    }

    #[test]
    fn a_claim_that_outlived_its_lease_is_taken_over() {
        let stale = Standing { is_stale: true, ..standing(Status::Processing, 1, "somebody") };
        assert_eq!(meaning(&message(0, 1), &stale), Meaning::Take);
        let stale = Standing { is_stale: true, ..standing(Status::Processing, 0, E1) };
        assert_eq!(meaning(&event("e1"), &stale), Meaning::Take);
    }

    #[test]
    fn a_message_for_another_job_is_unknown() {
        let other = Standing { id: Uuid::from_u128(9), ..standing(Status::Pending, 1, E1) };
        assert_eq!(meaning(&message(0, 1), &other), Meaning::Unknown);
    }
}
