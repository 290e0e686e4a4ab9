//! Generated events: for each signup its submission, then its confirmed bet slip.

#![expect(clippy::disallowed_methods, reason = "an edge: the events are created now")]

use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::event::EventType;

const TEAMS: [&str; 6] = ["Lakers", "Celtics", "Bulls", "Heat", "Knicks", "Nets"];
const STATES: [&str; 5] = ["NJ", "NY", "PA", "MI", "CO"];

/// Returns an endless iterator of events. The customers are `sample-0`, `sample-1` and so on; the
/// signups are new in every run.
pub(super) fn events() -> impl Iterator<Item = (EventType, Value)> {
    (0_usize..).flat_map(|number| {
        let signup_id = Uuid::now_v7();
        [
            (EventType::Submitted, submitted(number, signup_id)),
            (EventType::Confirmed, confirmed(number, signup_id)),
        ]
    })
}

fn customer(number: usize) -> Value {
    json!({
        "id": format!("sample-{number}"),
        "email": format!("sample-{number}@example.com"),
        "first_name": "Sample",
        "last_name": format!("Person {number}"),
        "phone": format!("+1555{:07}", number % 10_000_000),
        "state": STATES[number % STATES.len()],
    })
}

fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true)
}

fn submitted(number: usize, signup_id: Uuid) -> Value {
    json!({
        "event_id": Uuid::now_v7(),
        "occurred_at": now(),
        "signup_id": signup_id,
        "operator_id": format!("op-{}", number % 20),
        "operator_name": format!("Operator {}", number % 20),
        "customer": customer(number),
        "attributes": {
            "plan": if number.is_multiple_of(3) { "gold" } else { "basic" },
            "visits": number % 50,
        },
    })
}

fn confirmed(number: usize, signup_id: Uuid) -> Value {
    json!({
        "event_id": Uuid::now_v7(),
        "occurred_at": now(),
        "signup_id": signup_id,
        "extraction_id": format!("ex-{number}"),
        "bet_slip": {
            "bet_amount": (number % 400) as f64 / 2.0,
            "team_bet_on": TEAMS[number % TEAMS.len()],
            "odds": if number.is_multiple_of(2) { "+150" } else { "-110" },
            "confidence": 0.5 + (number % 50) as f64 / 100.0,
        },
        "customer": customer(number),
    })
}
