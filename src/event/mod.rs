//! The two events that upstream services publish, and the only way to make one: [`parse`].
//!
//! Bytes become an [`Event`] whose every field was checked, or a [`Rejected`] that says where the
//! message is wrong and what was expected there. What happens to either is for others to decide.

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

/// The largest body that is read, in bytes.
pub const MAX_BODY_BYTES: usize = 256 * 1024;

/// The content type of a CloudEvents 1.0 structured event
/// ([specification](https://github.com/cloudevents/spec), `amqp-protocol-binding.md`, section 3).
pub const CLOUDEVENTS_CONTENT_TYPE: &str = "application/cloudevents+json";

/// Which of the two events a message is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// A person signed up.
    Submitted,
    /// The bet slip in their upload was read and confirmed.
    Confirmed,
}

impl EventType {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Submitted, Self::Confirmed];

    /// The routing key that the event is published with.
    pub const fn routing_key(self) -> &'static str {
        match self {
            Self::Submitted => "signup.submitted",
            Self::Confirmed => "signup.extraction_confirmed",
        }
    }
}

/// A message as it came: its body, and the properties that say how to read it.
#[derive(Debug, Clone, Copy)]
pub struct RawEvent<'a> {
    /// Which event it should be.
    pub event_type: EventType,
    /// The AMQP `content_type`.
    pub content_type: Option<&'a str>,
    /// The AMQP `message_id`.
    pub message_id: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
}

/// An event that was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// CloudEvents `id`, else `event_id`, else the AMQP `message_id`, else a hash of the body.
    pub id: String,
    /// When it happened, if the event says so.
    pub occurred_at: Option<DateTime<Utc>>,
    /// The signup it is about.
    pub signup_id: Uuid,
    /// What it says of the person.
    pub customer: Customer,
    /// What only this event type says.
    pub details: Details,
}

/// What only one of the event types says.
#[derive(Debug, Clone, PartialEq)]
pub enum Details {
    /// Of `signup.submitted`.
    Submitted {
        /// The operator the person signed up with.
        operator_id: String,
        /// Its name.
        operator_name: Option<String>,
        /// Passed through to the profile.
        attributes: Attributes,
    },
    /// Of `signup.extraction_confirmed`.
    Confirmed {
        /// The extraction that read the bet slip.
        extraction_id: Option<String>,
        /// The bet slip.
        bet_slip: BetSlip,
    },
}

/// A message that can't be understood: where, and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The JSON path, such as `customer.email`; `$` is the whole message.
    pub path: String,
    /// What was found and what was expected.
    pub expected: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.expected)
    }
}

impl Rejected {
    /// A reason of the caller's own.
    pub fn new(path: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { path: path.into(), expected: expected.into() }
    }
}

/// A person signed up.
#[derive(Deserialize, ToSchema)]
struct Submitted {
    /// Tells this event from others; else the message's id does, else its body.
    #[schema(value_type = Option<String>)]
    event_id: Option<Text>,
    /// When it happened; else when it arrives.
    occurred_at: Option<DateTime<Utc>>,
    signup_id: Uuid,
    /// The operator that the person signed up with.
    #[schema(value_type = String, pattern = r"\S")]
    operator_id: NonEmpty,
    #[schema(value_type = Option<String>)]
    operator_name: Option<Text>,
    #[schema(value_type = CustomerWithEmail)]
    customer: Object<CustomerWithEmail>,
    /// A flat map of string, number or boolean, passed through to the profile. A name that
    /// Customer.io reserves is refused; one of a named field is left out.
    #[serde(default)]
    #[schema(schema_with = fields::attributes_schema)]
    attributes: Option<Attributes>,
}

/// The bet slip of an upload was read and confirmed.
#[derive(Deserialize, ToSchema)]
struct Confirmed {
    /// Tells this event from others; else the message's id does, else its body.
    #[schema(value_type = Option<String>)]
    event_id: Option<Text>,
    /// When it happened; else when it arrives.
    occurred_at: Option<DateTime<Utc>>,
    signup_id: Uuid,
    /// The extraction that read the bet slip.
    #[schema(value_type = Option<String>)]
    extraction_id: Option<Text>,
    #[schema(value_type = BetSlip)]
    bet_slip: Object<BetSlip>,
    #[schema(value_type = Option<Customer>)]
    customer: Option<Object<Customer>>,
}

/// The JSON Schema of an event's body, and those that it refers to by name.
pub fn schema(event_type: EventType) -> (RefOr<Schema>, Vec<(String, RefOr<Schema>)>) {
    let mut referred = Vec::new();
    let schema = match event_type {
        EventType::Submitted => {
            Submitted::schemas(&mut referred);
            Submitted::schema()
        }
        EventType::Confirmed => {
            Confirmed::schemas(&mut referred);
            Confirmed::schema()
        }
    };
    (schema, referred)
}

/// A CloudEvents 1.0 envelope; its `data` is read in a second step.
#[derive(Deserialize)]
struct Envelope<'a> {
    specversion: Text,
    id: NonEmpty,
    #[serde(rename = "type")]
    event_type: NonEmpty,
    time: Option<DateTime<Utc>>,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Reads one message.
pub fn parse(raw: RawEvent<'_>) -> Result<Event, Rejected> {
    if raw.body.len() > MAX_BODY_BYTES {
        let found = raw.body.len();
        return Err(Rejected::new(
            "$",
            format!("body of {found} bytes, expected at most {MAX_BODY_BYTES}"),
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
    let envelope: Envelope<'_> = read(text, "")?;
    envelope.check(raw.event_type)?;
    let event = parse_data(raw, envelope.data.get(), "data.")?;
    Ok(Event { id: envelope.id.into(), occurred_at: event.occurred_at.or(envelope.time), ..event })
}

impl Envelope<'_> {
    fn check(&self, event_type: EventType) -> Result<(), Rejected> {
        if !self.specversion.as_str().starts_with("1.") {
            let found = self.specversion.as_str();
            return Err(Rejected::new("specversion", format!("found {found:?}, expected \"1.0\"")));
        }
        // A type is usually prefixed with a reversed domain name and often carries a version.
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
                details: Details::Submitted {
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
                details: Details::Confirmed {
                    extraction_id: data.extraction_id.and_then(Text::non_empty),
                    bet_slip: data.bet_slip.0,
                },
            }
        }
    })
}

/// The id of a message that brought none: the same for the same body (RFC 9562, section 5.5).
pub fn body_id(body: &[u8]) -> Uuid {
    const NAMESPACE: Uuid = Uuid::from_u128(0x7d2e_40a9_58c3_4b1f_8f05_2ab6_91d4_e03a);
    Uuid::new_v5(&NAMESPACE, body)
}

/// Deserializes, and reads a second time with the path recorded when the first time fails: the good
/// case stays fast.
fn read<'a, T: Deserialize<'a>>(text: &'a str, prefix: &str) -> Result<T, Rejected> {
    if let Ok(Object(value)) = serde_json::from_str(text) {
        return Ok(value);
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    match serde_path_to_error::deserialize::<_, Object<T>>(&mut deserializer) {
        // The value itself was fine, so what follows it is not.
        Ok(_) => Err(Rejected::new("$", "found something after the JSON object, expected the end")),
        Err(error) => Err(explain(&error, prefix)),
    }
}

fn explain(error: &serde_path_to_error::Error<serde_json::Error>, prefix: &str) -> Rejected {
    let mut path = error.path().to_string();
    let message = error.inner().to_string();
    // serde names the parent of a missing field; a reader wants the field.
    if let Some(field) =
        message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next())
    {
        path = if path == "." { field.to_owned() } else { format!("{path}.{field}") };
    }
    // Below a key without a name, the path is empty.
    let path =
        if matches!(path.as_str(), "." | "") { "$".to_owned() } else { format!("{prefix}{path}") };
    Rejected { path, expected: message }
}

#[cfg(test)]
mod tests;
