//! Invariants of the response reader, checked by property tests and by the fuzzer.

#![expect(clippy::disallowed_methods, reason = "an edge: a property of any time")]

use std::{collections::HashMap, time::SystemTime};

use serde::de::IgnoredAny;

use super::response::{BatchResponse, RawResponse, read, retry_after};
use crate::job::Outcome;

/// Every job of the call gets an outcome, and none counts as accepted unless the response says so
/// in a form that can be parsed.
pub fn every_job_gets_an_outcome(status: u16, jobs: usize, body: &[u8]) {
    let header = String::from_utf8_lossy(body);
    let response = RawResponse {
        status,
        retry_after: retry_after(&header, SystemTime::now()),
        location: Some(&header),
        body,
    };
    let operations: Vec<_> = (0..jobs).map(|job| 2 + job % 3).collect();
    let outcomes = match read(response, &operations) {
        BatchResponse::PerJob(outcomes) => outcomes,
        BatchResponse::RejectedWhole(failure) => {
            assert!(matches!(status, 400 | 413) && !failure.message.is_empty());
            return;
        }
    };
    assert_eq!(outcomes.len(), jobs);
    // The values of the members are not parsed: JSON allows numbers that exceed an `f64` (RFC 8259,
    // section 6).
    let is_object = serde_json::from_slice::<HashMap<String, IgnoredAny>>(body).is_ok();
    let is_parsable = is_object || body.trim_ascii().is_empty() && status != 207;
    for outcome in &outcomes {
        match outcome {
            Outcome::Accepted => assert!((200..300).contains(&status) && is_parsable),
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
    fn a_number_beyond_every_float_spoils_no_response() {
        let response = RawResponse {
            status: 200,
            retry_after: None,
            location: None,
            body: br#"{"took":1e999}"#,
        };
        assert_eq!(read(response, &[2]), BatchResponse::PerJob(vec![Outcome::Accepted]));
        every_job_gets_an_outcome(response.status, 1, response.body);
    }

    proptest! {
        #[test]
        fn any_bytes_give_every_job_an_outcome(
            status in 100_u16..600,
            jobs in 1_usize..100,
            body in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            every_job_gets_an_outcome(status, jobs, &body);
        }

        #[test]
        fn any_errors_give_every_job_an_outcome(
            indexes in prop::collection::vec(prop::option::of(0..20_usize), 0..4),
            jobs in 1_usize..5,
        ) {
            let error = |index: &_| serde_json::json!({ "batch_index": index });
            let errors: Vec<_> = indexes.iter().map(error).collect();
            let body = serde_json::json!({ "errors": errors }).to_string();
            every_job_gets_an_outcome(207, jobs, body.as_bytes());
        }
    }
}
