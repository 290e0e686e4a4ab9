//! The pure parts of a job: parse its event, merge it into the signup, encode the operations of its
//! call, decide, and encode its outcome. No broker, database or network.
//!
//! `pure N` handles N jobs, and prints the allocations per job and the bytes that they allocate.
//! `./dev bench pure` runs it in callgrind, for the instructions per job.

use std::{hint::black_box, sync::Arc};

use chrono::{DateTime, Utc};
use customerio_sync::{
    broker::Message,
    config::Config,
    customerio::CustomerIo,
    event::{EventType, RawEvent, parse},
    job::{ClaimedJob, Job, JobReport, Outcome, Signup, SyncPhase},
    retry::{Ladder, decide},
    runtime::trace::SpanLink,
};
use uuid::Uuid;

const SUBMITTED: &[u8] = br#"{
    "event_id": "01951b5e-8f2a-7c3d-9e4f-5a6b7c8d9e0f",
    "occurred_at": "2025-02-18T12:00:00.123456Z",
    "signup_id": "01951b5e-8f2a-7c3d-9e4f-000000000001", "operator_id": "op-7",
    "operator_name": "Operator 7",
    "customer": { "id": "sample-77", "email": "sample-77@example.com", "first_name": "Sample",
        "last_name": "Person 77", "phone": "+15550000077", "state": "PA" },
    "attributes": { "plan": "gold", "visits": 27 }
}"#;
const CONFIRMED: &[u8] = br#"{
    "event_id": "01951b5e-8f2a-7c3d-9e4f-5a6b7c8d9e1f",
    "occurred_at": "2025-02-18T12:01:00.123456Z",
    "signup_id": "01951b5e-8f2a-7c3d-9e4f-000000000001", "extraction_id": "ex-77",
    "customer": { "id": "sample-77", "email": "sample-77@example.com", "first_name": "Sample",
        "last_name": "Person 77", "phone": "+15550000077", "state": "PA" },
    "bet_slip": { "bet_amount": 25.5, "team_bet_on": "Lakers", "odds": "+150", "confidence": 0.97 }
}"#;

/// What the jobs share.
struct Pure {
    client: CustomerIo,
    ladder: Ladder,
    now: DateTime<Utc>,
}

impl Pure {
    fn new() -> Self {
        let config = Config::load(None, std::iter::empty()).expect("the defaults are valid");
        let metrics = Arc::default();
        let client = CustomerIo::new(&config.customerio, &config.tls, config.breaker, metrics);
        Self {
            client: client.expect("a client without credentials"),
            ladder: config.retry.delays,
            now: DateTime::from_timestamp(1_739_880_120, 0).expect("a time"),
        }
    }

    /// Handles one event of each type of a signup.
    fn run(&self) {
        let mut signup = Signup::default();
        for (event_type, body) in
            [(EventType::Submitted, SUBMITTED), (EventType::Confirmed, CONFIRMED)]
        {
            self.run_job(&mut signup, event_type, black_box(body));
        }
    }

    fn run_job(&self, signup: &mut Signup, event_type: EventType, body: &[u8]) {
        let event = parse(RawEvent::new(event_type, body)).expect("a valid event");
        signup.apply(&event, event.occurred_at.expect("the event has its time"));
        let job = Job {
            id: Uuid::from_u128(7),
            signup_id: event.signup_id,
            phase: SyncPhase::of(&event.details),
            run: 0,
            attempt: 0,
            max_attempts: self.ladder.max_attempts(),
            manual_retry: false,
            occurred_at: self.now,
            created_at: self.now,
            first_failed_at: None,
            traceparent: None,
            tracestate: None,
        };
        let claimed = ClaimedJob { job, signup: signup.clone() };
        black_box(self.client.prepare(&claimed, SpanLink::default()));
        let report = JobReport {
            verdict: decide(Outcome::Accepted, 0, claimed.job.max_attempts, &self.ladder),
            job: claimed.job,
            contact_id: signup.customer.id.clone(),
            origin: None,
            mock: false,
            at: self.now,
        };
        black_box(Message::outcome(&report)).expect("the job has ended");
    }
}

fn main() {
    let argument = std::env::args().nth(1).and_then(|argument| argument.parse::<u64>().ok());
    let jobs = argument.expect("the number of jobs");
    let pure = Pure::new();
    // What is built at the first use.
    pure.run();
    let used = allocation_counter::measure(|| (0..jobs / 2).for_each(|_| pure.run()));
    let per_job = |total: u64| total as f64 / jobs as f64;
    println!("{} {}", per_job(used.count_total), per_job(used.bytes_total));
}
