//! Literals that have one place: names of exchanges, queues and headers in `src/broker/names.rs`,
//! and the texts of enums in their `text_enum!`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::source::{string_literals, text_enums};

const NAMES: &str = "src/broker/names.rs";
/// The enums whose texts may not be written out elsewhere.
const ENUMS: [&str; 7] =
    ["Status", "Reason", "ErrorType", "FailureCause", "AuditAction", "BulkStatus", "OutcomeType"];

/// A text of an enum that is also an ordinary word, and a label of its own elsewhere.
const ORDINARY_WORD: &str = "other";

/// Literals with the text of an enum and another meaning: the keys of RabbitMQ's policies.
const OTHER_MEANINGS: [(&str, &str); 3] = [
    ("src/broker/management.rs", "delivery-limit"),
    // RabbitMQ's reason for a dead letter.
    ("src/flows/mirror/mod.rs", "expired"),
    ("src/runtime/certificate.rs", "expired"),
];

/// Literals, and the place of each.
pub(crate) struct Values(BTreeMap<String, PathBuf>);

impl Values {
    pub(crate) fn of(sources: &[(PathBuf, String)]) -> Self {
        let mut values = BTreeMap::new();
        for (path, text) in sources {
            for (name, texts) in text_enums(text) {
                if ENUMS.contains(&name.as_str()) {
                    let texts = texts.into_iter().filter(|text| text != ORDINARY_WORD);
                    values.extend(texts.map(|text| (text, path.clone())));
                }
            }
            if path == Path::new(NAMES) {
                let names = string_literals(text).into_iter().map(|(_, name)| name);
                let names = names.filter(|name| name.contains(['.', '-']) && !name.contains(' '));
                values.extend(names.map(|name| (name, path.clone())));
            }
        }
        assert!(values.len() > 40, "the names and texts were found");
        Self(values)
    }

    /// The literals in a file that belong to another place.
    pub(crate) fn misplaced_in(&self, path: &Path, text: &str) -> Vec<String> {
        let is_misplaced = |literal: &str| {
            let has_other_meaning = OTHER_MEANINGS
                .iter()
                .any(|(place, text)| path == Path::new(place) && *text == literal);
            !has_other_meaning && self.0.get(literal).is_some_and(|place| place != path)
        };
        let literals = string_literals(before_tests(text)).into_iter();
        literals
            .filter(|(_, literal)| is_misplaced(literal))
            .map(|(line, literal)| {
                let place = self.0[&literal].display();
                format!("{}:{line}: {literal:?} belongs to {place}", path.display())
            })
            .collect()
    }
}

/// The code before the unit tests, which repeat texts to check them.
fn before_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

#[test]
fn planted_literals_are_found() {
    let status = "text_enum! { /// Doc.\n Status { /// Doc.\n Failed = \"failed\", } }".to_owned();
    let names =
        (0..45).map(|n| format!("const N{n}: &str = \"x-header-{n}\";")).collect::<String>();
    let sources = [(PathBuf::from("src/job/mod.rs"), status), (PathBuf::from(NAMES), names)];
    let values = Values::of(&sources);
    let planted = "fn f() { g(\"failed\"); g(\"x-header-7\"); g(\"other\"); }";
    assert_eq!(values.misplaced_in(Path::new("src/app.rs"), planted).len(), 2);
    let (path, text) = &sources[0];
    assert!(values.misplaced_in(path, text).is_empty());
}
