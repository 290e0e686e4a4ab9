//! What holds for any answer of Customer.io: property tests and the fuzzer look whether it does.

use std::time::SystemTime;

use super::answer::{Answer, Meaning, read, retry_after};
use crate::job::Outcome;

/// Every job of the call gets an outcome, and none counts as accepted unless the answer says so in words that are
/// understood.
pub fn no_answer_loses_a_job(status: u16, jobs: usize, body: &[u8]) {
    let header = String::from_utf8_lossy(body);
    let answer = Answer { status, retry_after: retry_after(&header, SystemTime::now()), location: Some(&header), body };
    let outcomes = match read(answer, jobs) {
        Meaning::Each(outcomes) => outcomes,
        Meaning::Whole(failure) => {
            assert!(matches!(status, 400 | 413) && !failure.message.is_empty());
            return;
        }
    };
    assert_eq!(outcomes.len(), jobs);
    let is_understood = match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(value) => value.is_object(),
        Err(_) => body.trim_ascii().is_empty() && status != 207,
    };
    for outcome in &outcomes {
        match outcome {
            Outcome::Accepted => assert!((200..300).contains(&status) && is_understood),
            Outcome::Refused(failure) | Outcome::Retryable { failure, .. } => assert!(!failure.message.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_lose_a_job(status in 100_u16..600, jobs in 1_usize..100, body in prop::collection::vec(any::<u8>(), 0..64)) {
            no_answer_loses_a_job(status, jobs, &body);
        }

        #[test]
        fn no_errors_lose_a_job(indexes in prop::collection::vec(prop::option::of(0..20_usize), 0..4), jobs in 1_usize..5) {
            let errors: Vec<_> = indexes.iter().map(|index| serde_json::json!({ "batch_index": index })).collect();
            no_answer_loses_a_job(207, jobs, serde_json::json!({ "errors": errors }).to_string().as_bytes());
        }
    }
}
