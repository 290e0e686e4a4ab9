//! JSON scalars as they were written, so that no number is rounded on its way to Customer.io.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Expected, Unexpected},
};
use serde_json::{Value, value::RawValue};

/// Maximum digits of a number, without its exponent.
const DIGITS_MAX: usize = 40;
/// Maximum absolute value of a number's exponent.
const EXPONENT_MAX: u32 = 308;

/// A JSON string, number or boolean, as it was written.
#[derive(Debug, Clone)]
pub struct Scalar(Box<RawValue>);

impl Scalar {
    /// A scalar that was valid when it was stored.
    pub fn stored(json: Box<RawValue>) -> Self {
        Self(json)
    }

    /// The JSON text.
    pub fn json(&self) -> &str {
        self.0.get()
    }

    /// The value, with numbers rounded to `f64`.
    pub fn rounded(&self) -> Value {
        serde_json::from_str(self.json()).unwrap_or_default()
    }

    /// The contents of a string.
    pub fn as_text(&self) -> Option<Cow<'_, str>> {
        if self.json().starts_with('"') { serde_json::from_str(self.json()).ok() } else { None }
    }

    /// Whether it is `true` or `false`.
    pub(super) fn is_boolean(&self) -> bool {
        self.json().starts_with(['t', 'f'])
    }

    /// Reads a scalar. `expected` describes it in an error.
    pub(super) fn read<'de, D: Deserializer<'de>>(
        deserializer: D,
        expected: &dyn Expected,
    ) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let unexpected = match raw.get().as_bytes().first() {
            Some(b'"') => return checked_text(raw),
            Some(b'-' | b'0'..=b'9') => return checked_number(raw),
            Some(b't' | b'f') => return Ok(Self(raw)),
            Some(b'{') => Unexpected::Map,
            Some(b'[') => Unexpected::Seq,
            _ => Unexpected::Other("null"),
        };
        Err(D::Error::invalid_type(unexpected, expected))
    }
}

fn checked_text<E: Error>(raw: Box<RawValue>) -> Result<Scalar, E> {
    // Only an escape can stand for U+0000, or for half of a surrogate pair.
    if raw.get().contains('\\') {
        let text: String = serde_json::from_str(raw.get()).map_err(|_| {
            E::custom("found half of a surrogate pair, expected text of whole characters")
        })?;
        if text.contains('\0') {
            return Err(E::custom("found the character U+0000, expected text without it"));
        }
    }
    Ok(Scalar(raw))
}

fn checked_number<E: Error>(raw: Box<RawValue>) -> Result<Scalar, E> {
    let decimal = Decimal::of(raw.get());
    let rounded = raw.get().parse::<f64>().unwrap_or(f64::INFINITY);
    let is_representable = rounded.is_finite() && (rounded != 0.0 || decimal.digits.is_empty());
    if decimal.written_digits > DIGITS_MAX
        || decimal.written_exponent.is_none_or(|exponent| exponent.unsigned_abs() > EXPONENT_MAX)
        || !is_representable
    {
        return Err(E::custom(format!(
            "number out of range, expected at most {DIGITS_MAX} digits and an exponent of at most \
                {EXPONENT_MAX}"
        )));
    }
    Ok(Scalar(raw))
}

impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        self.json() == other.json()
    }
}

impl Serialize for Scalar {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// A JSON number, as it was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Number(Scalar);

impl Number {
    /// A number that was valid when it was stored as `rounded`, and as `exact` if
    /// [`Self::is_rounded`]. A release that does not know `exact` may have changed `rounded` since.
    pub fn stored(rounded: f64, exact: Option<Box<RawValue>>) -> Self {
        let exact = exact.map(|json| Self(Scalar(json)));
        exact.filter(|exact| exact.as_f64() == rounded).unwrap_or_else(|| rounded.into())
    }

    /// The JSON text.
    pub fn json(&self) -> &str {
        self.0.json()
    }

    /// The nearest `f64`.
    pub fn as_f64(&self) -> f64 {
        self.json().parse().unwrap_or_default()
    }

    /// Whether `f64` can't represent it: the shortest text of [`Self::as_f64`] is another number.
    pub fn is_rounded(&self) -> bool {
        Decimal::of(self.json()).value() != Decimal::of(&self.as_f64().to_string()).value()
    }

    pub(super) fn read<'de, D: Deserializer<'de>>(
        deserializer: D,
        expected: &dyn Expected,
    ) -> Result<Self, D::Error> {
        let scalar = Scalar::read(deserializer, expected)?;
        match scalar.as_text() {
            Some(text) => Err(D::Error::invalid_type(Unexpected::Str(&text), expected)),
            None if scalar.is_boolean() => {
                let found = scalar.json() == "true";
                Err(D::Error::invalid_type(Unexpected::Bool(found), expected))
            }
            None => Ok(Self(scalar)),
        }
    }
}

impl From<f64> for Number {
    /// Zero for a value that JSON does not have.
    fn from(value: f64) -> Self {
        let finite = if value.is_finite() { value } else { 0.0 };
        let json = serde_json::value::to_raw_value(&finite);
        Self(Scalar(json.unwrap_or_else(|_| RawValue::NULL.to_owned())))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.json())
    }
}

/// The parts of a JSON number (RFC 8259, section 6).
struct Decimal {
    is_negative: bool,
    /// Without zeros at either end.
    digits: String,
    /// The number is 0.`digits` × 10 to the power of this.
    magnitude: i64,
    /// Digits as written.
    written_digits: usize,
    /// The exponent as written. `None` if it exceeds every limit.
    written_exponent: Option<i32>,
}

impl Decimal {
    fn of(json: &str) -> Self {
        let (mantissa, exponent) = json.split_once(['e', 'E']).unwrap_or((json, "0"));
        let is_negative = mantissa.starts_with('-');
        let mantissa = mantissa.trim_start_matches('-');
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let leading_zeros = all.len() - all.trim_start_matches('0').len();
        let written_exponent = exponent.parse::<i32>().ok();
        Self {
            is_negative,
            digits: all.trim_matches('0').to_owned(),
            magnitude: i64::from(written_exponent.unwrap_or_default()) + whole.len() as i64
                - leading_zeros as i64,
            written_digits: all.len(),
            written_exponent,
        }
    }

    /// Equal for equal numbers.
    fn value(&self) -> Option<(bool, &str, i64)> {
        let is_zero = self.digits.is_empty();
        (!is_zero).then_some((self.is_negative, self.digits.as_str(), self.magnitude))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Any(Scalar);

    impl<'de> Deserialize<'de> for Any {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Scalar::read(deserializer, &"a scalar").map(Self)
        }
    }

    fn read(json: &str) -> Result<String, String> {
        let read = serde_json::from_str::<Any>(json);
        read.map(|Any(scalar)| scalar.json().to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_scalar_stays_as_it_was_written() {
        let longest = "9".repeat(40);
        for json in [
            "100000000000000000001",
            "0.1000000000000000000000001",
            "1.50",
            "-2e-7",
            "1E+308",
            "1e-308",
            &longest,
            "0e0",
            "true",
            r#""+150""#,
            r#""caf\u00e9""#,
        ] {
            assert_eq!(read(json), Ok(json.to_owned()));
        }
    }

    #[test]
    fn a_number_out_of_range_is_refused() {
        let too_long = "9".repeat(41);
        for json in [
            too_long.as_str(),
            "1e309",
            "1e-309",
            "99e307999999999999999",
            "12345e308",
            "0.00000000000000000001e-308",
            "0e-2147483648",
            "0e99999999999999999999",
        ] {
            let error = read(json).expect_err(json);
            assert!(
                error.starts_with("number out of range, expected at most 40 digits"),
                "{error}"
            );
        }
    }

    #[test]
    fn other_values_and_text_that_cannot_be_stored_are_refused() {
        for (json, expected) in [
            ("null", "invalid type: null, expected a scalar"),
            ("{}", "invalid type: map, expected a scalar"),
            ("[1]", "invalid type: sequence, expected a scalar"),
            (r#""\u0000""#, "U+0000"),
            (r#""\ud800""#, "surrogate"),
        ] {
            let error = read(json).expect_err(json);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_number_that_f64_cannot_represent_is_recognized() {
        let number = |json: &str| {
            let raw = RawValue::from_string(json.to_owned()).expect("JSON");
            Number(Scalar(raw))
        };
        for exact in ["0", "-0.0", "50", "50.00", "0.1", "1e22", "1E+2", "123456.789e-3", "5e-324"]
        {
            assert!(!number(exact).is_rounded(), "{exact}");
        }
        for rounded in ["100000000000000000001", "0.1000000000000000000000001", "9007199254740993"]
        {
            assert!(number(rounded).is_rounded(), "{rounded}");
        }
    }

    #[test]
    fn an_exact_number_counts_while_it_belongs_to_the_rounded_one() {
        let exact = || RawValue::from_string("9007199254740993".to_owned()).ok();
        assert_eq!(Number::stored(9_007_199_254_740_992.0, exact()).json(), "9007199254740993");
        assert_eq!(Number::stored(12.5, exact()).json(), "12.5");
        assert_eq!(Number::stored(50.0, None).json(), "50.0");
    }
}
