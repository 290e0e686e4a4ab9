//! The two events that upstream services publish, and their parser, [`parse`].
//!
//! Bytes become an [`Event`] with validated fields, or a [`Rejected`] that names the location of
//! the error and what was expected there. Callers decide what happens to either.

mod fields;
#[cfg(any(test, fuzzing))]
pub mod property;

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};
use uuid::Uuid;

pub use fields::{Attributes, BetSlip, Customer, NAMED_FIELDS};
use fields::{CustomerWithEmail, NonEmpty, Object, Text};

/// Maximum size of a body, in bytes. A larger one is rejected without being parsed.
pub const EVENT_BYTES_MAX: usize = 256 * 1024;

/// Content type of a CloudEvents 1.0 structured event
/// ([specification](https://github.com/cloudevents/spec), `amqp-protocol-binding.md`, section 3).
pub const CLOUDEVENTS_CONTENT_TYPE: &str = "application/cloudevents+json";

/// Type of an event. The queue of a message determines the type that is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// A person signed up.
    Submitted,
    /// The bet slip in their upload was read and confirmed.
    Confirmed,
}

impl EventType {
    /// Both types.
    pub const ALL: [Self; 2] = [Self::Submitted, Self::Confirmed];

    /// Returns the routing key of its messages.
    pub const fn routing_key(self) -> &'static str {
        match self {
            Self::Submitted => "signup.submitted",
            Self::Confirmed => "signup.extraction_confirmed",
        }
    }
}

/// A message as received: its body, and the properties that affect parsing.
#[derive(Debug, Clone, Copy)]
pub struct RawEvent<'a> {
    /// Expected type.
    pub event_type: EventType,
    /// AMQP property `content_type`.
    pub content_type: Option<&'a str>,
    /// AMQP property `message_id`.
    pub message_id: Option<&'a str>,
    /// Body, unchanged.
    pub body: &'a [u8],
}

/// A valid event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// CloudEvents `id`, else `event_id`, else the AMQP `message_id`, else a hash of the body.
    pub id: String,
    /// Time at which it happened, if the event states one.
    pub occurred_at: Option<DateTime<Utc>>,
    /// Id of the signup that it belongs to.
    pub signup_id: Uuid,
    /// Data about the person.
    pub customer: Customer,
    /// Fields of its type.
    pub details: EventDetails,
}

/// Fields that only one of the event types has.
#[derive(Debug, Clone, PartialEq)]
pub enum EventDetails {
    /// Fields of `signup.submitted`.
    Submitted {
        /// Id of the operator that the person signed up with.
        operator_id: String,
        /// Name of the operator.
        operator_name: Option<String>,
        /// Attributes for the profile, passed through.
        attributes: Attributes,
    },
    /// Fields of `signup.extraction_confirmed`.
    Confirmed {
        /// Id of the extraction that read the bet slip.
        extraction_id: Option<String>,
        /// Contents of the bet slip.
        bet_slip: BetSlip,
    },
}

/// The reason why a message is unprocessable: where the error is and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// JSON path of the error, such as `customer.email`; `$` is the whole message.
    pub path: String,
    /// Description of the value found and of the value expected.
    pub expected: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.expected)
    }
}

impl Rejected {
    /// Creates a rejection for an error that the parser does not detect.
    pub fn new(path: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { path: path.into(), expected: expected.into() }
    }
}

/// A person signed up.
#[derive(Deserialize, ToSchema)]
struct Submitted {
    /// Unique id of the event. Default: the message's id, else a hash of the body.
    #[schema(value_type = Option<String>)]
    event_id: Option<Text>,
    /// Time of the event. Default: the time of arrival.
    occurred_at: Option<DateTime<Utc>>,
    signup_id: Uuid,
    /// Id of the operator that the person signed up with.
    #[schema(value_type = String, pattern = r"\S")]
    operator_id: NonEmpty,
    #[schema(value_type = Option<String>)]
    operator_name: Option<Text>,
    #[schema(value_type = CustomerWithEmail)]
    customer: Object<CustomerWithEmail>,
    /// A flat map of strings, numbers and booleans, passed through to the profile. A name that
    /// Customer.io reserves makes the message unprocessable. The name of another profile field is
    /// ignored.
    #[serde(default)]
    #[schema(schema_with = fields::attributes_schema)]
    attributes: Option<Attributes>,
}

/// The bet slip of an upload was read and confirmed.
#[derive(Deserialize, ToSchema)]
struct Confirmed {
    /// Unique id of the event. Default: the message's id, else a hash of the body.
    #[schema(value_type = Option<String>)]
    event_id: Option<Text>,
    /// Time of the event. Default: the time of arrival.
    occurred_at: Option<DateTime<Utc>>,
    signup_id: Uuid,
    /// Id of the extraction that read the bet slip.
    #[schema(value_type = Option<String>)]
    extraction_id: Option<Text>,
    #[schema(value_type = BetSlip)]
    bet_slip: Object<BetSlip>,
    #[schema(value_type = Option<Customer>)]
    customer: Option<Object<Customer>>,
}

/// Returns the JSON Schema of an event's body, and the schemas that it refers to, by name.
pub fn schema(event_type: EventType) -> (RefOr<Schema>, Vec<(String, RefOr<Schema>)>) {
    let mut referenced = Vec::new();
    let schema = match event_type {
        EventType::Submitted => {
            Submitted::schemas(&mut referenced);
            Submitted::schema()
        }
        EventType::Confirmed => {
            Confirmed::schemas(&mut referenced);
            Confirmed::schema()
        }
    };
    (schema, referenced)
}

/// A CloudEvents 1.0 envelope. Its `data` is parsed in a second step.
#[derive(Deserialize)]
struct CloudEvent<'a> {
    specversion: Text,
    id: NonEmpty,
    #[serde(rename = "type")]
    event_type: NonEmpty,
    time: Option<DateTime<Utc>>,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Parses and validates one message.
pub fn parse(raw: RawEvent<'_>) -> Result<Event, Rejected> {
    if raw.body.len() > EVENT_BYTES_MAX {
        let found = raw.body.len();
        return Err(Rejected::new(
            "$",
            format!("body of {found} bytes, expected at most {EVENT_BYTES_MAX}"),
        ));
    }
    let text = std::str::from_utf8(raw.body)
        .map_err(|error| Rejected::new("$", format!("expected JSON in UTF-8: {error}")))?;
    let is_enveloped = raw.content_type.is_some_and(|kind| {
        kind.get(..CLOUDEVENTS_CONTENT_TYPE.len())
            .is_some_and(|k| k.eq_ignore_ascii_case(CLOUDEVENTS_CONTENT_TYPE))
    });
    if !is_enveloped {
        return parse_data(raw, text, "");
    }
    let envelope: CloudEvent<'_> = read(text, "")?;
    envelope.check(raw.event_type)?;
    let event = parse_data(raw, envelope.data.get(), "data.")?;
    Ok(Event { id: envelope.id.into(), occurred_at: event.occurred_at.or(envelope.time), ..event })
}

impl CloudEvent<'_> {
    fn check(&self, event_type: EventType) -> Result<(), Rejected> {
        if !self.specversion.as_str().starts_with("1.") {
            let found = self.specversion.as_str();
            return Err(Rejected::new("specversion", format!("found {found:?}, expected \"1.0\"")));
        }
        // A type usually begins with a reversed domain name and often ends with a version.
        let key = event_type.routing_key();
        if !self.event_type.as_str().contains(key) {
            let found = self.event_type.as_str();
            return Err(Rejected::new(
                "type",
                format!("unknown type {found:?}, expected one that contains {key:?}"),
            ));
        }
        Ok(())
    }
}

fn parse_data(raw: RawEvent<'_>, text: &str, prefix: &str) -> Result<Event, Rejected> {
    let id = |event_id: Option<Text>| match (event_id, raw.message_id) {
        (Some(id), _) if !id.as_str().is_empty() => id.into(),
        (_, Some(id)) if !id.is_empty() => id.to_owned(),
        _ => body_id(raw.body).to_string(),
    };
    Ok(match raw.event_type {
        EventType::Submitted => {
            let data: Submitted = read(text, prefix)?;
            Event {
                id: id(data.event_id),
                occurred_at: data.occurred_at,
                signup_id: data.signup_id,
                customer: data.customer.0.into(),
                details: EventDetails::Submitted {
                    operator_id: data.operator_id.into(),
                    operator_name: data.operator_name.and_then(Text::non_empty),
                    attributes: data.attributes.unwrap_or_default(),
                },
            }
        }
        EventType::Confirmed => {
            let data: Confirmed = read(text, prefix)?;
            Event {
                id: id(data.event_id),
                occurred_at: data.occurred_at,
                signup_id: data.signup_id,
                customer: data.customer.map(|Object(customer)| customer).unwrap_or_default(),
                details: EventDetails::Confirmed {
                    extraction_id: data.extraction_id.and_then(Text::non_empty),
                    bet_slip: data.bet_slip.0,
                },
            }
        }
    })
}

/// Returns the id of a message that has none: a UUIDv5 of its body (RFC 9562, section 5.5).
pub fn body_id(body: &[u8]) -> Uuid {
    const NAMESPACE: Uuid = Uuid::from_u128(0x7d2e_40a9_58c3_4b1f_8f05_2ab6_91d4_e03a);
    Uuid::new_v5(&NAMESPACE, body)
}

/// Deserializes a JSON object. On failure, it deserializes again and records the path, so that the
/// common case stays fast.
fn read<'a, T: Deserialize<'a>>(text: &'a str, prefix: &str) -> Result<T, Rejected> {
    if let Ok(Object(value)) = serde_json::from_str(text) {
        return Ok(value);
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    match serde_path_to_error::deserialize::<_, Object<T>>(&mut deserializer) {
        // The object itself is valid, so the error is in the bytes after it.
        Ok(_) => Err(Rejected::new("$", "found more data after the JSON object, expected the end")),
        Err(error) => Err(explain(&error, prefix)),
    }
}

fn explain(error: &serde_path_to_error::Error<serde_json::Error>, prefix: &str) -> Rejected {
    let mut path = error.path().to_string();
    let message = error.inner().to_string();
    // serde reports the parent of a missing field, which is less helpful than the field.
    if let Some(field) =
        message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next())
    {
        path = if path == "." { field.to_owned() } else { format!("{path}.{field}") };
    }
    // Below a key that is the empty string, the path is empty.
    let path =
        if matches!(path.as_str(), "." | "") { "$".to_owned() } else { format!("{prefix}{path}") };
    Rejected { path, expected: message }
}

#[cfg(test)]
mod tests;
