use super::*;
use crate::{
    job::{ErrorType, Failure, Outcome},
    retry::{Ladder, Verdict, decide},
};
use std::collections::{BinaryHeap, VecDeque};

fn config() -> Config {
    Config {
        failures_in_a_row: NonZeroU32::new(10).expect("not zero"),
        probe_after: Duration::from_secs(1),
        probe_at_least_every: Duration::from_secs(60),
    }
}

/// A gate with a clock of its own.
struct Clocked {
    core: Core,
    now: Instant,
}

impl Clocked {
    fn new() -> Self {
        Self { core: Core::new(config()), now: Instant::now() }
    }

    fn record(&mut self, called: Called, is_probe: bool) {
        self.core.record(called, is_probe, self.now, Utc::now());
    }

    fn ask(&mut self) -> Told {
        self.core.ask(self.now)
    }
}

const GO: Told = Told::Go { limit: usize::MAX };
const PROBE: Told = Told::Probe { reason: GateReason::Outage };

fn shut() -> Clocked {
    let mut gate = Clocked::new();
    (0..10).for_each(|_| gate.record(Called::Failed, false));
    gate
}

#[test]
fn ten_failures_in_a_row_shut_it_and_an_answer_between_them_does_not() {
    let mut gate = Clocked::new();
    (0..9).for_each(|_| gate.record(Called::Failed, false));
    gate.record(Called::Answered, false);
    (0..9).for_each(|_| gate.record(Called::Failed, false));
    assert_eq!(gate.ask(), GO);
    gate.record(Called::Failed, false);
    assert!(matches!(gate.ask(), Told::Wait(Some(_))));
}

#[test]
fn half_of_fifty_shut_it() {
    let mut gate = Clocked::new();
    for _ in 0..24 {
        gate.record(Called::Failed, false);
        gate.record(Called::Answered, false);
    }
    assert_eq!(gate.ask(), GO);
    gate.record(Called::Failed, false);
    assert!(matches!(gate.ask(), Told::Wait(Some(_))));
}

#[test]
fn refused_credentials_shut_it_at_once() {
    let mut gate = Clocked::new();
    gate.record(Called::Refused, false);
    assert_eq!(gate.core.view().reason, Some(GateReason::Credentials));
}

#[test]
fn one_probes_at_a_time_with_growing_pauses() {
    let mut gate = shut();
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        let Told::Wait(Some(until)) = gate.ask() else { panic!("it waits") };
        assert_eq!((until - gate.now).as_secs(), pause);
        gate.now = until;
        assert_eq!(gate.ask(), PROBE);
        assert_eq!(gate.ask(), Told::Wait(None), "another has to wait");
        gate.record(Called::Failed, true);
    }
}

#[test]
fn a_probe_that_comes_to_nothing_lets_another_probe() {
    let mut gate = shut();
    gate.now += Duration::from_secs(1);
    assert_eq!(gate.ask(), PROBE);
    gate.core.probe_came_to_nothing();
    assert_eq!(gate.ask(), PROBE);
}

#[test]
fn the_flow_ramps_up_after_a_probe_that_went_through() {
    let mut gate = shut();
    gate.now += Duration::from_secs(1);
    gate.ask();
    gate.record(Called::Failed, false);
    assert_eq!(gate.ask(), Told::Wait(None), "calls from before say nothing");
    gate.record(Called::Answered, true);
    for limit in [1, 2, 4, 8, 16, 32, 64, 128, 256, usize::MAX] {
        assert_eq!(gate.ask(), Told::Go { limit });
        gate.record(Called::Answered, false);
    }
}

#[test]
fn retry_after_keeps_it_shut_for_that_long_and_no_longer_than_15_minutes() {
    let mut gate = Clocked::new();
    gate.core.hold(Duration::from_secs(30), gate.now, Utc::now());
    assert_eq!(gate.core.view().reason, Some(GateReason::Asked));
    assert_eq!(gate.ask(), Told::Wait(Some(gate.now + Duration::from_secs(30))));
    gate.core.hold(Duration::from_secs(10), gate.now, Utc::now());
    assert_eq!(gate.ask(), Told::Wait(Some(gate.now + Duration::from_secs(30))), "the longer one counts");
    gate.core.hold(Duration::from_secs(99_999), gate.now, Utc::now());
    assert_eq!(gate.ask(), Told::Wait(Some(gate.now + Duration::from_secs(900))));
}

/// A job in simulated time: when it is ready, and its attempt.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting(std::cmp::Reverse<Instant>, i32);

#[test]
fn a_two_hour_outage_with_a_hundred_thousand_events_fails_no_job() {
    const JOBS: usize = 100_000;
    const CALL: Duration = Duration::from_millis(50);
    let ladder: Ladder = "5s,25s,125s,625s,3125s".parse().expect("the default ladder");
    let mut gate = Clocked::new();
    let began = gate.now;
    let (outage_begins, outage_ends) = (began + Duration::from_secs(60), began + Duration::from_secs(60 + 7200));
    // Events come evenly over the two hours and a minute; jobs that wait on a tier come back to the end of the queue.
    let event_at = |n: usize| began + Duration::from_secs_f64(7260.0 * n as f64 / JOBS as f64);
    let (mut queue, mut tiers) = (VecDeque::new(), BinaryHeap::new());
    let (mut arrived, mut completed, mut failed, mut attempts) = (0, 0, 0, 0);
    while completed + failed < JOBS {
        while arrived < JOBS && event_at(arrived) <= gate.now {
            queue.push_back(0);
            arrived += 1;
        }
        while tiers.peek().is_some_and(|Waiting(at, _)| at.0 <= gate.now) {
            queue.extend(tiers.pop().map(|Waiting(_, attempt)| attempt));
        }
        let (limit, is_probe) = match gate.ask() {
            Told::Go { limit } => (limit.min(50), false),
            Told::Probe { .. } if queue.is_empty() => {
                gate.core.probe_came_to_nothing();
                (0, true)
            }
            Told::Probe { .. } => (1, true),
            Told::Wait(_) => (0, false),
        };
        let batch: Vec<i32> = queue.drain(..limit.min(queue.len())).collect();
        gate.now += CALL;
        if batch.is_empty() {
            continue;
        }
        let is_out = gate.now >= outage_begins && gate.now < outage_ends;
        gate.record(if is_out { Called::Failed } else { Called::Answered }, is_probe);
        for attempt in batch {
            let failure = Failure { error_type: ErrorType::ServerError, message: String::new() };
            let outcome = if is_out { Outcome::Retryable { failure, retry_after: None } } else { Outcome::Accepted };
            attempts += 1;
            match decide(outcome, attempt, 5, &ladder) {
                Verdict::Complete => completed += 1,
                Verdict::Retry { tier, .. } => {
                    tiers.push(Waiting(std::cmp::Reverse(gate.now + tier.delay), attempt + 1))
                }
                Verdict::Fail { .. } => failed += 1,
            }
        }
    }
    assert_eq!((completed, failed), (JOBS, 0));
    assert!(attempts < JOBS + 1000, "{attempts} calls for {JOBS} jobs: the outage cost few attempts");
}
