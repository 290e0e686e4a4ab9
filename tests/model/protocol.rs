//! The protocol of one job as a state machine: its messages, two replicas, the ledger and the
//! outbox. docs/model.md explains the steps and where the code takes them.
//!
//! One step of the model is one transaction of the ledger, or one message to or from RabbitMQ.
//! Everything between two steps may be interrupted by a crash.

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Model, Property};

/// Retries per run.
const ATTEMPTS_MAX: u8 = 1;
/// Deliveries that RabbitMQ counts before it gives a message up.
const DELIVERIES_MAX: u8 = 1;
/// Equal messages that may wait at a time. More copies add states but no behaviour.
const COPIES_MAX: u8 = 2;

/// A deviation from the protocol that the checker has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A settlement does not compare the claim.
    NoFence,
    /// The delivery is acknowledged when the job is claimed.
    EarlyAcknowledgement,
    /// A delivery whose claim was lost is acknowledged.
    LostClaimAcknowledged,
    /// A redelivery takes over the claim of a living process.
    LivingClaimTakenOver,
    /// What must follow is published after the commit, and not on record.
    NoOutbox,
    /// The claim is not checked again when the call is due.
    NoRecheck,
    /// A job that RabbitMQ gave up has no outcome.
    GivenUpWithoutOutcome,
    /// Retries have no limit.
    NoLimit,
}

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Message {
    /// The job, for the event with this number.
    Event(u8),
    /// One attempt of a run.
    Attempt { run: u8, attempt: u8 },
}

/// A message that waits in a work queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ready {
    message: Message,
    /// Deliveries that RabbitMQ has counted.
    deliveries: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Status {
    Pending,
    Processing,
    Completed,
    Failed,
}

/// The owner of a claim: a replica in one of its lives. It has one batch at a time; two batches of
/// a replica behave as two replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Owner {
    replica: usize,
    life: u8,
}

/// The message that claimed the job last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Claimant {
    Message(Message),
    Operator,
}

/// The row of the job.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Job {
    status: Status,
    run: u8,
    attempt: u8,
    event: u8,
    /// The events before that one, one bit each.
    earlier: u8,
    owner: Option<Owner>,
    claimant: Option<Claimant>,
}

/// A message that must follow a committed change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Owed {
    Retry { run: u8, attempt: u8 },
    Outcome,
}

/// The step that a replica has reached with a message. An operator's request has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    Claimed {
        run: u8,
        attempt: u8,
        owner: Owner,
    },
    Calling {
        run: u8,
        attempt: u8,
        owner: Owner,
    },
    /// Committed; what must follow is published next, if there is no outbox.
    Settled {
        owed: Option<Owed>,
    },
    /// The job is owned by a living process: the message goes to a tier.
    Waiting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Accepted,
    Retryable,
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Replica {
    step: Step,
    /// The delivery in flight, unless it is an operator's request, or was acknowledged.
    delivery: Option<Ready>,
    /// Whether the delivery's channel is open.
    channel_is_open: bool,
    life: u8,
}

/// Faults and requests that may still happen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) crashes: [u8; 2],
    pub(crate) lost_channels: u8,
    pub(crate) copies: u8,
    pub(crate) cleanups: u8,
    pub(crate) manual_retries: u8,
    pub(crate) operator_runs: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    job: Option<Job>,
    queue: BTreeMap<Ready, u8>,
    tiers: BTreeSet<Message>,
    replicas: [Replica; 2],
    /// The retries in the outbox, by run and attempt. Outcomes in it have no effect on the job.
    outbox: BTreeSet<(u8, u8)>,
    /// The runs that have ended, one bit each.
    ended: u8,
    /// An end state was committed whose outcome is neither on record nor published.
    lost_outcome: bool,
    /// An operator's retry is committed, and its message not yet published: recovery finds it.
    awaits_recovery: bool,
    /// A call began after its run had ended.
    called_after_end: bool,
    budget: Budget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// RabbitMQ delivers a message, and the replica claims its job.
    Deliver(usize, Ready),
    /// An operator runs the job, which has no delivery.
    RunByOperator(usize),
    StartCall(usize),
    /// The call ends, and is settled. A crash between the two equals one during the call.
    Settle(usize, Outcome),
    Acknowledge(usize),
    /// The message of a job in flight goes to the shortest tier.
    PublishWait(usize),
    /// The outbox publishes a retry. The row may remain, so that it is published again.
    Publish((u8, u8), bool),
    /// The message of a settled job is published without an outbox.
    PublishDirectly(usize),
    LeaveTier(Message),
    Crash(usize),
    LoseChannel(usize),
    Copy(Ready),
    /// RabbitMQ has dead-lettered a message at its delivery limit, and the mirror fails its job.
    GiveUp(Ready),
    Cleanup,
    ManualRetry,
    PublishManualRetry,
}

/// The protocol, with at most one fault.
pub(crate) struct Protocol {
    /// Number of events, which wait at the start.
    pub(crate) events: u8,
    /// Faults and requests that may happen.
    pub(crate) budget: Budget,
    pub(crate) fault: Option<Fault>,
}

impl Protocol {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// What the claim does with a message (`ledger::arrival::disposition`), in one transaction.
    fn claim(&self, state: &mut State, replica: usize, ready: Ready) {
        let message = ready.message;
        let Some(job) = &mut state.job else {
            let Message::Event(event) = message else { return state.acknowledge(replica) };
            let job = Job {
                status: Status::Pending,
                run: 0,
                attempt: 0,
                event,
                earlier: 0,
                owner: None,
                claimant: None,
            };
            state.job = Some(job);
            return self.own(state, replica, Claimant::Message(message));
        };
        let is_claimant = job.claimant == Some(Claimant::Message(message));
        let is_claimed = match message {
            _ if job.status == Status::Completed => false,
            Message::Event(event) if event != job.event && job.earlier & (1 << event) == 0 => {
                job.earlier |= 1 << job.event;
                (job.event, job.run, job.attempt) = (event, job.run + 1, 0);
                (job.status, job.owner) = (Status::Pending, None);
                return self.own(state, replica, Claimant::Message(message));
            }
            Message::Event(event) => {
                let is_awaited =
                    is_claimant || matches!(job.claimant, None | Some(Claimant::Operator));
                event == job.event && is_awaited && job.attempt == 0
            }
            Message::Attempt { run, attempt } => (run, attempt) == (job.run, job.attempt),
        };
        match (is_claimed, job.status) {
            (true, Status::Pending) => self.own(state, replica, Claimant::Message(message)),
            (true, Status::Processing) => {
                let owner = job.owner;
                let is_gone = owner.is_none_or(|one| state.replicas[one.replica].life != one.life);
                let takes_over =
                    self.has(Fault::LivingClaimTakenOver) && is_claimant && ready.deliveries > 0;
                if is_gone || takes_over {
                    self.own(state, replica, Claimant::Message(message));
                } else {
                    state.replicas[replica].step = Step::Waiting;
                }
            }
            _ => state.acknowledge(replica),
        }
    }

    fn own(&self, state: &mut State, replica: usize, claimant: Claimant) {
        let Some(job) = &mut state.job else { return };
        let one = &mut state.replicas[replica];
        let owner = Owner { replica, life: one.life };
        (job.status, job.owner, job.claimant) = (Status::Processing, Some(owner), Some(claimant));
        one.step = Step::Claimed { run: job.run, attempt: job.attempt, owner };
        if self.has(Fault::EarlyAcknowledgement) {
            one.delivery = None;
        }
    }

    /// Settles an attempt (`Ledger::settle`), in one transaction.
    fn settle(&self, state: &mut State, replica: usize, outcome: Outcome) {
        let Step::Calling { run, attempt, owner } = state.replicas[replica].step else { return };
        let Some(job) = &mut state.job else { return };
        if job.owner != Some(owner) && !self.has(Fault::NoFence) {
            return self.lose_claim(state, replica);
        }
        job.owner = None;
        let may_retry = attempt < ATTEMPTS_MAX || self.has(Fault::NoLimit);
        let owed = if outcome == Outcome::Retryable && may_retry {
            (job.status, job.run, job.attempt) = (Status::Pending, run, attempt + 1);
            Owed::Retry { run, attempt: attempt + 1 }
        } else {
            job.status =
                if outcome == Outcome::Accepted { Status::Completed } else { Status::Failed };
            state.ended |= 1 << run;
            Owed::Outcome
        };
        let is_on_record = !self.has(Fault::NoOutbox);
        if let Owed::Retry { run, attempt } = owed
            && is_on_record
        {
            state.outbox.insert((run, attempt));
        }
        state.replicas[replica].step = Step::Settled { owed: (!is_on_record).then_some(owed) };
    }

    /// The message is claimed again: the ledger knows whether it is still needed.
    fn lose_claim(&self, state: &mut State, replica: usize) {
        state.replicas[replica].step = Step::Idle;
        match state.replicas[replica].delivery {
            Some(_) if self.has(Fault::LostClaimAcknowledged) => state.acknowledge(replica),
            // A delivery of a lost channel is dropped: RabbitMQ has requeued it.
            Some(delivery) if state.replicas[replica].channel_is_open => {
                self.claim(state, replica, delivery);
            }
            _ => state.acknowledge(replica),
        }
    }
}

impl State {
    /// The replica is done with its message, which RabbitMQ drops if the channel is open.
    fn acknowledge(&mut self, replica: usize) {
        let one = &mut self.replicas[replica];
        (one.step, one.delivery, one.channel_is_open) = (Step::Idle, None, true);
    }

    fn requeue(&mut self, replica: usize) {
        let one = &self.replicas[replica];
        if let Some(delivery) = one.delivery.filter(|_| one.channel_is_open) {
            let again = Ready { deliveries: delivery.deliveries + 1, ..delivery };
            self.enqueue(again);
        }
    }

    fn enqueue(&mut self, ready: Ready) {
        let count = self.queue.entry(ready).or_default();
        *count = (*count + 1).min(COPIES_MAX);
    }

    fn dequeue(&mut self, ready: Ready) {
        remove_one(&mut self.queue, ready);
    }

    fn add_to_tier(&mut self, message: Message) {
        self.tiers.insert(message);
    }

    /// Whether a message leads to the next attempt of the job, or is on record.
    fn has_message(&self) -> bool {
        let Some(job) = &self.job else { return true };
        let (run, attempt) = (job.run, job.attempt);
        let leads_on = |message: &Message| match *message {
            Message::Event(event) => attempt == 0 && event == job.event,
            Message::Attempt { run: of_run, attempt: of_attempt } => {
                (of_run, of_attempt) == (run, attempt)
            }
        };
        let in_flight = |one: &Replica| {
            one.channel_is_open && one.delivery.is_some_and(|ready| leads_on(&ready.message))
        };
        self.queue.keys().any(|ready| leads_on(&ready.message))
            || self.tiers.iter().any(leads_on)
            || self.replicas.iter().any(in_flight)
            || self.outbox.contains(&(run, attempt))
            || self.awaits_recovery
    }
}

fn remove_one<K: Ord>(counts: &mut BTreeMap<K, u8>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let replica = Replica { step: Step::Idle, delivery: None, channel_is_open: true, life: 0 };
        let ready = |event| Ready { message: Message::Event(event), deliveries: 0 };
        vec![State {
            job: None,
            queue: (1..=self.events).map(|event| (ready(event), 1)).collect(),
            tiers: BTreeSet::new(),
            replicas: [replica.clone(), replica],
            outbox: BTreeSet::new(),
            ended: 0,
            lost_outcome: false,
            awaits_recovery: false,
            called_after_end: false,
            budget: self.budget.clone(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (replica, one) in state.replicas.iter().enumerate() {
            match one.step {
                Step::Idle => {
                    let deliverable = state.queue.keys().filter(|ready| !is_given_up(ready));
                    actions.extend(deliverable.map(|ready| Action::Deliver(replica, *ready)));
                    let is_pending =
                        state.job.as_ref().is_some_and(|job| job.status == Status::Pending);
                    if is_pending && state.budget.operator_runs > 0 {
                        actions.push(Action::RunByOperator(replica));
                    }
                }
                Step::Claimed { .. } => actions.push(Action::StartCall(replica)),
                Step::Calling { .. } => actions.extend(
                    [Outcome::Accepted, Outcome::Retryable, Outcome::Refused]
                        .map(|outcome| Action::Settle(replica, outcome)),
                ),
                Step::Settled { owed: Some(_) } => actions.push(Action::PublishDirectly(replica)),
                Step::Settled { owed: None } => actions.push(Action::Acknowledge(replica)),
                Step::Waiting => actions.push(Action::PublishWait(replica)),
            }
            if one.step != Step::Idle {
                if state.budget.crashes[replica] > 0 {
                    actions.push(Action::Crash(replica));
                }
                if state.budget.lost_channels > 0 && one.delivery.is_some() && one.channel_is_open {
                    actions.push(Action::LoseChannel(replica));
                }
            }
        }
        for &owed in &state.outbox {
            actions.extend([true, false].map(|is_confirmed| Action::Publish(owed, is_confirmed)));
        }
        actions.extend(state.tiers.iter().map(|message| Action::LeaveTier(*message)));
        for ready in state.queue.keys() {
            if state.budget.copies > 0 {
                actions.push(Action::Copy(*ready));
            }
            if is_given_up(ready) {
                actions.push(Action::GiveUp(*ready));
            }
        }
        match state.job.as_ref().map(|job| job.status) {
            Some(Status::Processing) if state.budget.cleanups > 0 => actions.push(Action::Cleanup),
            Some(Status::Failed) if state.budget.manual_retries > 0 => {
                actions.push(Action::ManualRetry);
            }
            _ => {}
        }
        if state.awaits_recovery {
            actions.push(Action::PublishManualRetry);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.apply(&mut state, action);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("every end state has its outcome", |_, state: &State| {
                !state.lost_outcome
            }),
            Property::always("no call after the end of its run", |_, state: &State| {
                !state.called_after_end
            }),
            Property::always(
                "no attempt has two calls at a time",
                |protocol: &Self, state: &State| {
                    // Except after an operator has reset the claim of a call.
                    let was_reset = state.budget.cleanups < protocol.budget.cleanups;
                    let [first, second] = &state.replicas;
                    let attempt_of = |step| match step {
                        Step::Calling { run, attempt, .. } => Some((run, attempt)),
                        _ => None,
                    };
                    let (first, second) = (attempt_of(first.step), attempt_of(second.step));
                    was_reset || first.is_none() || first != second
                },
            ),
            Property::always("attempts are within their limit", |_, state: &State| {
                state.job.as_ref().is_none_or(|job| job.attempt <= ATTEMPTS_MAX)
            }),
            Property::always("an open job has a message", |_, state: &State| {
                let is_owned = |job: &Job| {
                    job.owner.is_some_and(|owner| state.replicas[owner.replica].life == owner.life)
                };
                let has_ended =
                    |job: &Job| matches!(job.status, Status::Completed | Status::Failed);
                state.job.as_ref().is_none_or(|job| has_ended(job) || is_owned(job))
                    || state.has_message()
            }),
            Property::always("an end state of a run is final", |_, state: &State| {
                state.job.as_ref().is_none_or(|job| {
                    matches!(job.status, Status::Completed | Status::Failed)
                        || state.ended & (1 << job.run) == 0
                })
            }),
            Property::sometimes("a job completes after a crash and a retry", |_, state: &State| {
                let job = state.job.as_ref();
                job.is_some_and(|job| job.status == Status::Completed && job.attempt == 1)
                    && state.budget.crashes[0] == 0
            }),
        ]
    }
}

/// Whether RabbitMQ has counted too many deliveries of a message.
fn is_given_up(ready: &Ready) -> bool {
    ready.deliveries > DELIVERIES_MAX
}

impl Protocol {
    #[expect(clippy::too_many_lines, reason = "a table: one entry per step")]
    fn apply(&self, state: &mut State, action: Action) {
        match action {
            Action::Deliver(replica, ready) => {
                state.dequeue(ready);
                state.replicas[replica].delivery = Some(ready);
                self.claim(state, replica, ready);
            }
            Action::RunByOperator(replica) => {
                state.budget.operator_runs -= 1;
                self.own(state, replica, Claimant::Operator);
            }
            Action::StartCall(replica) => self.start_call(state, replica),
            Action::Settle(replica, outcome) => self.settle(state, replica, outcome),
            Action::PublishDirectly(replica) => {
                if let Step::Settled { owed: Some(Owed::Retry { run, attempt }) } =
                    state.replicas[replica].step
                {
                    state.add_to_tier(Message::Attempt { run, attempt });
                }
                state.replicas[replica].step = Step::Settled { owed: None };
            }
            Action::Acknowledge(replica) => state.acknowledge(replica),
            Action::PublishWait(replica) => {
                if let Some(job) = &state.job {
                    let message = Message::Attempt { run: job.run, attempt: job.attempt };
                    state.add_to_tier(message);
                }
                state.replicas[replica].step = Step::Settled { owed: None };
            }
            Action::Publish((run, attempt), is_confirmed) => {
                state.add_to_tier(Message::Attempt { run, attempt });
                if is_confirmed {
                    state.outbox.remove(&(run, attempt));
                }
            }
            Action::LeaveTier(message) => {
                state.tiers.remove(&message);
                state.enqueue(Ready { message, deliveries: 0 });
            }
            Action::Crash(replica) => {
                state.budget.crashes[replica] -= 1;
                state.requeue(replica);
                let one = &mut state.replicas[replica];
                one.life += 1;
                state.lost_outcome |= one.step == Step::Settled { owed: Some(Owed::Outcome) };
                state.acknowledge(replica);
            }
            Action::LoseChannel(replica) => {
                state.budget.lost_channels -= 1;
                state.requeue(replica);
                state.replicas[replica].channel_is_open = false;
            }
            Action::Copy(ready) => {
                state.budget.copies -= 1;
                state.enqueue(Ready { deliveries: 0, ..ready });
            }
            Action::GiveUp(ready) => self.give_up(state, ready),
            Action::Cleanup => {
                state.budget.cleanups -= 1;
                if let Some(job) = &mut state.job {
                    (job.status, job.owner) = (Status::Pending, None);
                }
            }
            Action::ManualRetry => {
                state.budget.manual_retries -= 1;
                state.awaits_recovery = true;
                if let Some(job) = &mut state.job {
                    (job.status, job.claimant) = (Status::Pending, None);
                    (job.run, job.attempt) = (job.run + 1, 0);
                }
            }
            Action::PublishManualRetry => {
                state.awaits_recovery = false;
                if let Some(job) = &state.job {
                    let message = Message::Attempt { run: job.run, attempt: job.attempt };
                    state.enqueue(Ready { message, deliveries: 0 });
                }
            }
        }
    }

    /// Checks the claim again (`BatchClaim::retain_claimed`), and calls.
    fn start_call(&self, state: &mut State, replica: usize) {
        let Step::Claimed { run, attempt, owner } = state.replicas[replica].step else { return };
        let is_owned = state.job.as_ref().is_some_and(|job| job.owner == Some(owner));
        if !is_owned && !self.has(Fault::NoRecheck) {
            return self.lose_claim(state, replica);
        }
        state.called_after_end |= state.ended & (1 << run) != 0;
        state.replicas[replica].step = Step::Calling { run, attempt, owner };
    }

    /// Fails the job of a message that RabbitMQ gave up (`ledger::failures::fail_given_up`).
    fn give_up(&self, state: &mut State, ready: Ready) {
        state.dequeue(ready);
        let Some(job) = &mut state.job else { return };
        let is_open = matches!(job.status, Status::Pending | Status::Processing);
        let is_current = match ready.message {
            Message::Event(_) => {
                job.claimant == Some(Claimant::Message(ready.message))
                    && (job.status == Status::Processing || job.attempt == 0)
            }
            Message::Attempt { run, attempt } => (run, attempt) == (job.run, job.attempt),
        };
        if is_open && is_current {
            (job.status, job.owner) = (Status::Failed, None);
            state.ended |= 1 << job.run;
            state.lost_outcome |= self.has(Fault::GivenUpWithoutOutcome);
        }
    }
}
