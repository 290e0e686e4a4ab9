//! What holds for any answer of Customer.io: property tests and the fuzzer look whether it does.

use std::{collections::HashMap, time::SystemTime};

use serde::de::IgnoredAny;

use super::response::{Answer, Meaning, read, retry_after};
use crate::job::Outcome;

/// Every job of the call gets an outcome, and none counts as accepted unless the answer says so in
/// words that are understood.
pub fn no_answer_loses_a_job(status: u16, jobs: usize, body: &[u8]) {
    let header = String::from_utf8_lossy(body);
    let answer = Answer {
        status,
        retry_after: retry_after(&header, SystemTime::now()),
        location: Some(&header),
        body,
    };
    let outcomes = match read(answer, jobs) {
        Meaning::Each(outcomes) => outcomes,
        Meaning::Whole(failure) => {
            assert!(matches!(status, 400 | 413) && !failure.message.is_empty());
            return;
        }
    };
    assert_eq!(outcomes.len(), jobs);
    // What the members hold is not looked at: a number that no `f64` can hold is JSON, too (RFC
    // 8259, section 6).
    let is_object = serde_json::from_slice::<HashMap<String, IgnoredAny>>(body).is_ok();
    let is_understood = is_object || body.trim_ascii().is_empty() && status != 207;
    for outcome in &outcomes {
        match outcome {
            Outcome::Accepted => assert!((200..300).contains(&status) && is_understood),
            Outcome::Refused(failure) | Outcome::Retryable { failure, .. } => {
                assert!(!failure.message.is_empty())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_that_no_float_can_hold_spoils_no_answer() {
        let answer =
            Answer { status: 200, retry_after: None, location: None, body: br#"{"took":1e999}"# };
        assert_eq!(read(answer, 1), Meaning::Each(vec![Outcome::Accepted]));
        no_answer_loses_a_job(answer.status, 1, answer.body);
    }

    proptest! {
        #[test]
        fn no_bytes_lose_a_job(
            status in 100_u16..600,
            jobs in 1_usize..100,
            body in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            no_answer_loses_a_job(status, jobs, &body);
        }

        #[test]
        fn no_errors_lose_a_job(
            indexes in prop::collection::vec(prop::option::of(0..20_usize), 0..4),
            jobs in 1_usize..5,
        ) {
            let error = |index: &_| serde_json::json!({ "batch_index": index });
            let errors: Vec<_> = indexes.iter().map(error).collect();
            let body = serde_json::json!({ "errors": errors }).to_string();
            no_answer_loses_a_job(207, jobs, body.as_bytes());
        }
    }
}
