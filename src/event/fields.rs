//! Fields of the events. Each is validated while it is deserialized, so that an error has a JSON
//! path.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};
use utoipa::{
    ToSchema,
    openapi::{ObjectBuilder, Schema, Type, schema::SchemaType},
};
use uuid::Uuid;

use super::scalar::{Number, Scalar};

/// Profile fields that this service sets. An attribute with one of these names is ignored, so that
/// it cannot override the field.
pub const NAMED_FIELDS: &[&str] = &[
    "id",
    "cio_id",
    "email",
    "first_name",
    "last_name",
    "phone",
    "state",
    "operator_id",
    "operator_name",
    "signup_id",
    "bet_amount",
    "team_bet_on",
    "odds",
    "confidence",
];

/// Attribute names with a special meaning to Customer.io, in an identify or in an event. Every name
/// below one of them has one as well, such as `cio_subscription_preferences.topics.topic_1`.
pub(super) const RESERVED_NAMES: &[&str] = &[
    "cio_subscription_preferences",
    "cio_relationships",
    "_update",
    "recipient",
    "from_address",
    "reply_to",
    "unsubscribed",
    "anonymous_id",
];

/// Whether a name is reserved, or below a reserved one. White space around it does not matter.
fn is_reserved(name: &str) -> bool {
    let name = name.trim();
    let top = name.split('.').next().unwrap_or(name).trim_end();
    RESERVED_NAMES.contains(&top)
}

/// A JSON object. A derived `Deserialize` on its own also accepts an array of the fields in order.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

/// A string that PostgreSQL can store: JSON allows `\u0000`, PostgreSQL's text does not
/// (<https://www.postgresql.org/docs/current/datatype-character.html>).
pub(super) struct Text(String);

impl Text {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns `None` if it is empty: an empty optional field counts as absent, because Customer.io
    /// would remove the attribute.
    pub(super) fn non_empty(self) -> Option<String> {
        Some(self.0).filter(|text| !text.is_empty())
    }

    /// The text without white space around it. `None` if nothing is left.
    pub(super) fn trimmed(self) -> Option<String> {
        Some(self.0.trim()).filter(|text| !text.is_empty()).map(str::to_owned)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.contains('\0') {
            return Err(D::Error::custom("found the character U+0000, expected text without it"));
        }
        Ok(Self(text))
    }
}

/// A [`Text`] that contains more than whitespace.
pub(super) struct NonEmpty(String);

impl NonEmpty {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The text without white space around it.
    pub(super) fn trimmed(self) -> String {
        self.0.trim().to_owned()
    }
}

impl From<NonEmpty> for String {
    fn from(text: NonEmpty) -> Self {
        text.0
    }
}

/// Deserializes a UUID, with or without white space around it.
pub(super) fn trimmed_uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
    let text = Cow::<'de, str>::deserialize(deserializer)?;
    text.trim().parse().map_err(|error| D::Error::custom(format!("UUID parsing failed: {error}")))
}

impl<'de> Deserialize<'de> for NonEmpty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?.0;
        if text.trim().is_empty() {
            return Err(D::Error::invalid_value(
                Unexpected::Str(&text),
                &"a string that is not empty",
            ));
        }
        Ok(Self(text))
    }
}

fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Text>::deserialize(deserializer)?.and_then(Text::non_empty))
}

/// An identifier or an address: without white space around it, and absent if nothing is left.
fn identifier<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Text>::deserialize(deserializer)?.and_then(Text::trimmed))
}

/// Data about the person. An empty field counts as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(default)]
pub struct Customer {
    /// Id of the customer in the publisher's system.
    #[serde(deserialize_with = "identifier")]
    pub id: Option<String>,
    /// E-mail address.
    #[serde(deserialize_with = "identifier")]
    pub email: Option<String>,
    /// First name.
    #[serde(deserialize_with = "optional")]
    pub first_name: Option<String>,
    /// Last name.
    #[serde(deserialize_with = "optional")]
    pub last_name: Option<String>,
    /// Telephone number.
    #[serde(deserialize_with = "optional")]
    pub phone: Option<String>,
    /// State of residence.
    #[serde(deserialize_with = "optional")]
    pub state: Option<String>,
}

/// A [`Customer`] whose e-mail address is required.
#[derive(Deserialize, ToSchema)]
pub(super) struct CustomerWithEmail {
    #[serde(default, deserialize_with = "identifier")]
    id: Option<String>,
    #[schema(value_type = String, pattern = r"\S")]
    email: NonEmpty,
    #[serde(default, deserialize_with = "optional")]
    first_name: Option<String>,
    #[serde(default, deserialize_with = "optional")]
    last_name: Option<String>,
    #[serde(default, deserialize_with = "optional")]
    phone: Option<String>,
    #[serde(default, deserialize_with = "optional")]
    state: Option<String>,
}

impl From<CustomerWithEmail> for Customer {
    fn from(customer: CustomerWithEmail) -> Self {
        let CustomerWithEmail { id, email, first_name, last_name, phone, state } = customer;
        Self { id, email: Some(email.trimmed()), first_name, last_name, phone, state }
    }
}

/// The bet slip that was extracted from an upload.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct BetSlip {
    /// Stake, at least 0, in the currency of the operator.
    #[serde(deserialize_with = "amount")]
    #[schema(value_type = f64, minimum = 0)]
    pub bet_amount: Number,
    /// Team that the bet is on.
    #[serde(deserialize_with = "required")]
    #[schema(pattern = r"\S")]
    pub team_bet_on: String,
    /// Odds, a JSON string or number, passed on as received.
    #[serde(deserialize_with = "odds")]
    #[schema(schema_with = odds_schema)]
    pub odds: Scalar,
    /// Confidence of the extraction, 0 to 1.
    #[serde(deserialize_with = "confidence")]
    #[schema(value_type = f64, minimum = 0, maximum = 1)]
    pub confidence: Number,
}

fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(NonEmpty::deserialize(deserializer)?.into())
}

fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
    let amount = Number::read(deserializer, &"a number")?;
    if amount.as_f64() >= 0.0 {
        Ok(amount)
    } else {
        Err(out_of_range(&amount, "a number of at least 0"))
    }
}

fn confidence<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
    let confidence = Number::read(deserializer, &"a number")?;
    if (0.0..=1.0).contains(&confidence.as_f64()) {
        Ok(confidence)
    } else {
        Err(out_of_range(&confidence, "a number from 0 to 1"))
    }
}

fn out_of_range<E: Error>(found: &Number, expected: &str) -> E {
    E::invalid_value(Unexpected::Other(&format!("number {found}")), &expected)
}

fn odds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Scalar, D::Error> {
    const EXPECTED: &str = "a string or a number";
    let odds = Scalar::read(deserializer, &EXPECTED)?;
    if odds.is_boolean() {
        let found = Unexpected::Bool(odds.json() == "true");
        return Err(D::Error::invalid_type(found, &EXPECTED));
    }
    Ok(odds)
}

fn odds_schema() -> Schema {
    ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Number])).into()
}

pub(super) fn attributes_schema() -> Schema {
    let value = ObjectBuilder::new().schema_type(SchemaType::from_iter([
        Type::String,
        Type::Number,
        Type::Boolean,
    ]));
    let attributes =
        ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::Object, Type::Null]));
    let names = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(format!(r"^(?!\s*({})\s*($|\.))", RESERVED_NAMES.join("|"))));
    attributes.additional_properties(Some(value)).property_names(Some(names)).into()
}

/// A flat map of strings, numbers and booleans, passed through to the profile. It contains none of
/// [`NAMED_FIELDS`] and no name that Customer.io reserves.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attributes(BTreeMap<String, Scalar>);

impl Attributes {
    /// Returns the attributes by name.
    pub fn as_map(&self) -> &BTreeMap<String, Scalar> {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Attributes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AttributesVisitor)
    }
}

struct AttributesVisitor;

impl<'de> Visitor<'de> for AttributesVisitor {
    type Value = Attributes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a flat map of strings, numbers and booleans")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Attributes, A::Error> {
        struct Attribute(Scalar);

        impl<'de> Deserialize<'de> for Attribute {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Scalar::read(deserializer, &"a string, a number or a boolean").map(Self)
            }
        }

        let mut attributes = BTreeMap::new();
        while let Some(name) = access.next_key::<Cow<'de, str>>()? {
            let Attribute(value) = access.next_value()?;
            if is_reserved(&name) {
                return Err(A::Error::custom(format!(
                    "the name {name:?} is reserved by Customer.io, expected another name"
                )));
            }
            if name.contains('\0') {
                return Err(A::Error::custom(
                    "found the character U+0000 in a name, expected text without it",
                ));
            }
            if !NAMED_FIELDS.contains(&name.as_ref()) {
                attributes.insert(name.into_owned(), value);
            }
        }
        Ok(Attributes(attributes))
    }
}
