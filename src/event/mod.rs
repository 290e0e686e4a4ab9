//! The two events that upstream services publish, and their parser, [`parse`].
//!
//! Bytes become an [`Event`] with validated fields, or a [`Rejected`] that names the location of
//! the error and what was expected there. Callers decide what happens to either.

mod fields;
#[cfg(any(test, fuzzing))]
pub mod property;
mod scalar;

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
pub use scalar::{Number, Scalar};

/// Maximum size of an event id, in bytes.
pub const EVENT_ID_BYTES_MAX: usize = 255;
/// Encodings of the content that are none: the body is what it is.
const PLAIN_ENCODINGS: [&str; 3] = ["", "identity", "utf-8"];
/// The earliest time of an event, in seconds since 1970: the year 2000.
const EARLIEST_SECONDS: i64 = 946_684_800;

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
    /// AMQP property `content_encoding`.
    pub content_encoding: Option<&'a str>,
    /// AMQP property `message_id`.
    pub message_id: Option<&'a str>,
    /// AMQP property `timestamp`, in seconds since 1970.
    pub timestamp: Option<u64>,
    /// The attributes of a CloudEvents 1.0 event in binary mode, if the headers have them.
    pub binary: Option<BinaryAttributes<'a>>,
    /// Body, unchanged.
    pub body: &'a [u8],
}

impl<'a> RawEvent<'a> {
    /// A body without properties.
    pub fn new(event_type: EventType, body: &'a [u8]) -> Self {
        Self {
            event_type,
            content_type: None,
            content_encoding: None,
            message_id: None,
            timestamp: None,
            binary: None,
            body,
        }
    }
}

/// Attributes of a CloudEvents event that are headers of its message (`amqp-protocol-binding.md` of
/// [the specification](https://github.com/cloudevents/spec), section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BinaryAttributes<'a> {
    /// Version of the specification.
    pub specversion: &'a str,
    /// Id of the event.
    pub id: Option<&'a str>,
    /// Type of the event.
    pub event_type: Option<&'a str>,
    /// Time of the event (RFC 3339).
    pub time: Option<&'a str>,
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
    /// Unique id of the event, at most 255 bytes. Default: the message's id, else a hash of the
    /// body.
    #[schema(value_type = Option<String>)]
    event_id: Option<Text>,
    /// Time of the event. Default: the AMQP timestamp, else the time of arrival.
    occurred_at: Option<DateTime<Utc>>,
    #[serde(deserialize_with = "fields::trimmed_uuid")]
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
    /// Unique id of the event, at most 255 bytes. Default: the message's id, else a hash of the
    /// body.
    #[schema(value_type = Option<String>)]
    event_id: Option<Text>,
    /// Time of the event. Default: the AMQP timestamp, else the time of arrival.
    occurred_at: Option<DateTime<Utc>>,
    #[serde(deserialize_with = "fields::trimmed_uuid")]
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
    check_encoding(raw.content_encoding)?;
    let text = std::str::from_utf8(raw.body)
        .map_err(|error| Rejected::new("$", format!("expected JSON in UTF-8: {error}")))?;
    // A byte order mark says only that the text is UTF-8.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let event = if is_structured(raw.content_type, text) {
        let envelope: CloudEvent<'_> = read(text, "")?;
        check_cloud_event(envelope.specversion.as_str(), envelope.event_type.as_str(), raw)?;
        let event = parse_data(raw, envelope.data.get(), "data.")?;
        let occurred_at = event.occurred_at.or(envelope.time);
        Event { id: envelope.id.trimmed(), occurred_at, ..event }
    } else if let Some(binary) = raw.binary {
        parse_binary(raw, binary, text)?
    } else {
        parse_data(raw, text, "")?
    };
    let stated = event.occurred_at.or_else(|| at_seconds(raw.timestamp?));
    validated(Event { occurred_at: stated, ..event })
}

fn check_encoding(encoding: Option<&str>) -> Result<(), Rejected> {
    let found = encoding.unwrap_or_default().trim();
    if PLAIN_ENCODINGS.iter().any(|plain| plain.eq_ignore_ascii_case(found)) {
        return Ok(());
    }
    let expected = format!("found {found:?}, expected none, \"identity\" or \"utf-8\"");
    Err(Rejected::new("content_encoding", expected))
}

/// Whether the body is an envelope. Some publishers, such as Dapr, send one as `text/plain`.
fn is_structured(content_type: Option<&str>, text: &str) -> bool {
    #[derive(Deserialize)]
    struct Probe {
        specversion: Option<serde::de::IgnoredAny>,
    }
    let is_declared = content_type.is_some_and(|kind| {
        let start = kind.trim_start().get(..CLOUDEVENTS_CONTENT_TYPE.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(CLOUDEVENTS_CONTENT_TYPE))
    });
    let has_version = || {
        let probed = serde_json::from_str::<Object<Probe>>(text);
        probed.is_ok_and(|Object(probe)| probe.specversion.is_some())
    };
    // The search avoids a second parse of nearly every event.
    is_declared || text.contains("\"specversion\"") && has_version()
}

fn parse_binary(
    raw: RawEvent<'_>,
    attributes: BinaryAttributes<'_>,
    text: &str,
) -> Result<Event, Rejected> {
    let required = |name: &str, value: Option<&str>| {
        let value = value.unwrap_or_default().trim();
        if value.is_empty() {
            let expected = "missing, expected an attribute of a CloudEvents event";
            return Err(Rejected::new(format!("header {name}"), expected));
        }
        Ok(value.to_owned())
    };
    check_cloud_event(attributes.specversion, &required("type", attributes.event_type)?, raw)?;
    let id = required("id", attributes.id)?;
    let time = attributes.time.map(|time| {
        DateTime::parse_from_rfc3339(time.trim()).map(|time| time.to_utc()).map_err(|error| {
            Rejected::new("header time", format!("found {time:?}, expected RFC 3339: {error}"))
        })
    });
    let event = parse_data(raw, text, "")?;
    Ok(Event { id, occurred_at: event.occurred_at.or(time.transpose()?), ..event })
}

fn at_seconds(seconds: u64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0)
}

/// Checks what applies to the id and the time wherever they came from.
fn validated(event: Event) -> Result<Event, Rejected> {
    if event.id.len() > EVENT_ID_BYTES_MAX {
        let found = event.id.len();
        let expected = format!("{found} bytes, expected at most {EVENT_ID_BYTES_MAX}");
        return Err(Rejected::new("event id", expected));
    }
    match event.occurred_at {
        Some(time) if time.timestamp() < EARLIEST_SECONDS => Err(Rejected::new(
            "event time",
            format!("found {time}, expected a time since the year 2000"),
        )),
        _ => Ok(event),
    }
}

fn check_cloud_event(
    specversion: &str,
    event_type: &str,
    raw: RawEvent<'_>,
) -> Result<(), Rejected> {
    if !specversion.starts_with("1.") {
        let expected = format!("found {specversion:?}, expected \"1.0\"");
        return Err(Rejected::new("specversion", expected));
    }
    // A type usually begins with a reversed domain name and often ends with a version.
    let key = raw.event_type.routing_key();
    if !event_type.contains(key) {
        return Err(Rejected::new(
            "type",
            format!("unknown type {event_type:?}, expected one that contains {key:?}"),
        ));
    }
    Ok(())
}

fn parse_data(raw: RawEvent<'_>, text: &str, prefix: &str) -> Result<Event, Rejected> {
    let id = |event_id: Option<Text>| {
        let stated = event_id.and_then(Text::trimmed);
        let of_message = || raw.message_id.map(str::trim).filter(|id| !id.is_empty());
        stated
            .or_else(|| of_message().map(str::to_owned))
            .unwrap_or_else(|| body_id(raw.body).to_string())
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
                    operator_id: data.operator_id.trimmed(),
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
                    extraction_id: data.extraction_id.and_then(Text::trimmed),
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
