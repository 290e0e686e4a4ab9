//! Builds the operations of a job, an identify and a tracked event, within Customer.io's documented
//! limits. Pure.
//!
//! A value over its limit fails its job here, with the field and both sizes. Nothing is truncated.

use serde_json::{Map, Value, json};

use super::Identifier;
use crate::job::{ClaimedJob, Failure, FailureCause, Outcome, Signup, SyncPhase, tracked_event_id};

/// Maximum bytes per operation. The documentation says 32 kB without saying whether a kB is 1000 or
/// 1024 bytes; this is the smaller size.
const OPERATION_BYTES_MAX: usize = 32_000;
/// Maximum bytes of a person's `id`.
const ID_BYTES_MAX: usize = 150;
/// Maximum attributes per identify.
const ATTRIBUTES_MAX: usize = 300;
/// Maximum bytes of an attribute's name.
const NAME_BYTES_MAX: usize = 150;
/// Maximum bytes of an attribute's value.
const VALUE_BYTES_MAX: usize = 1000;

/// A job's two operations, ready to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prepared {
    /// The person identifier.
    pub(super) contact_id: String,
    /// Both operations as JSON, separated by a comma.
    pub(super) json: String,
}

/// Prepares a job, or returns the outcome of an attempt that needs no call.
pub(super) fn prepare(claimed: &ClaimedJob, identifier: Identifier) -> Result<Prepared, Outcome> {
    let ClaimedJob { job, signup } = claimed;
    let Some(email) = signup.customer.email.as_deref() else {
        return Err(Outcome::Retryable {
            failure: Failure::new(FailureCause::SignupUnknown, "signup not known yet"),
            retry_after: None,
        });
    };
    let (key, contact_id) = match (identifier, signup.customer.id.as_deref()) {
        (Identifier::Auto | Identifier::Id, Some(id)) => ("id", id),
        (Identifier::Auto | Identifier::Email, _) => ("email", email),
        (Identifier::Id, None) => {
            return Err(Outcome::Refused(Failure::new(
                FailureCause::IdentifierMissing,
                "customer.id is missing, and customerio.identifier is \"id\"",
            )));
        }
    };
    if key == "id" && contact_id.len() > ID_BYTES_MAX {
        return Err(too_large("customer.id", contact_id.len(), ID_BYTES_MAX));
    }
    let attributes = profile(claimed);
    check_attributes(&attributes)?;
    let timestamp = job.occurred_at.timestamp();
    let identify = json!({
        "type": "person", "identifiers": { key: contact_id }, "action": "identify",
        "timestamp": timestamp, "attributes": attributes,
    });
    let event = json!({
        "type": "person", "identifiers": { key: contact_id }, "action": "event",
        "id": tracked_event_id(job.signup_id, job.phase).to_string(),
        "name": job.phase.tracked_event(),
        "timestamp": timestamp, "attributes": event_data(claimed),
    });
    let [identify, event] = [identify.to_string(), event.to_string()];
    for (what, json) in [("the identify", &identify), ("the event", &event)] {
        if json.len() > OPERATION_BYTES_MAX {
            return Err(too_large(what, json.len(), OPERATION_BYTES_MAX));
        }
    }
    Ok(Prepared { contact_id: contact_id.to_owned(), json: format!("{identify},{event}") })
}

/// The attributes of the identify. An absent field is left out, since null would remove the
/// attribute.
fn profile(claimed: &ClaimedJob) -> Map<String, Value> {
    let ClaimedJob { job, signup } = claimed;
    let customer = &signup.customer;
    let mut attributes = signup.attributes.clone();
    let fields = [
        ("email", &customer.email),
        ("first_name", &customer.first_name),
        ("last_name", &customer.last_name),
        ("phone", &customer.phone),
        ("state", &customer.state),
        ("operator_id", &signup.operator_id),
        ("operator_name", &signup.operator_name),
    ];
    put_present(&mut attributes, &fields);
    attributes.insert("signup_id".to_owned(), job.signup_id.to_string().into());
    if job.phase == SyncPhase::Enriched {
        put_bet_slip(&mut attributes, signup);
    }
    attributes
}

/// The data of the tracked event.
fn event_data(claimed: &ClaimedJob) -> Map<String, Value> {
    let ClaimedJob { job, signup } = claimed;
    let mut data = Map::new();
    data.insert("signup_id".to_owned(), job.signup_id.to_string().into());
    match job.phase {
        SyncPhase::Initial => {
            put_present(
                &mut data,
                &[("operator_id", &signup.operator_id), ("operator_name", &signup.operator_name)],
            );
            let submitted_at = job.occurred_at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true);
            data.insert("submitted_at".to_owned(), submitted_at.into());
        }
        SyncPhase::Enriched => {
            put_present(
                &mut data,
                &[("extraction_id", &signup.extraction_id), ("operator_id", &signup.operator_id)],
            );
            put_bet_slip(&mut data, signup);
        }
    }
    data
}

fn put_present(map: &mut Map<String, Value>, fields: &[(&str, &Option<String>)]) {
    for (name, value) in fields {
        if let Some(value) = value {
            map.insert((*name).to_owned(), value.as_str().into());
        }
    }
}

fn put_bet_slip(map: &mut Map<String, Value>, signup: &Signup) {
    if let Some(bet_slip) = &signup.bet_slip {
        map.insert("bet_amount".to_owned(), bet_slip.bet_amount.into());
        map.insert("team_bet_on".to_owned(), bet_slip.team_bet_on.as_str().into());
        map.insert("odds".to_owned(), bet_slip.odds.clone());
        map.insert("confidence".to_owned(), bet_slip.confidence.into());
    }
}

fn check_attributes(attributes: &Map<String, Value>) -> Result<(), Outcome> {
    if attributes.len() > ATTRIBUTES_MAX {
        let count = attributes.len();
        return Err(over_limit(format!(
            "{count} attributes; Customer.io allows at most {ATTRIBUTES_MAX}"
        )));
    }
    for (name, value) in attributes {
        if name.len() > NAME_BYTES_MAX {
            let start = &name[..name.floor_char_boundary(40)];
            return Err(too_large(
                &format!("the name of the attribute {start}…"),
                name.len(),
                NAME_BYTES_MAX,
            ));
        }
        if let Value::String(text) = value
            && text.len() > VALUE_BYTES_MAX
        {
            return Err(too_large(name, text.len(), VALUE_BYTES_MAX));
        }
    }
    Ok(())
}

fn too_large(what: &str, found: usize, allowed: usize) -> Outcome {
    over_limit(format!("{what} is {found} bytes; Customer.io allows at most {allowed}"))
}

fn over_limit(message: String) -> Outcome {
    Outcome::Refused(Failure::new(FailureCause::LimitExceeded, message))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        event::{BetSlip, Customer},
        job::{Job, job_id},
    };
    use uuid::Uuid;

    pub(crate) fn work(phase: SyncPhase) -> ClaimedJob {
        let signup_id = Uuid::from_u128(7);
        let text = |text: &str| Some(text.to_owned());
        ClaimedJob {
            job: Job {
                id: job_id(signup_id, phase),
                signup_id,
                phase,
                run: 0,
                attempt: 0,
                max_attempts: 5,
                manual_retry: false,
                occurred_at: "2025-02-18T12:00:00Z".parse().expect("a time"),
                created_at: "2025-02-18T12:00:01Z".parse().expect("a time"),
                first_failed_at: None,
                traceparent: None,
                tracestate: None,
            },
            signup: Signup {
                operator_id: text("op-12"),
                operator_name: text("Acme Sports"),
                customer: Customer {
                    id: text("c-991"),
                    email: text("ann@example.com"),
                    first_name: text("Ann"),
                    last_name: text("Lee"),
                    phone: text("+15550100"),
                    state: None,
                },
                attributes: serde_json::from_value(json!({ "plan": "gold" })).expect("a map"),
                extraction_id: text("ex-5"),
                bet_slip: Some(BetSlip {
                    bet_amount: 50.0,
                    team_bet_on: "Lakers".to_owned(),
                    odds: json!("+150"),
                    confidence: 0.97,
                }),
            },
        }
    }

    fn operations(work: &ClaimedJob, identifier: Identifier) -> Value {
        let prepared = prepare(work, identifier).expect("it can be sent");
        serde_json::from_str(&format!("[{}]", prepared.json)).expect("valid JSON")
    }

    fn refusal(work: &ClaimedJob) -> String {
        match prepare(work, Identifier::Auto) {
            Err(Outcome::Refused(failure)) => failure.message,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn the_initial_phase_sends_the_profile_and_signup_submitted() {
        let sent = operations(&work(SyncPhase::Initial), Identifier::Auto);
        let signup_id = Uuid::from_u128(7).to_string();
        let expected = json!([
            {
                "type": "person",
                "identifiers": { "id": "c-991" },
                "action": "identify",
                "timestamp": 1_739_880_000,
                "attributes": {
                    "email": "ann@example.com",
                    "first_name": "Ann",
                    "last_name": "Lee",
                    "phone": "+15550100",
                    "operator_id": "op-12",
                    "operator_name": "Acme Sports",
                    "plan": "gold",
                    "signup_id": signup_id,
                },
            },
            {
                "type": "person",
                "identifiers": { "id": "c-991" },
                "action": "event",
                "name": "signup_submitted",
                "id": tracked_event_id(Uuid::from_u128(7), SyncPhase::Initial).to_string(),
                "timestamp": 1_739_880_000,
                "attributes": {
                    "signup_id": signup_id,
                    "operator_id": "op-12",
                    "operator_name": "Acme Sports",
                    "submitted_at": "2025-02-18T12:00:00Z",
                },
            },
        ]);
        assert_eq!(sent, expected);
    }

    #[test]
    fn the_enriched_phase_adds_the_bet_slip_to_both() {
        let sent = operations(&work(SyncPhase::Enriched), Identifier::Auto);
        for operation in sent.as_array().expect("two") {
            let attributes = &operation["attributes"];
            let slip = [
                &attributes["bet_amount"],
                &attributes["team_bet_on"],
                &attributes["odds"],
                &attributes["confidence"],
            ];
            assert_eq!(slip, [&json!(50.0), &json!("Lakers"), &json!("+150"), &json!(0.97)]);
        }
        assert_eq!(sent[1]["name"], "signup_extraction_confirmed");
        assert_eq!(sent[1]["attributes"]["extraction_id"], "ex-5");
    }

    #[test]
    fn the_person_is_identified_as_configured() {
        let mut work = work(SyncPhase::Initial);
        assert_eq!(
            operations(&work, Identifier::Email)[0]["identifiers"],
            json!({ "email": "ann@example.com" })
        );
        work.signup.customer.id = None;
        assert_eq!(
            operations(&work, Identifier::Auto)[0]["identifiers"],
            json!({ "email": "ann@example.com" })
        );
        assert!(matches!(prepare(&work, Identifier::Id), Err(Outcome::Refused(_))));
    }

    #[test]
    fn a_signup_without_an_address_is_retried() {
        let mut work = work(SyncPhase::Enriched);
        work.signup.customer.email = None;
        let Err(Outcome::Retryable { failure, .. }) = prepare(&work, Identifier::Auto) else {
            panic!("retryable")
        };
        assert_eq!(failure.message, "signup not known yet");
    }

    #[test]
    fn a_value_over_its_limit_is_refused_with_both_sizes() {
        let mut long = work(SyncPhase::Initial);
        long.signup.customer.first_name = Some("x".repeat(1001));
        assert_eq!(refusal(&long), "first_name is 1001 bytes; Customer.io allows at most 1000");

        let mut long = work(SyncPhase::Initial);
        long.signup.customer.id = Some("x".repeat(151));
        assert_eq!(refusal(&long), "customer.id is 151 bytes; Customer.io allows at most 150");

        let mut long = work(SyncPhase::Initial);
        long.signup.attributes.insert("n".repeat(151), true.into());
        assert!(refusal(&long).ends_with("is 151 bytes; Customer.io allows at most 150"));

        let mut many = work(SyncPhase::Initial);
        many.signup.attributes = (0..300).map(|n| (format!("a{n}"), n.into())).collect();
        assert_eq!(refusal(&many), "307 attributes; Customer.io allows at most 300");

        let mut large = work(SyncPhase::Initial);
        large.signup.attributes =
            (0..200).map(|n| (format!("a{n}"), "x".repeat(900).into())).collect();
        assert!(refusal(&large).starts_with("the identify is 18"), "{}", refusal(&large));
    }
}
