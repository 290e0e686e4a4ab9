use super::{property::parse_never_panics_and_is_deterministic, *};
use proptest::prelude::*;
use serde_json::{Value, json};

fn submitted() -> Value {
    json!({
        "event_id": "e-1",
        "occurred_at": "2025-02-18T12:00:00Z",
        "signup_id": "7b0c0000-0000-4000-8000-000000000001",
        "operator_id": "op-12",
        "operator_name": "Acme Sports",
        "customer": {
            "id": "c-991",
            "email": "ann@example.com",
            "first_name": "Ann",
            "last_name": "Lee",
            "phone": "+15550100",
            "state": "NJ",
        },
        "attributes": { "plan": "gold", "visits": 3, "vip": true },
        "something_new": { "is": ["ignored"] },
    })
}

fn confirmed() -> Value {
    json!({
        "event_id": "e-2",
        "signup_id": "7b0c0000-0000-4000-8000-000000000001",
        "extraction_id": "ex-5",
        "bet_slip": {
            "bet_amount": 50.0,
            "team_bet_on": "Lakers",
            "odds": "+150",
            "confidence": 0.97,
        },
    })
}

fn raw(event_type: EventType, body: &[u8]) -> RawEvent<'_> {
    RawEvent { event_type, content_type: Some("application/json"), message_id: None, body }
}

fn parse_submitted(body: &Value) -> Result<Event, Rejected> {
    parse(raw(EventType::Submitted, body.to_string().as_bytes()))
}

fn parse_confirmed(body: &Value) -> Result<Event, Rejected> {
    parse(raw(EventType::Confirmed, body.to_string().as_bytes()))
}

/// Returns the body with the value at `pointer` replaced.
fn with(mut body: Value, pointer: &str, value: Value) -> Value {
    *body.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} is in the sample")) = value;
    body
}

/// Returns the body without the field `name` of the object at `pointer`.
fn without(mut body: Value, pointer: &str, name: &str) -> Value {
    let object = body.pointer_mut(pointer).and_then(Value::as_object_mut).expect("an object");
    object.remove(name).expect("the field is in the sample");
    body
}

#[test]
fn a_submission_is_parsed_with_all_its_fields() {
    let event = parse_submitted(&submitted()).expect("the contract's example");
    assert_eq!(event.id, "e-1");
    assert_eq!(event.occurred_at.expect("given").to_rfc3339(), "2025-02-18T12:00:00+00:00");
    assert_eq!(event.customer.email.as_deref(), Some("ann@example.com"));
    assert_eq!(event.customer.state.as_deref(), Some("NJ"));
    let EventDetails::Submitted { operator_id, operator_name, attributes } = event.details else {
        panic!("submitted")
    };
    assert_eq!((operator_id.as_str(), operator_name.as_deref()), ("op-12", Some("Acme Sports")));
    assert_eq!(
        Value::from(attributes.as_map().clone()),
        json!({ "plan": "gold", "visits": 3, "vip": true })
    );
}

#[test]
fn a_confirmation_keeps_the_odds_as_received() {
    for odds in [json!("+150"), json!(2.5), json!(-110)] {
        let event = parse_confirmed(&with(confirmed(), "/bet_slip/odds", odds.clone()))
            .expect("string or number");
        let EventDetails::Confirmed { bet_slip, .. } = event.details else { panic!("confirmed") };
        assert_eq!(bet_slip.odds, odds);
    }
}

#[test]
fn a_rejection_names_the_path_and_what_was_expected() {
    let cut = |pointer: &str, name: &str| parse_submitted(&without(submitted(), pointer, name));
    let set = |pointer: &str, value: Value| parse_submitted(&with(submitted(), pointer, value));
    let slip = |pointer: &str, value: Value| parse_confirmed(&with(confirmed(), pointer, value));
    let cases = [
        (cut("", "signup_id"), "signup_id", "missing field"),
        (cut("", "operator_id"), "operator_id", "missing field"),
        (cut("/customer", "email"), "customer.email", "missing field"),
        (set("/signup_id", json!("nope")), "signup_id", "UUID"),
        (set("/customer/email", json!("")), "customer.email", "not empty"),
        (set("/customer/email", json!(5)), "customer.email", "expected a string"),
        (set("/customer/first_name", json!("A\u{0}")), "customer.first_name", "U+0000"),
        (set("/occurred_at", json!("yesterday")), "occurred_at", "input"),
        (set("/attributes/plan", json!(["gold"])), "attributes.plan", "boolean"),
        (set("/attributes/plan", Value::Null), "attributes.plan", "boolean"),
        (set("/attributes", json!({ "_update": true })), "attributes", "reserved"),
        (set("/attributes", json!({ "reply_to": "x" })), "attributes", "reserved"),
        (slip("/bet_slip/bet_amount", json!(-1)), "bet_slip.bet_amount", "at least 0"),
        (slip("/bet_slip/confidence", json!(1.5)), "bet_slip.confidence", "0 to 1"),
        (slip("/bet_slip/odds", json!(true)), "bet_slip.odds", "string or a number"),
        (slip("/bet_slip", json!([50.0, "Lakers", "+150", 1])), "bet_slip", "object"),
        (parse_confirmed(&without(confirmed(), "", "bet_slip")), "bet_slip", "missing field"),
        (parse_confirmed(&json!([1])), "$", "object"),
    ];
    for (result, path, expected) in cases {
        let rejected = result.expect_err(path);
        assert!(rejected.path.starts_with(path), "{rejected} should be at {path}");
        assert!(rejected.expected.contains(expected), "{rejected} should mention {expected}");
    }
}

#[test]
fn a_malformed_or_oversized_body_is_rejected() {
    let nested = format!("{{\"attributes\":{}", "[".repeat(100_000));
    let huge =
        with(confirmed(), "/bet_slip/bet_amount", json!(1)).to_string().replace(":1,", ":1e999,");
    let large = with(submitted(), "/operator_id", json!("x".repeat(EVENT_BYTES_MAX))).to_string();
    let twice = format!("{}{}", submitted(), submitted());
    let cases: [(&[u8], &str); 8] = [
        (b"", "EOF"),
        (b"not json", "expected"),
        (b"\xff\xfe", "UTF-8"),
        (nested.as_bytes(), "flat map"),
        (huge.as_bytes(), "out of range"),
        (large.as_bytes(), "expected at most 262144"),
        (twice.as_bytes(), "expected the end"),
        (b"{\"\":\"49", "EOF"),
    ];
    for (body, expected) in cases {
        let event_type =
            if expected == "out of range" { EventType::Confirmed } else { EventType::Submitted };
        let rejected = parse(raw(event_type, body)).expect_err(expected);
        assert!(!rejected.path.is_empty(), "{rejected} should name a path");
        assert!(rejected.expected.contains(expected), "{rejected} should mention {expected}");
    }
}

#[test]
fn an_unknown_field_is_ignored_however_deeply_it_is_nested() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let body = submitted().to_string().replace("[\"ignored\"]", &deep);
    assert_eq!(parse(raw(EventType::Submitted, body.as_bytes())).expect("valid").id, "e-1");
}

#[test]
fn the_event_id_comes_from_the_first_source_that_has_one() {
    let body = without(submitted(), "", "event_id").to_string();
    let with_message_id =
        RawEvent { message_id: Some("m-1"), ..raw(EventType::Submitted, body.as_bytes()) };
    assert_eq!(parse(with_message_id).expect("valid").id, "m-1");
    let from_body = parse(raw(EventType::Submitted, body.as_bytes())).expect("valid").id;
    assert_eq!(from_body, body_id(body.as_bytes()).to_string());
    let own = submitted().to_string();
    let own = RawEvent { message_id: Some("m-1"), ..raw(EventType::Submitted, own.as_bytes()) };
    assert_eq!(parse(own).expect("valid").id, "e-1");
}

fn enveloped(envelope: &Value) -> Result<Event, Rejected> {
    let body = envelope.to_string();
    let content_type = Some("application/cloudevents+json; charset=utf-8");
    parse(RawEvent { content_type, ..raw(EventType::Submitted, body.as_bytes()) })
}

#[test]
fn the_data_of_a_cloudevent_is_parsed_and_its_errors_name_their_path() {
    let envelope = json!({
        "specversion": "1.0",
        "id": "ce-1",
        "source": "/signups",
        "type": "com.example.signup.submitted.v1",
        "time": "2025-02-18T13:00:00Z",
        "data": without(submitted(), "", "occurred_at"),
    });
    let event = enveloped(&envelope).expect("a valid event");
    assert_eq!(event.id, "ce-1");
    assert_eq!(event.occurred_at.expect("from time").to_rfc3339(), "2025-02-18T13:00:00+00:00");

    let rejected = enveloped(&with(envelope.clone(), "/type", json!("signup.deleted")))
        .expect_err("unknown type");
    assert_eq!(rejected.path, "type");
    let rejected = enveloped(&with(envelope.clone(), "/data/customer/email", json!(7)))
        .expect_err("wrong type");
    assert_eq!(rejected.path, "data.customer.email");
    let rejected = enveloped(&without(envelope, "", "data")).expect_err("no data");
    assert_eq!(rejected.path, "data");
}

#[test]
fn an_attribute_never_overrides_a_named_field() {
    let body = with(
        submitted(),
        "/attributes",
        json!({ "email": "eve@example.com", "id": "x", "plan": "gold" }),
    );
    let EventDetails::Submitted { attributes, .. } = parse_submitted(&body).expect("valid").details
    else {
        panic!()
    };
    assert_eq!(Value::from(attributes.as_map().clone()), json!({ "plan": "gold" }));
}

#[test]
fn an_empty_optional_field_counts_as_absent() {
    let event = parse_submitted(&with(submitted(), "/customer/phone", json!(""))).expect("valid");
    assert_eq!(event.customer.phone, None);
}

/// Generates JSON of any shape, with field names of the events among its names.
fn any_json() -> impl Strategy<Value = Value> {
    let name = prop_oneof!["signup_id|customer|email|bet_slip|odds|attributes|data|id", ".{0,8}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,16}".prop_map(Value::from),
        Just(json!("7b0c0000-0000-4000-8000-000000000001")),
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(name.clone(), inner, 0..6)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_rejected(body in prop::collection::vec(any::<u8>(), 0..512)) {
        parse_never_panics_and_is_deterministic(&body);
    }

    #[test]
    fn any_json_is_parsed_or_rejected(value in any_json()) {
        parse_never_panics_and_is_deterministic(value.to_string().as_bytes());
    }
}
