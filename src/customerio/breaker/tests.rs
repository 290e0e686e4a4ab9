#![expect(clippy::disallowed_methods, reason = "the tests start now")]

use super::*;
use crate::{
    job::{Failure, FailureCause, Outcome, Verdict},
    retry::{Ladder, decide},
};
use std::collections::{BinaryHeap, VecDeque};

fn config() -> Config {
    Config {
        failures_in_a_row: NonZeroU32::new(10).expect("not zero"),
        probe_after: Duration::from_secs(1),
        probe_interval_max: Duration::from_secs(60),
    }
}

/// A breaker with a clock of its own.
struct Clocked {
    core: BreakerCore,
    now: Instant,
}

impl Clocked {
    /// A breaker after the ramp of the start.
    fn new() -> Self {
        let mut breaker = Self { core: BreakerCore::new(config()), now: Instant::now() };
        while breaker.admit() != ALLOW {
            breaker.record(CallResult::Answered, false);
        }
        breaker.core.window.clear();
        breaker
    }

    fn record(&mut self, result: CallResult, is_probe: bool) {
        self.core.record(result, is_probe, self.now, Utc::now());
    }

    fn admit(&mut self) -> Admission {
        self.core.admit(self.now)
    }
}

const ALLOW: Admission = Admission::Allow { limit: usize::MAX };
const PROBE: Admission = Admission::Probe { region_request_first: false };

fn opened() -> Clocked {
    let mut breaker = Clocked::new();
    (0..10).for_each(|_| breaker.record(CallResult::Failed, false));
    breaker
}

#[test]
fn ten_failures_in_a_row_open_it_unless_an_answer_comes_between_them() {
    let mut breaker = Clocked::new();
    (0..9).for_each(|_| breaker.record(CallResult::Failed, false));
    breaker.record(CallResult::Answered, false);
    (0..9).for_each(|_| breaker.record(CallResult::Failed, false));
    assert_eq!(breaker.admit(), ALLOW);
    breaker.record(CallResult::Failed, false);
    assert!(matches!(breaker.admit(), Admission::Wait(Some(_))));
}

#[test]
fn it_opens_when_half_of_the_last_fifty_calls_failed() {
    let mut breaker = Clocked::new();
    for _ in 0..24 {
        breaker.record(CallResult::Failed, false);
        breaker.record(CallResult::Answered, false);
    }
    assert_eq!(breaker.admit(), ALLOW);
    breaker.record(CallResult::Failed, false);
    assert!(matches!(breaker.admit(), Admission::Wait(Some(_))));
}

#[test]
fn refused_credentials_open_it_at_once() {
    let mut breaker = Clocked::new();
    breaker.record(CallResult::Refused { failed_job: false }, false);
    assert_eq!(breaker.core.status().reason, Some(BreakerReason::Credentials));
}

#[test]
fn the_first_call_of_a_process_carries_one_job() {
    let mut core = BreakerCore::new(config());
    assert_eq!(core.admit(Instant::now()), Admission::Allow { limit: 1 });
    core.record(CallResult::Answered, false, Instant::now(), Utc::now());
    assert_eq!(core.admit(Instant::now()), Admission::Allow { limit: 2 });
}

#[test]
fn after_three_refused_jobs_no_further_one_is_risked() {
    const REFUSED: CallResult = CallResult::Refused { failed_job: true };
    let mut breaker = Clocked::new();
    breaker.record(REFUSED, false);
    for _ in 0..2 {
        breaker.now += Duration::from_secs(60);
        assert_eq!(breaker.admit(), Admission::Probe { region_request_first: true });
        breaker.record(REFUSED, true);
    }
    breaker.now += Duration::from_secs(86_400);
    assert_eq!(breaker.admit(), Admission::Wait(None));

    breaker.core.probe_now(breaker.now);
    assert_eq!(breaker.admit(), Admission::Probe { region_request_first: true });
    breaker.record(CallResult::WrongRegion, true);
    breaker.now += Duration::from_secs(86_400);
    assert_eq!(breaker.admit(), Admission::Wait(None));

    breaker.core.close();
    assert_eq!(breaker.admit(), Admission::Allow { limit: 1 });
}

#[test]
fn an_answer_between_them_makes_refused_jobs_count_anew() {
    let mut breaker = Clocked::new();
    for _ in 0..5 {
        breaker.record(CallResult::Refused { failed_job: true }, false);
        breaker.now += Duration::from_secs(60);
        assert!(matches!(breaker.admit(), Admission::Probe { .. }));
        breaker.record(CallResult::Answered, true);
    }
}

#[test]
fn one_probe_at_a_time_with_growing_pauses() {
    let mut breaker = opened();
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        let Admission::Wait(Some(until)) = breaker.admit() else { panic!("it waits") };
        assert_eq!((until - breaker.now).as_secs(), pause);
        breaker.now = until;
        assert!(matches!(breaker.admit(), Admission::Probe { .. }));
        assert_eq!(breaker.admit(), Admission::Wait(None), "a second probe waits");
        breaker.record(CallResult::Failed, true);
    }
}

#[test]
fn a_released_probe_lets_another_start() {
    let mut breaker = opened();
    breaker.now += Duration::from_secs(1);
    assert_eq!(breaker.admit(), PROBE);
    breaker.core.release_probe();
    assert_eq!(breaker.admit(), PROBE);
}

#[test]
fn the_rate_ramps_up_after_a_successful_probe() {
    let mut breaker = opened();
    breaker.now += Duration::from_secs(1);
    breaker.admit();
    breaker.record(CallResult::Failed, false);
    assert_eq!(
        breaker.admit(),
        Admission::Wait(None),
        "results of calls from before it opened are ignored"
    );
    breaker.record(CallResult::Answered, true);
    for limit in [1, 2, 4, 8, 16, 32, 64, 128, 256, usize::MAX] {
        assert_eq!(breaker.admit(), Admission::Allow { limit });
        breaker.record(CallResult::Answered, false);
    }
}

#[test]
fn retry_after_keeps_it_open_for_that_long_but_at_most_15_minutes() {
    let mut breaker = Clocked::new();
    breaker.core.pause(Duration::from_secs(30), breaker.now, Utc::now());
    assert_eq!(breaker.core.status().reason, Some(BreakerReason::RetryAfter));
    assert_eq!(breaker.admit(), Admission::Wait(Some(breaker.now + Duration::from_secs(30))));
    breaker.core.pause(Duration::from_secs(10), breaker.now, Utc::now());
    assert_eq!(
        breaker.admit(),
        Admission::Wait(Some(breaker.now + Duration::from_secs(30))),
        "the longer pause counts"
    );
    breaker.core.pause(Duration::from_secs(99_999), breaker.now, Utc::now());
    assert_eq!(breaker.admit(), Admission::Wait(Some(breaker.now + Duration::from_secs(900))));
}

#[test]
fn retry_after_in_the_answer_to_a_probe_is_honoured() {
    let mut breaker = opened();
    breaker.now += Duration::from_secs(1);
    assert_eq!(breaker.admit(), PROBE);
    breaker.core.pause(Duration::from_secs(30), breaker.now, Utc::now());
    breaker.record(CallResult::Failed, true);
    assert_eq!(breaker.admit(), Admission::Wait(Some(breaker.now + Duration::from_secs(30))));
    assert_eq!(breaker.core.status().reason, Some(BreakerReason::RetryAfter));
    breaker.now += Duration::from_secs(30);
    assert_eq!(breaker.admit(), PROBE, "Customer.io named the time of the next call");
}

#[test]
fn in_a_long_outage_few_probes_use_a_job() {
    let mut breaker = opened();
    let mut by_jobs = Vec::new();
    for probe in 1..=200 {
        let Admission::Wait(Some(until)) = breaker.admit() else { panic!("it waits") };
        breaker.now = until;
        let Admission::Probe { region_request_first } = breaker.admit() else {
            panic!("it probes")
        };
        by_jobs.extend((!region_request_first).then_some(probe));
        breaker.record(CallResult::Failed, true);
    }
    assert_eq!(by_jobs, [1, 2, 3, 4, 5, 6, 67, 128, 189], "then one per hour");
}

/// A job in simulated time: when it is ready, and its number of retries.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting(std::cmp::Reverse<Instant>, i32);

/// Number of jobs by their end state, and of attempts, after an outage.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    completed: usize,
    failed: usize,
    attempts: usize,
}

/// Two hours without Customer.io, from the second minute on, in simulated time. `events` events
/// arrive evenly over these hours. Jobs that waited on a tier return to the end of the queue.
fn two_hour_outage(events: usize) -> Ended {
    const CALL: Duration = Duration::from_millis(50);
    let ladder: Ladder = "5s,25s,125s,625s,3125s".parse().expect("the default ladder");
    let mut breaker = Clocked::new();
    let began = breaker.now;
    let outage = began + Duration::from_secs(60)..began + Duration::from_secs(60 + 7200);
    let event_at = |n: usize| began + Duration::from_secs_f64(7260.0 * n as f64 / events as f64);
    let (mut queue, mut tiers) = (VecDeque::new(), BinaryHeap::new());
    let (mut arrived, mut ended) = (0, Ended { completed: 0, failed: 0, attempts: 0 });
    while ended.completed + ended.failed < events {
        while arrived < events && event_at(arrived) <= breaker.now {
            queue.push_back(0);
            arrived += 1;
        }
        while tiers.peek().is_some_and(|Waiting(at, _)| at.0 <= breaker.now) {
            queue.extend(tiers.pop().map(|Waiting(_, attempt)| attempt));
        }
        breaker.now += CALL;
        let admission = if queue.is_empty() { Admission::Wait(None) } else { breaker.admit() };
        let is_out = outage.contains(&breaker.now);
        let result = if is_out { CallResult::Failed } else { CallResult::Answered };
        let (limit, is_probe) = match admission {
            Admission::Allow { limit } => (limit.min(50), false),
            Admission::Probe { region_request_first: true } if is_out => {
                breaker.record(result, true);
                continue;
            }
            Admission::Probe { .. } => (1, true),
            Admission::Wait(_) => continue,
        };
        breaker.record(result, is_probe);
        for attempt in queue.drain(..limit.min(queue.len())) {
            let failure = Failure::new(FailureCause::ServerError, String::new());
            let outcome = if is_out {
                Outcome::Retryable { failure, retry_after: None }
            } else {
                Outcome::Accepted
            };
            ended.attempts += 1;
            match decide(outcome, attempt, 5, &ladder) {
                Verdict::Complete => ended.completed += 1,
                Verdict::Retry { wait, .. } => {
                    tiers.push(Waiting(std::cmp::Reverse(breaker.now + wait), attempt + 1))
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
    assert!(ended.attempts < 101_000, "the outage cost few attempts: {ended:?}");
}

#[test]
fn a_two_hour_outage_fails_no_job_even_if_few_jobs_share_the_probes() {
    for events in [12, 24, 100] {
        let ended = two_hour_outage(events);
        assert_eq!((ended.completed, ended.failed), (events, 0), "{ended:?}");
        assert!(ended.attempts < events + 20, "{ended:?}");
    }
}
