//! Builds the operations of a job, identifies and a tracked event, within Customer.io's documented
//! limits. Pure.
//!
//! Every value is sent with the time at which it was stated, because Customer.io orders the updates
//! of an attribute by it: so a late retry does not replace newer data, nor does a second signup of
//! the same person. A value over its limit fails its job here, with the field and both sizes.
//! Nothing is truncated.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::{
    Identifier,
    people::{PersonKeys, person_keys},
};
use crate::{
    event::{Number, Scalar},
    job::{
        ClaimedJob, Failure, FailureCause, Outcome, Signup, SyncPhase, Warning, tracked_event_id,
    },
};

/// Maximum bytes per operation. The documentation says 32 kB without saying whether a kB is 1000 or
/// 1024 bytes; this is the smaller size.
const OPERATION_BYTES_MAX: usize = 32_000;
/// Maximum bytes of all operations of a job, so that they fit into one call.
const JOB_BYTES_MAX: usize = 470_000;
/// Bytes of the operations of a usual job.
const USUAL_JOB_BYTES: usize = 1024;
/// Maximum bytes of a person's `id`.
const ID_BYTES_MAX: usize = 150;
/// Maximum attributes per identify.
const ATTRIBUTES_MAX: usize = 300;
/// Maximum bytes of an attribute's name.
const NAME_BYTES_MAX: usize = 150;
/// Maximum bytes of an attribute's value.
const VALUE_BYTES_MAX: usize = 1000;

/// A job's operations, ready to send: identifies in ascending time, then the tracked event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prepared {
    /// The person identifier.
    pub(super) contact_id: String,
    /// The keys under which Customer.io may know the person.
    pub(super) person: PersonKeys,
    /// The operations as JSON, separated by commas.
    pub(super) json: String,
    /// Number of operations.
    pub(super) operations: usize,
    /// What the job can't do, if it is accepted.
    pub(super) warning: Option<Warning>,
}

/// The identifier of a person: its key, and its value.
type PersonIdentifier<'a> = (&'static str, &'a str);

/// The identifier of the person of a signup. `None` if nothing that may identify it is known.
pub(super) fn identify(signup: &Signup, identifier: Identifier) -> Option<PersonIdentifier<'_>> {
    let id = signup.customer.id.as_deref();
    match (identifier, id) {
        (Identifier::Auto | Identifier::Id, Some(id)) => Some(("id", id)),
        (Identifier::Id, None) => None,
        // Customer.io can't change the address that identifies a person, so the first one stays.
        (Identifier::Auto | Identifier::Email, _) => {
            let is_address = |contact: &&str| Some(*contact) != id && contact.contains('@');
            let first = signup.contact_id.as_deref().filter(is_address);
            Some(("email", first.or(signup.customer.email.as_deref())?))
        }
    }
}

/// Prepares a job, or returns the outcome of an attempt that needs no call.
pub(super) fn prepare(claimed: &ClaimedJob, identifier: Identifier) -> Result<Prepared, Outcome> {
    let signup = &claimed.signup;
    let Some(email) = signup.customer.email.as_deref() else {
        return Err(Outcome::Retryable {
            failure: Failure::new(FailureCause::SignupUnknown, "signup not known yet"),
            retry_after: None,
        });
    };
    let Some((key, contact_id)) = identify(signup, identifier) else {
        return Err(Outcome::Refused(Failure::new(
            FailureCause::IdentifierMissing,
            "customer.id is missing, and customerio.identifier is \"id\"",
        )));
    };
    if key == "id" && contact_id.len() > ID_BYTES_MAX {
        return Err(too_large("customer.id", contact_id.len(), ID_BYTES_MAX));
    }
    let keeps_address = key == "email" && contact_id.to_lowercase() != email.to_lowercase();
    let mut profile = profile(claimed);
    if keeps_address {
        profile.retain(|value| value.name != "email");
    }
    // An attempt whose result is not known may have created nobody.
    let is_known = signup.is_contact_accepted && signup.contact_id.as_deref() == Some(contact_id);
    if key == "id" && !is_known {
        join_by_address(&mut profile);
    }
    check_profile(&profile)?;
    let (json, operations) = operations(claimed, BTreeMap::from([(key, contact_id)]), profile)?;
    Ok(Prepared {
        contact_id: contact_id.to_owned(),
        person: person_keys(key, contact_id, email),
        json,
        operations,
        warning: keeps_address.then_some(Warning::EmailNotChanged),
    })
}

/// One operation of a batch
/// (<https://docs.customer.io/integrations/api/track/#operation/batch>).
#[derive(Serialize)]
struct Operation<'a> {
    r#type: &'static str,
    identifiers: &'a BTreeMap<&'static str, &'a str>,
    action: &'static str,
    /// The ULID of an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// The name of an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'static str>,
    /// When the attributes were stated, or when the event happened, in seconds since 1970.
    timestamp: i64,
    attributes: BTreeMap<&'a str, AttributeValue<'a>>,
}

/// The value of an attribute.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
enum AttributeValue<'a> {
    Text(&'a str),
    Id(Uuid),
    Time(DateTime<Utc>),
    Number(&'a Number),
    Scalar(&'a Scalar),
}

/// An attribute of the profile, with the time at which its value was stated.
struct ProfileValue<'a> {
    name: &'a str,
    value: AttributeValue<'a>,
    stated_at: Option<DateTime<Utc>>,
}

/// Sends the address in the first identify. An id that is new to Customer.io joins the person with
/// that address, so it must not be created without one.
fn join_by_address(profile: &mut [ProfileValue<'_>]) {
    let earliest = profile.iter().filter_map(|value| value.stated_at).min();
    for value in profile.iter_mut().filter(|value| value.name == "email") {
        value.stated_at = earliest;
    }
}

/// The operations as JSON, separated by commas, and their number. Values of different seconds are
/// in different identifies: the API takes one time per identify.
fn operations(
    claimed: &ClaimedJob,
    identifiers: BTreeMap<&'static str, &str>,
    profile: Vec<ProfileValue<'_>>,
) -> Result<(String, usize), Outcome> {
    let job = &claimed.job;
    let happened_at = job.occurred_at.timestamp();
    let mut identifies: BTreeMap<i64, BTreeMap<_, _>> = BTreeMap::new();
    for ProfileValue { name, value, stated_at } in profile {
        let stated_at = stated_at.map_or(happened_at, |time| time.timestamp());
        identifies.entry(stated_at).or_default().insert(name, value);
    }
    let identify = |(timestamp, attributes)| Operation {
        r#type: "person",
        identifiers: &identifiers,
        action: "identify",
        id: None,
        name: None,
        timestamp,
        attributes,
    };
    let mut json = Vec::with_capacity(USUAL_JOB_BYTES);
    let count = identifies.len() + 1;
    for identify in identifies.into_iter().map(identify) {
        write("the identify", &identify, &mut json)?;
    }
    let event = Operation {
        r#type: "person",
        identifiers: &identifiers,
        action: "event",
        id: Some(tracked_event_id(job.signup_id, job.phase).to_string()),
        name: Some(job.phase.tracked_event()),
        timestamp: happened_at,
        attributes: event_data(claimed),
    };
    write("the event", &event, &mut json)?;
    if json.len() > JOB_BYTES_MAX {
        return Err(too_large("the job's call", json.len(), JOB_BYTES_MAX));
    }
    Ok((String::from_utf8(json).expect("JSON is UTF-8"), count))
}

/// Adds an operation to those of its job.
fn write(what: &str, operation: &Operation<'_>, json: &mut Vec<u8>) -> Result<(), Outcome> {
    if !json.is_empty() {
        json.push(b',');
    }
    let start = json.len();
    serde_json::to_writer(&mut *json, operation)
        .map_err(|error| over_limit(format!("{what} can't be written as JSON: {error}")))?;
    let bytes = json.len() - start;
    if bytes > OPERATION_BYTES_MAX {
        return Err(too_large(what, bytes, OPERATION_BYTES_MAX));
    }
    Ok(())
}

/// The attributes of the profile. An absent field is left out, since null would remove the
/// attribute.
fn profile(claimed: &ClaimedJob) -> Vec<ProfileValue<'_>> {
    let ClaimedJob { job, signup } = claimed;
    let Signup { customer, stated, .. } = signup;
    let fields = [
        ("email", &customer.email),
        ("first_name", &customer.first_name),
        ("last_name", &customer.last_name),
        ("phone", &customer.phone),
        ("state", &customer.state),
        ("operator_id", &signup.operator_id),
        ("operator_name", &signup.operator_name),
    ];
    let mut profile = Vec::with_capacity(12 + signup.attributes.len());
    let mut put = |name, value, stated_at| profile.push(ProfileValue { name, value, stated_at });
    for (name, value) in &signup.attributes {
        put(name, AttributeValue::Scalar(value), stated.of(name));
    }
    for (name, value) in fields.into_iter().filter_map(present) {
        put(name, value, stated.of(name));
    }
    put("signup_id", AttributeValue::Id(job.signup_id), stated.submission.or(stated.customer));
    if job.phase == SyncPhase::Enriched {
        for (name, value) in bet_slip(signup) {
            put(name, value, stated.confirmation);
        }
    }
    profile
}

/// The data of the tracked event.
fn event_data(claimed: &ClaimedJob) -> BTreeMap<&str, AttributeValue<'_>> {
    let ClaimedJob { job, signup } = claimed;
    let operator_id = ("operator_id", &signup.operator_id);
    let mut data = BTreeMap::from([("signup_id", AttributeValue::Id(job.signup_id))]);
    match job.phase {
        SyncPhase::Initial => {
            let operator_name = ("operator_name", &signup.operator_name);
            data.extend([operator_id, operator_name].into_iter().filter_map(present));
            data.insert("submitted_at", AttributeValue::Time(job.occurred_at));
        }
        SyncPhase::Enriched => {
            let extraction_id = ("extraction_id", &signup.extraction_id);
            data.extend([extraction_id, operator_id].into_iter().filter_map(present));
            data.extend(bet_slip(signup));
        }
    }
    data
}

fn present<'a>(
    (name, value): (&'static str, &'a Option<String>),
) -> Option<(&'static str, AttributeValue<'a>)> {
    Some((name, AttributeValue::Text(value.as_deref()?)))
}

fn bet_slip(signup: &Signup) -> impl Iterator<Item = (&'static str, AttributeValue<'_>)> {
    signup.bet_slip.iter().flat_map(|slip| {
        [
            ("bet_amount", AttributeValue::Number(&slip.bet_amount)),
            ("team_bet_on", AttributeValue::Text(&slip.team_bet_on)),
            ("odds", AttributeValue::Scalar(&slip.odds)),
            ("confidence", AttributeValue::Number(&slip.confidence)),
        ]
    })
}

fn check_profile(profile: &[ProfileValue<'_>]) -> Result<(), Outcome> {
    if profile.len() > ATTRIBUTES_MAX {
        let count = profile.len();
        return Err(over_limit(format!(
            "{count} attributes; Customer.io allows at most {ATTRIBUTES_MAX}"
        )));
    }
    for ProfileValue { name, value, .. } in profile {
        if name.len() > NAME_BYTES_MAX {
            let start = &name[..name.floor_char_boundary(40)];
            return Err(too_large(
                &format!("the name of the attribute {start}…"),
                name.len(),
                NAME_BYTES_MAX,
            ));
        }
        let size = match value {
            AttributeValue::Text(text) => text.len(),
            AttributeValue::Scalar(scalar) => scalar.as_text().map_or(0, |text| text.len()),
            AttributeValue::Id(_) | AttributeValue::Time(_) | AttributeValue::Number(_) => 0,
        };
        if size > VALUE_BYTES_MAX {
            return Err(too_large(name, size, VALUE_BYTES_MAX));
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
    use serde_json::{Value, json, value::RawValue};

    use super::*;
    use crate::{
        event::{BetSlip, Customer},
        job::{Job, StatedTimes},
    };

    /// The second of the events in [`work`].
    const SUBMITTED: i64 = 1_739_880_000;
    const CONFIRMED: i64 = SUBMITTED + 180;

    fn at(second: i64) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(second, 0)
    }

    fn scalar(value: Value) -> Scalar {
        Scalar::stored(serde_json::value::to_raw_value(&value).expect("JSON"))
    }

    pub(crate) fn work(phase: SyncPhase) -> ClaimedJob {
        let signup_id = Uuid::from_u128(7);
        let text = |text: &str| Some(text.to_owned());
        ClaimedJob {
            job: Job {
                id: Uuid::from_u128(8),
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
                attributes: BTreeMap::from([("plan".to_owned(), scalar(json!("gold")))]),
                extraction_id: text("ex-5"),
                bet_slip: Some(BetSlip {
                    bet_amount: 50.0.into(),
                    team_bet_on: "Lakers".to_owned(),
                    odds: scalar(json!("+150")),
                    confidence: 0.97.into(),
                }),
                stated: StatedTimes {
                    customer: at(SUBMITTED),
                    submission: at(SUBMITTED),
                    confirmation: at(CONFIRMED),
                    older: BTreeMap::new(),
                },
                contact_id: text("c-991"),
                is_contact_accepted: true,
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
        let sent = sent.as_array().expect("operations");
        assert_eq!(sent.len(), 3, "two identifies and the event");
        for operation in &sent[1..] {
            let attributes = &operation["attributes"];
            let slip = [
                &attributes["bet_amount"],
                &attributes["team_bet_on"],
                &attributes["odds"],
                &attributes["confidence"],
            ];
            assert_eq!(slip, [&json!(50.0), &json!("Lakers"), &json!("+150"), &json!(0.97)]);
        }
        assert_eq!(sent[1]["attributes"].as_object().expect("a map").len(), 4);
        assert_eq!(
            (&sent[0]["timestamp"], &sent[1]["timestamp"]),
            (&SUBMITTED.into(), &CONFIRMED.into())
        );
        assert_eq!(sent[2]["name"], "signup_extraction_confirmed");
        assert_eq!(sent[2]["attributes"]["extraction_id"], "ex-5");
    }

    #[test]
    fn values_of_different_seconds_are_in_different_identifies() {
        let mut work = work(SyncPhase::Enriched);
        let stated = &mut work.signup.stated;
        stated.older.insert("phone".to_owned(), at(SUBMITTED - 60).expect("a time"));
        stated.older.insert("plan".to_owned(), at(SUBMITTED - 60).expect("a time"));
        stated.confirmation = at(SUBMITTED).map(|time| time + chrono::TimeDelta::milliseconds(900));
        let sent = operations(&work, Identifier::Auto);
        let sent = sent.as_array().expect("operations");
        assert_eq!(sent.len(), 3, "the confirmation is in the same second as the submission");
        assert_eq!(sent[0]["attributes"], json!({ "phone": "+15550100", "plan": "gold" }));
        assert_eq!(sent[0]["timestamp"], SUBMITTED - 60);
        assert_eq!(sent[1]["timestamp"], SUBMITTED);
        assert!(sent[1]["attributes"].get("phone").is_none(), "no attribute is in both");
        assert_eq!(sent[1]["attributes"]["team_bet_on"], "Lakers");
    }

    #[test]
    fn an_address_that_identifies_the_person_is_not_changed() {
        let mut work = work(SyncPhase::Initial);
        work.signup.customer.email = Some("new@example.com".to_owned());
        work.signup.contact_id = Some("ann@example.com".to_owned());
        let prepared = prepare(&work, Identifier::Email).expect("it can be sent");
        assert_eq!(prepared.warning, Some(Warning::EmailNotChanged));
        assert_eq!(prepared.contact_id, "ann@example.com");
        let sent = operations(&work, Identifier::Email);
        assert_eq!(sent[0]["identifiers"], json!({ "email": "ann@example.com" }));
        assert!(sent[0]["attributes"].get("email").is_none());

        let by_id = prepare(&work, Identifier::Id).expect("it can be sent");
        assert_eq!(by_id.warning, None);
        let sent = operations(&work, Identifier::Id);
        assert_eq!(sent[0]["attributes"]["email"], "new@example.com");
    }

    #[test]
    fn an_id_that_is_new_is_sent_with_the_address_first() {
        let mut work = work(SyncPhase::Enriched);
        let stated = &mut work.signup.stated;
        (stated.customer, stated.submission) = (at(CONFIRMED), at(SUBMITTED));
        work.signup.contact_id = Some("ann@example.com".to_owned());
        let sent = operations(&work, Identifier::Auto);
        assert_eq!(sent[0]["attributes"]["email"], "ann@example.com");
        assert!(sent[1]["attributes"].get("email").is_none(), "{sent}");
        assert_eq!(sent[1]["attributes"]["phone"], "+15550100");

        work.signup.contact_id = Some("c-991".to_owned());
        work.signup.is_contact_accepted = false;
        let sent = operations(&work, Identifier::Auto);
        assert_eq!(sent[0]["attributes"]["email"], "ann@example.com", "it may still be new");

        work.signup.is_contact_accepted = true;
        let sent = operations(&work, Identifier::Auto);
        assert!(sent[0]["attributes"].get("email").is_none(), "{sent}");
        assert_eq!(sent[1]["attributes"]["email"], "ann@example.com", "with its own time");
    }

    #[test]
    fn numbers_are_sent_as_they_were_stated() {
        let mut work = work(SyncPhase::Enriched);
        let number = RawValue::from_string("100000000000000000001".to_owned()).expect("JSON");
        work.signup.attributes.insert("points".to_owned(), Scalar::stored(number.clone()));
        work.signup.bet_slip.as_mut().expect("set").odds = Scalar::stored(number);
        let json = prepare(&work, Identifier::Auto).expect("it can be sent").json;
        assert_eq!(json.matches(":100000000000000000001").count(), 3, "{json}");
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
        long.signup.attributes.insert("n".repeat(151), scalar(json!(true)));
        assert!(refusal(&long).ends_with("is 151 bytes; Customer.io allows at most 150"));

        let mut many = work(SyncPhase::Initial);
        many.signup.attributes = (0..300).map(|n| (format!("a{n}"), scalar(json!(n)))).collect();
        assert_eq!(refusal(&many), "307 attributes; Customer.io allows at most 300");

        let mut large = work(SyncPhase::Initial);
        large.signup.attributes =
            (0..200).map(|n| (format!("a{n}"), scalar(json!("x".repeat(900))))).collect();
        assert!(refusal(&large).starts_with("the identify is 18"), "{}", refusal(&large));
    }
}
