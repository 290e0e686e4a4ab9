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
    RawEvent { content_type: Some("application/json"), ..RawEvent::new(event_type, body) }
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
        serde_json::to_value(attributes.as_map()).expect("JSON"),
        json!({ "plan": "gold", "visits": 3, "vip": true })
    );
}

#[test]
fn a_confirmation_keeps_the_odds_as_received() {
    for odds in [json!("+150"), json!(2.5), json!(-110)] {
        let event = parse_confirmed(&with(confirmed(), "/bet_slip/odds", odds.clone()))
            .expect("string or number");
        let EventDetails::Confirmed { bet_slip, .. } = event.details else { panic!("confirmed") };
        assert_eq!(bet_slip.odds.json(), odds.to_string());
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
    assert_eq!(serde_json::to_value(attributes.as_map()).expect("JSON"), json!({ "plan": "gold" }));
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

fn id_of(raw: RawEvent<'_>) -> Result<String, Rejected> {
    parse(raw).map(|event| event.id)
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let body = format!("\u{feff}{}", submitted());
    assert!(parse(raw(EventType::Submitted, body.as_bytes())).is_ok());
    let twice = format!("\u{feff}\u{feff}{}", submitted());
    assert!(parse(raw(EventType::Submitted, twice.as_bytes())).is_err());
}

#[test]
fn an_encoding_other_than_none_is_rejected_by_name() {
    let body = submitted().to_string();
    for (encoding, is_accepted) in [
        (None, true),
        (Some(""), true),
        (Some("identity"), true),
        (Some(" UTF-8 "), true),
        (Some("gzip"), false),
        (Some("utf-16"), false),
    ] {
        let raw =
            RawEvent { content_encoding: encoding, ..raw(EventType::Submitted, body.as_bytes()) };
        let parsed = parse(raw);
        assert_eq!(parsed.is_ok(), is_accepted, "{encoding:?}");
        if let Err(rejected) = parsed {
            assert_eq!(rejected.path, "content_encoding");
            assert!(rejected.expected.contains(encoding.expect("named")), "{rejected}");
        }
    }
}

fn envelope(data: &Value) -> Value {
    json!({ "specversion": "1.0", "id": " ce-1 ", "source": "/signups", "data": data,
        "type": "com.example.signup.submitted.v1", "time": "2025-02-18T12:00:01Z" })
}

#[test]
fn an_envelope_is_recognized_whatever_the_content_type_says() {
    let body = envelope(&submitted()).to_string();
    for content_type in [None, Some("text/plain"), Some("application/json; charset=utf-8")] {
        let raw = RawEvent { content_type, ..raw(EventType::Submitted, body.as_bytes()) };
        assert_eq!(id_of(raw).expect("an envelope"), "ce-1", "{content_type:?}");
    }
    // The word within a value makes no envelope.
    let mut bare = submitted();
    bare["operator_name"] = "\"specversion\"".into();
    assert_ne!(id_of(raw(EventType::Submitted, bare.to_string().as_bytes())), Ok("ce-1".into()));
}

#[test]
fn attributes_in_headers_make_an_event_in_binary_mode() {
    let body = submitted().to_string();
    let binary = BinaryAttributes {
        specversion: "1.0",
        id: Some("ce-2"),
        event_type: Some("com.example.signup.submitted"),
        time: Some("2025-02-18T12:00:01Z"),
    };
    let with = |binary: BinaryAttributes<'static>| {
        parse(RawEvent { binary: Some(binary), ..raw(EventType::Submitted, body.as_bytes()) })
    };
    assert_eq!(with(binary).expect("an event").id, "ce-2");
    for (broken, path) in [
        (BinaryAttributes { id: None, ..binary }, "header id"),
        (BinaryAttributes { event_type: None, ..binary }, "header type"),
        (BinaryAttributes { event_type: Some("other"), ..binary }, "type"),
        (BinaryAttributes { specversion: "0.3", ..binary }, "specversion"),
        (BinaryAttributes { time: Some("noon"), ..binary }, "header time"),
    ] {
        assert_eq!(with(broken).expect_err("it is rejected").path, path);
    }
}

#[test]
fn the_time_is_that_of_the_event_or_the_envelope_or_the_message() {
    let mut body = submitted();
    body.as_object_mut().expect("an object").remove("occurred_at");
    let time = |body: &Value, timestamp| {
        let body = body.to_string();
        let raw = RawEvent { timestamp, ..raw(EventType::Submitted, body.as_bytes()) };
        parse(raw).expect("an event").occurred_at.map(|time| time.timestamp())
    };
    assert_eq!(time(&body, None), None);
    assert_eq!(time(&body, Some(1_739_880_002)), Some(1_739_880_002));
    assert_eq!(time(&envelope(&body), Some(1_739_880_002)), Some(1_739_880_001));
    assert_eq!(time(&submitted(), Some(1_739_880_002)), Some(1_739_880_000));
    let old = RawEvent { timestamp: Some(5), ..raw(EventType::Submitted, b"") };
    let body = body.to_string();
    let rejected = parse(RawEvent { body: body.as_bytes(), ..old }).expect_err("it is too old");
    assert_eq!(rejected.path, "event time");
}

#[test]
fn white_space_around_identifiers_and_addresses_is_removed() {
    let mut body = submitted();
    body["signup_id"] = format!(" {}\n", body["signup_id"].as_str().expect("a text")).into();
    body["operator_id"] = "\top-12 ".into();
    body["event_id"] = " e-1 ".into();
    body["customer"]["id"] = "  ".into();
    body["customer"]["email"] = " ann@example.com ".into();
    let event = parse_submitted(&body).expect("an event");
    assert_eq!(event.id, "e-1");
    assert_eq!(event.customer.id, None, "what is blank is absent");
    assert_eq!(event.customer.email.as_deref(), Some("ann@example.com"));
    let EventDetails::Submitted { operator_id, .. } = event.details else { panic!("submitted") };
    assert_eq!(operator_id, "op-12");
    body["customer"]["email"] = " \n ".into();
    assert!(parse_submitted(&body).is_err(), "what is blank is missing");
}

#[test]
fn an_event_id_has_up_to_255_bytes_wherever_it_comes_from() {
    for (bytes, is_accepted) in [(255, true), (256, false)] {
        let id = "x".repeat(bytes);
        let mut body = submitted();
        body["event_id"] = id.as_str().into();
        assert_eq!(parse_submitted(&body).is_ok(), is_accepted);
        let mut enveloped = envelope(&submitted());
        enveloped["id"] = id.as_str().into();
        assert_eq!(parse_submitted(&enveloped).is_ok(), is_accepted);
    }
}

#[test]
fn names_below_a_reserved_one_are_reserved() {
    for (name, is_accepted) in [
        ("cio_subscription_preferences.topics.topic_1", false),
        (" cio_relationships ", false),
        ("unsubscribed", false),
        ("anonymous_id", false),
        ("unsubscribed.x", false),
        ("Unsubscribed", true),
        ("unsubscribed_at", true),
        ("topics.unsubscribed", true),
    ] {
        let mut body = submitted();
        body["attributes"] = json!({ name: true });
        assert_eq!(parse_submitted(&body).is_ok(), is_accepted, "{name}");
    }
}

const PUBLISHING: &str = include_str!("../../docs/publishing.md");

#[test]
fn the_documented_events_are_valid() {
    let blocks = PUBLISHING.split("```json\n").skip(1);
    let bodies: Vec<_> = blocks.filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(bodies.len(), EventType::ALL.len());
    for (event_type, body) in EventType::ALL.into_iter().zip(bodies) {
        parse(RawEvent::new(event_type, body.as_bytes())).expect("valid");
    }
}

#[test]
fn the_documented_names_of_attributes_are_those_of_the_parser() {
    let section = PUBLISHING.split("## Names of attributes").nth(1).expect("a section");
    let section = section.split("\n## ").next().expect("a section");
    let documented: Vec<_> = section.split('`').skip(1).step_by(2).collect();
    let mut known = [NAMED_FIELDS, fields::RESERVED_NAMES].concat();
    known.extend(["attributes", "cio_subscription_preferences.topics.x"]);
    for name in &known {
        assert!(documented.contains(name), "{name} is not documented");
    }
    for name in documented {
        assert!(known.contains(&name), "{name} is documented and unknown");
    }
}
