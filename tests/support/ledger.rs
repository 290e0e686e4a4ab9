//! Inputs for tests that call the ledger directly.

use std::time::Duration;

use customerio_sync::{
    event::{self, EventType, RawEvent},
    job::{Attempt, Outcome, Verdict},
    ledger::{Arrival, ClaimOutcome, Settlement, Source},
    runtime::trace::TraceContext,
};
use serde_json::Value;

/// The arrival of an event.
pub(crate) fn arrival(event: &Value, redelivered: bool) -> Arrival {
    let body = event.to_string();
    let event_type = match event.get("bet_slip") {
        Some(_) => EventType::Confirmed,
        None => EventType::Submitted,
    };
    let raw = RawEvent::new(event_type, body.as_bytes());
    Arrival {
        source: Source::Event(Box::new(event::parse(raw).expect("valid"))),
        redelivered,
        trace: TraceContext::default(),
    }
}

/// Settles a claimed job as accepted.
pub(crate) fn completion(outcome: &ClaimOutcome) -> Settlement {
    let ClaimOutcome::Claimed(claimed) = outcome else { panic!("claimed, not {outcome:?}") };
    let attempt = Attempt {
        started_at: chrono::Utc::now(),
        duration: Duration::from_millis(1),
        http_status: Some(200),
        outcome: Outcome::Accepted,
        mock: false,
        warning: None,
    };
    Settlement {
        job: claimed.job.clone(),
        contact_id: Some("c".to_owned()),
        origin: None,
        attempt,
        verdict: Verdict::Complete,
    }
}
