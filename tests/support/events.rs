//! Bodies of events.

use serde_json::{Value, json};
use uuid::Uuid;

/// A person signed up.
pub(crate) fn submitted(signup: Uuid) -> Value {
    json!({
        "event_id": Uuid::new_v4(),
        "occurred_at": "2025-02-18T12:00:00Z",
        "signup_id": signup,
        "operator_id": "op-12",
        "operator_name": "Acme Sports",
        "customer": {
            "id": contact(signup),
            "email": format!("{signup}@example.com"),
            "first_name": "Ann",
            "last_name": "Lee",
            "phone": "+15550100",
            "state": "NJ",
        },
        "attributes": { "plan": "gold" },
    })
}

/// The bet slip was confirmed.
pub(crate) fn confirmed(signup: Uuid) -> Value {
    json!({
        "event_id": Uuid::new_v4(),
        "occurred_at": "2025-02-18T12:03:00Z",
        "signup_id": signup,
        "extraction_id": "ex-5",
        "bet_slip": {
            "bet_amount": 50.0,
            "team_bet_on": "Lakers",
            "odds": "+150",
            "confidence": 0.97,
        },
    })
}

/// The person identifier of [`submitted`].
pub(crate) fn contact(signup: Uuid) -> String {
    format!("c-{signup}")
}
