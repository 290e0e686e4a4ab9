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
const PROBE: Told = Told::Probe { asks_first: false };

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
        assert!(matches!(gate.ask(), Told::Probe { .. }));
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
    assert_eq!(
        gate.ask(),
        Told::Wait(Some(gate.now + Duration::from_secs(30))),
        "the longer one counts"
    );
    gate.core.hold(Duration::from_secs(99_999), gate.now, Utc::now());
    assert_eq!(gate.ask(), Told::Wait(Some(gate.now + Duration::from_secs(900))));
}

#[test]
fn retry_after_in_the_answer_to_a_probe_is_heeded() {
    let mut gate = shut();
    gate.now += Duration::from_secs(1);
    assert_eq!(gate.ask(), PROBE);
    gate.core.hold(Duration::from_secs(30), gate.now, Utc::now());
    gate.record(Called::Failed, true);
    assert_eq!(gate.ask(), Told::Wait(Some(gate.now + Duration::from_secs(30))));
    assert_eq!(gate.core.view().reason, Some(GateReason::Asked));
    gate.now += Duration::from_secs(30);
    assert_eq!(gate.ask(), PROBE, "it said when to come again");
}

#[test]
fn in_an_outage_that_lasts_few_probes_are_a_jobs() {
    let mut gate = shut();
    let mut by_jobs = Vec::new();
    for probe in 1..=200 {
        let Told::Wait(Some(until)) = gate.ask() else { panic!("it waits") };
        gate.now = until;
        let Told::Probe { asks_first } = gate.ask() else { panic!("it probes") };
        by_jobs.extend((!asks_first).then_some(probe));
        gate.record(Called::Failed, true);
    }
    assert_eq!(by_jobs, [1, 2, 3, 4, 5, 6, 67, 128, 189], "then one an hour");
}

/// A job in simulated time: when it is ready, and its attempt.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting(std::cmp::Reverse<Instant>, i32);

/// What became of the jobs of an outage.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    completed: usize,
    failed: usize,
    tries: usize,
}

/// Two hours without Customer.io, from the second minute on, in simulated time. So many events come
/// evenly over these hours; jobs that wait on a tier come back to the end of the queue.
fn two_hour_outage(events: usize) -> Ended {
    const CALL: Duration = Duration::from_millis(50);
    let ladder: Ladder = "5s,25s,125s,625s,3125s".parse().expect("the default ladder");
    let mut gate = Clocked::new();
    let began = gate.now;
    let outage = began + Duration::from_secs(60)..began + Duration::from_secs(60 + 7200);
    let event_at = |n: usize| began + Duration::from_secs_f64(7260.0 * n as f64 / events as f64);
    let (mut queue, mut tiers) = (VecDeque::new(), BinaryHeap::new());
    let (mut arrived, mut ended) = (0, Ended { completed: 0, failed: 0, tries: 0 });
    while ended.completed + ended.failed < events {
        while arrived < events && event_at(arrived) <= gate.now {
            queue.push_back(0);
            arrived += 1;
        }
        while tiers.peek().is_some_and(|Waiting(at, _)| at.0 <= gate.now) {
            queue.extend(tiers.pop().map(|Waiting(_, attempt)| attempt));
        }
        gate.now += CALL;
        let told = if queue.is_empty() { Told::Wait(None) } else { gate.ask() };
        let is_out = outage.contains(&gate.now);
        let called = if is_out { Called::Failed } else { Called::Answered };
        let (limit, is_probe) = match told {
            Told::Go { limit } => (limit.min(50), false),
            Told::Probe { asks_first: true } if is_out => {
                gate.record(called, true);
                continue;
            }
            Told::Probe { .. } => (1, true),
            Told::Wait(_) => continue,
        };
        gate.record(called, is_probe);
        for attempt in queue.drain(..limit.min(queue.len())) {
            let failure = Failure { error_type: ErrorType::ServerError, message: String::new() };
            let outcome = if is_out {
                Outcome::Retryable { failure, retry_after: None }
            } else {
                Outcome::Accepted
            };
            ended.tries += 1;
            match decide(outcome, attempt, 5, &ladder) {
                Verdict::Complete => ended.completed += 1,
                Verdict::Retry { tier, .. } => {
                    tiers.push(Waiting(std::cmp::Reverse(gate.now + tier.delay), attempt + 1))
                }
                Verdict::Fail { .. } => ended.failed += 1,
            }
        }
    }
    ended
}

#[test]
fn a_two_hour_outage_with_a_hundred_thousand_events_fails_no_job() {
    let ended = two_hour_outage(100_000);
    assert_eq!((ended.completed, ended.failed), (100_000, 0));
    assert!(ended.tries < 101_000, "the outage cost few tries: {ended:?}");
}

#[test]
fn a_two_hour_outage_fails_no_job_where_few_share_the_probes() {
    for events in [12, 24, 100] {
        let ended = two_hour_outage(events);
        assert_eq!((ended.completed, ended.failed), (events, 0), "{ended:?}");
        assert!(ended.tries < events + 20, "{ended:?}");
    }
}
