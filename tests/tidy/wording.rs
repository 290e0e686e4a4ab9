//! Phrases that native readers stumble over, and what to write instead.

use std::{path::Path, sync::LazyLock};

use regex::Regex;

/// Patterns, and what to write instead. They are matched in lower case, and across line breaks.
const AVOIDED: [(&str, &str); 30] = [
    (r"\bafresh\b", "restart"),
    (r"\bmend(s|ed|ing)?\b", "fix"),
    (r"\bfor ever\b", "forever"),
    (r"\bany more\b", "no longer"),
    (r"\b(lately|of late)\b", "recently"),
    (r"\bso many\b", "the number or the limit"),
    (r"\bin hand\b", "in flight"),
    (r"\bfor good\b", "permanently"),
    (r"\ball the same\b", "still"),
    (r"\bthat is to be\b", "that will be"),
    (r"\bcomes? to nothing\b", "the effect"),
    (r"\b(be|is|are|was|were|has|have) taken in\b", "received"),
    (r"\bg(ive|ives|iven|ave) back\b", "requeue, release or return"),
    (r"\bwhoever\b", "the client, the operator, the caller"),
    (r"\bhow often it\b", "number of"),
    (r"\blook(s|ed|ing)? whether\b", "check whether"),
    (r"\b(is|are|was|were|be|been) looked (at|for)\b", "inspect, check, read"),
    (r"\b(is|are|was|were|be|been) told\b", "report, return, log, publish"),
    (r"\btells? (of|apart what|who)\b", "report, show"),
    (r"\b(try|tries|tried|trying) again\b", "retry"),
    (r"\b(a|each|every|one|first|second|last|next) try\b", "attempt"),
    (r"\b(could not|can't|cannot|can not) be understood\b", "unprocessable, can't be parsed"),
    (r"\bit is (waited|looked|asked|tried|said|told|written)\b", "name who does it"),
    (r"\bnobody works\b", "abandoned"),
    (r", too[.;:,)]", "also, including"),
    (r"\b\w+s( \w+){0,3} at most[.;:,)]", "maximum, before the noun"),
    (
        concat!(
            r"\b(jobs|calls|lines|rows|events|files|bytes|messages|requests|commits) an? ",
            r"(second|minute|hour|day|file|line|row|job|batch)\b",
        ),
        "per",
    ),
    (r"\b\d+ (\w+ )?an? (second|minute|hour|day|job|batch)\b", "per"),
    (r"\bone (file|line|row|endpoint|message) an? (file|verb|check|job|row|batch)\b", "per"),
    (r"/// (whoever|how often|what became)\b", "a noun"),
];

static PATTERNS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let compiled = |(pattern, instead): &(&str, &'static str)| {
        // A phrase may continue on the next line of a comment.
        let pattern = pattern.replace(' ', r"(?:\s+(?:(?://[/!]?|#|--|\*)\s*)?)");
        (Regex::new(&pattern).expect("the patterns are valid"), *instead)
    };
    AVOIDED.iter().map(compiled).collect()
});

/// The places of avoided phrases in a text. A document may quote one as code.
pub(crate) fn violations(path: &Path, text: &str) -> Vec<String> {
    static CODE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new("`[^`\n]*`").expect("a valid pattern"));
    let mut text = text.to_lowercase();
    if path.extension().is_some_and(|extension| extension == "md") {
        text = CODE.replace_all(&text, "``").into_owned();
    }
    let mut found = Vec::new();
    for (pattern, instead) in PATTERNS.iter() {
        for phrase in pattern.find_iter(&text) {
            let line = text[..phrase.start()].lines().count().max(1);
            let phrase = phrase.as_str().split_whitespace().collect::<Vec<_>>().join(" ");
            found.push(format!("{}:{line}: \"{phrase}\": write {instead}", path.display()));
        }
    }
    found
}

#[test]
fn planted_phrases_are_found() {
    for text in [
        "// The job starts afresh.",
        "# how often it is looked for jobs\n",
        "/// Whoever acts is recorded.",
        "// It is tried\n// again later.",
        "They are counted, too.",
        "It makes 50 calls a second.",
        "Rows in one transaction at most.",
        "// One line a check.",
        "messages that could not be understood",
    ] {
        assert!(!violations(Path::new("x"), text).is_empty(), "{text}");
    }
    for text in
        ["Maximum rows per transaction.", "at most 500 rows", "The number of calls.", "a day"]
    {
        assert_eq!(violations(Path::new("x"), text), Vec::<String>::new());
    }
}
