//! Masks for personal data.

use std::sync::LazyLock;

use bytes::Bytes;
use regex::{Captures, Regex};
use serde_json::Value;

/// What may be personal data in a text: e-mail addresses, quoted values, and phone numbers with a
/// country code. A text that was truncated may end within a quoted value.
static PERSONAL: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = concat!(
        r#"(?P<address>[^\s@"'`<>(),;:=]+@[^\s@"'`<>(),;:]+)"#,
        r#"|(?P<quoted>"(?:[^"\\]|\\(?s:.))*(?:"|\\?$))"#,
        r"|\+\d[\d ().-]{5,}\d",
        // The parser of JSON quotes numbers like this, and names of fields.
        r"|`[+-]?\d[^`]*`",
    );
    Regex::new(pattern).expect("a valid pattern")
});

/// Masks all but the first character, and hides the length.
pub(crate) fn mask(text: &str) -> String {
    text.chars().take(1).chain("***".chars()).collect()
}

/// Masks an e-mail address: `a***@e***.com`. Masks a text that is none as a whole.
pub(crate) fn mask_address(address: &str) -> String {
    let Some((name, domain)) = address.rsplit_once('@') else { return mask(address) };
    let is_top_level = |label: &&str| {
        (2..=12).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_alphabetic())
    };
    let top_level = domain.rsplit_once('.').map(|(_, label)| label).filter(is_top_level);
    match top_level {
        Some(label) => format!("{}@{}.{label}", mask(name), mask(domain)),
        None => format!("{}@{}", mask(name), mask(domain)),
    }
}

/// Masks a person identifier if it is an e-mail address or a phone number.
pub(crate) fn mask_identifier(id: &str) -> String {
    if id.contains('@') || id.starts_with('+') { mask_address(id) } else { id.to_owned() }
}

/// Masks what may be personal data in a text, such as an error message.
pub(crate) fn mask_text(text: &str) -> String {
    let masked = PERSONAL.replace_all(text, |found: &Captures<'_>| {
        if let Some(address) = found.name("address") {
            mask_address(address.as_str())
        } else if found.name("quoted").is_some() {
            r#""***""#.to_owned()
        } else {
            "***".to_owned()
        }
    });
    masked.into_owned()
}

/// Masks what may be personal data in the texts of a JSON value.
pub(crate) fn mask_json(value: &mut Value) {
    match value {
        Value::String(text) => *text = mask_text(text),
        Value::Array(items) => items.iter_mut().for_each(mask_json),
        Value::Object(fields) => {
            fields.iter_mut().for_each(|(name, value)| mask_field(name, value));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn mask_field(name: &str, value: &mut Value) {
    match (name, value) {
        ("contactId", Value::String(id)) => *id = mask_identifier(id),
        // A part of an address or of a name.
        ("search", Value::String(text)) => *text = mask_address(text),
        (_, value) => mask_json(value),
    }
}

/// Masks a frame of the live feed. Returns `None` if the frame is not JSON.
pub(crate) fn mask_frame(frame: &[u8]) -> Option<Bytes> {
    let mut value = serde_json::from_slice(frame).ok()?;
    mask_json(&mut value);
    Some(serde_json::to_vec(&value).expect("a JSON value can be written").into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_keeps_first_letters_and_the_top_level_domain() {
        for (address, masked) in [
            ("ann.lee@example.com", "a***@e***.com"),
            ("Änn@exämple.co.uk", "Ä***@e***.uk"),
            ("ann@localhost", "a***@l***"),
            ("ann@host.ann lee", "a***@h***"),
            ("a@b@example.org", "a***@e***.org"),
            ("ann", "a***"),
            ("", "***"),
        ] {
            assert_eq!(mask_address(address), masked, "{address}");
        }
        assert_eq!(mask_identifier("c-991"), "c-991");
        assert_eq!(mask_identifier("ann@example.com"), "a***@e***.com");
        assert_eq!(mask_identifier("+15550100"), "+***");
    }

    #[test]
    fn a_masked_text_contains_no_address_quoted_value_or_phone_number() {
        for (text, masked) in [
            ("Customer.io answered 503: trace 4711", "Customer.io answered 503: trace 4711"),
            ("refused ann@example.com: unknown", "refused a***@e***.com: unknown"),
            ("to=<ann@example.com>, bob@test.org.", "to=<a***@e***.com>, b***@t***"),
            (r#"found "Ann \"A\" Lee", expected"#, r#"found "***", expected"#),
            (r#"found "Ann Le"#, r#"found "***""#),
            (r#"found "Ann \"#, r#"found "***""#),
            ("call +1 (555) 010-0123 now", "call *** now"),
            ("at 2025-02-18T12:00:00Z", "at 2025-02-18T12:00:00Z"),
        ] {
            assert_eq!(mask_text(text), masked, "{text}");
        }
    }

    #[test]
    fn a_masked_frame_keeps_its_shape() {
        let frame = json!({
            "contactId": "ann@example.com",
            "errorMessage": "refused ann@example.com",
            "attemptCount": 3,
            "bulkRetry": { "selection": { "search": "Lee" }, "retried": [1, null, true] },
        });
        let masked = mask_frame(frame.to_string().as_bytes()).expect("JSON");
        let expected = json!({
            "contactId": "a***@e***.com",
            "errorMessage": "refused a***@e***.com",
            "attemptCount": 3,
            "bulkRetry": { "selection": { "search": "L***" }, "retried": [1, null, true] },
        });
        assert_eq!(serde_json::from_slice::<Value>(&masked).expect("JSON"), expected);
        assert_eq!(mask_frame(b"ann@example.com"), None);
    }
}
