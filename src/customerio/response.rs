//! Reads a response of the batch endpoint as an outcome per job. Pure.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::job::{Failure, FailureCause, Outcome};

/// A response as it was received.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawResponse<'a> {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    /// The target of a redirect.
    pub(super) location: Option<&'a str>,
    pub(super) body: &'a [u8],
}

/// A response of the batch endpoint, read for the jobs of its call.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum BatchResponse {
    /// One outcome per job, in the order of the call.
    PerJob(Vec<Outcome>),
    /// The call was refused as a whole. With more than one job in it, one of them may be the cause.
    RejectedWhole(Failure),
}

/// The errors of a 207, or of a 400.
#[derive(Deserialize)]
struct Errors {
    errors: Option<Vec<ItemError>>,
}

impl Errors {
    /// Returns `None` if the body is not a JSON object.
    fn read(body: &[u8]) -> Option<Vec<ItemError>> {
        // serde_json does not check that text it skips is UTF-8.
        let text = std::str::from_utf8(body).ok()?;
        // A derived `Deserialize` would also accept an array of the fields in their order.
        let read: Self =
            text.trim_start().starts_with('{').then(|| serde_json::from_str(text).ok())??;
        Some(read.errors.unwrap_or_default())
    }
}

#[derive(Deserialize)]
struct ItemError {
    batch_index: Option<usize>,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    field: String,
    #[serde(default)]
    message: String,
}

impl ItemError {
    fn describe(&self) -> String {
        let parts = [self.reason.as_str(), self.field.as_str(), self.message.as_str()];
        parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(": ")
    }
}

/// Reads the response to a call. `jobs` are its jobs, with the number of operations of each, of
/// which the last is the tracked event.
pub(super) fn read(response: RawResponse<'_>, jobs: &[usize]) -> BatchResponse {
    let all = |outcome: Outcome| BatchResponse::PerJob(vec![outcome; jobs.len()]);
    let failure = || Failure::new(FailureCause::of_status(response.status), describe(response));
    match response.status {
        200..=299 => read_success(response, jobs),
        300..=399 => {
            let redirect = match response.location {
                Some(location) => format!("redirects to {location}"),
                None => "redirects without a Location header".to_owned(),
            };
            all(Outcome::Refused(Failure::new(
                FailureCause::AddressRefused,
                format!(
                    "Customer.io answered {} and {redirect}: the region or the URL is wrong",
                    response.status
                ),
            )))
        }
        400 | 413 => BatchResponse::RejectedWhole(failure()),
        408 | 429 | 500..=599 => {
            all(Outcome::Retryable { failure: failure(), retry_after: response.retry_after })
        }
        _ => all(Outcome::Refused(failure())),
    }
}

/// A success names the items that were refused; all others were accepted. A response that can't be
/// parsed does not prove acceptance. Retrying is harmless, since Customer.io ignores a tracked
/// event whose id it has received.
fn read_success(response: RawResponse<'_>, jobs: &[usize]) -> BatchResponse {
    let unclear = |why: String| {
        let failure = Failure::new(FailureCause::ResponseUnclear, why);
        BatchResponse::PerJob(vec![Outcome::Retryable { failure, retry_after: None }; jobs.len()])
    };
    let errors = match Errors::read(response.body) {
        Some(errors) => errors,
        None if response.status != 207 && response.body.trim_ascii().is_empty() => Vec::new(),
        None => return unclear(format!("{}, which can't be parsed", describe(response))),
    };
    let mut outcomes = vec![Outcome::Accepted; jobs.len()];
    for error in &errors {
        let Some((job, is_event)) = error.batch_index.and_then(|index| operation_at(index, jobs))
        else {
            return unclear(format!("{}, which names no item of this call", describe(response)));
        };
        let outcome = &mut outcomes[job];
        let what = if is_event { "event" } else { "identify" };
        let message = format!("Customer.io refused the {what}: {}", error.describe());
        // The first error of a job becomes its failure.
        if *outcome == Outcome::Accepted {
            *outcome = Outcome::Refused(Failure::new(FailureCause::ItemRefused, message));
        }
    }
    BatchResponse::PerJob(outcomes)
}

/// The job whose operation has this index in the call, and whether it is the tracked event.
fn operation_at(index: usize, jobs: &[usize]) -> Option<(usize, bool)> {
    let mut end = 0;
    jobs.iter().enumerate().find_map(|(job, operations)| {
        end += operations;
        (index < end).then_some((job, index + 1 == end))
    })
}

/// Describes the response in one line: the status and the start of the errors or the body.
fn describe(response: RawResponse<'_>) -> String {
    let details = match Errors::read(response.body) {
        Some(errors) if !errors.is_empty() => {
            errors.iter().map(ItemError::describe).collect::<Vec<_>>().join("; ")
        }
        _ => {
            String::from_utf8_lossy(response.body).split_whitespace().collect::<Vec<_>>().join(" ")
        }
    };
    let details = &details[..details.floor_char_boundary(300)];
    if details.is_empty() {
        format!("Customer.io answered {}", response.status)
    } else {
        format!("Customer.io answered {}: {details}", response.status)
    }
}

/// Parses a `Retry-After` header: seconds, or a date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(header).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::ErrorType;

    fn answer(status: u16, body: &str) -> RawResponse<'_> {
        RawResponse { status, retry_after: None, location: None, body: body.as_bytes() }
    }

    fn each(status: u16, body: &str, jobs: usize) -> Vec<Outcome> {
        match read(answer(status, body), &vec![2; jobs]) {
            BatchResponse::PerJob(outcomes) => outcomes,
            BatchResponse::RejectedWhole(failure) => panic!("refused whole: {failure:?}"),
        }
    }

    fn error_type(outcome: &Outcome) -> Option<(bool, ErrorType)> {
        match outcome {
            Outcome::Accepted => None,
            Outcome::Retryable { failure, .. } => Some((true, failure.error_type)),
            Outcome::Refused(failure) => Some((false, failure.error_type)),
        }
    }

    #[test]
    fn every_status_is_classified() {
        let cases = [
            (200, None),
            (408, Some((true, ErrorType::Other))),
            (429, Some((true, ErrorType::RateLimit))),
            (500, Some((true, ErrorType::ServerError))),
            (502, Some((true, ErrorType::ServerError))),
            (503, Some((true, ErrorType::ServerError))),
            (504, Some((true, ErrorType::ServerError))),
            (401, Some((false, ErrorType::Other))),
            (403, Some((false, ErrorType::Other))),
            (404, Some((false, ErrorType::Other))),
            (422, Some((false, ErrorType::Other))),
            (302, Some((false, ErrorType::Other))),
        ];
        for (status, expected) in cases {
            let outcomes = each(status, "{}\n", 2);
            assert_eq!(
                outcomes.iter().map(error_type).collect::<Vec<_>>(),
                [expected; 2],
                "{status}"
            );
        }
        for status in [400, 413] {
            assert!(
                matches!(read(answer(status, "{}"), &[2, 2]), BatchResponse::RejectedWhole(_)),
                "{status}"
            );
        }
    }

    #[test]
    fn a_207_refuses_the_named_items_and_accepts_all_others() {
        let body = r#"{"errors":[{"batch_index":3,"reason":"invalid",
            "field":"attributes.plan","message":"too long"}]}"#;
        let outcomes = each(207, body, 3);
        assert_eq!((&outcomes[0], &outcomes[2]), (&Outcome::Accepted, &Outcome::Accepted));
        let Outcome::Refused(failure) = &outcomes[1] else { panic!("refused") };
        assert_eq!(
            failure.message,
            "Customer.io refused the event: invalid: attributes.plan: too long"
        );
    }

    #[test]
    fn an_error_belongs_to_the_job_of_its_operation() {
        let refused = |index: usize| {
            let body = format!(r#"{{"errors":[{{"batch_index":{index},"reason":"invalid"}}]}}"#);
            let BatchResponse::PerJob(outcomes) = read(answer(207, &body), &[2, 3, 2]) else {
                panic!("an outcome per job")
            };
            let refused = outcomes.iter().position(|one| *one != Outcome::Accepted);
            let refused = refused.expect("one is refused");
            (refused, outcomes[refused].failure().expect("a failure").message.clone())
        };
        for (index, job, what) in [
            (1, 0, "event"),
            (2, 1, "identify"),
            (3, 1, "identify"),
            (4, 1, "event"),
            (5, 2, "identify"),
        ] {
            let message = format!("Customer.io refused the {what}: invalid");
            assert_eq!(refused(index), (job, message), "operation {index}");
        }
    }

    #[test]
    fn a_response_that_cannot_be_parsed_is_retried() {
        for (status, body) in [
            (200, "<html>"),
            (200, "[]"),
            (207, ""),
            (207, "{\"errors\":[{"),
            (207, r#"{"errors":[{"batch_index":9}]}"#),
        ] {
            let outcomes = each(status, body, 2);
            assert!(
                outcomes.iter().all(|one| matches!(one, Outcome::Retryable { .. })),
                "{status} {body}"
            );
        }
        let body = b"{\"skipped\":\"\xff\"}";
        let not_utf8 = read(RawResponse { body, ..answer(207, "") }, &[2]);
        assert!(matches!(not_utf8, BatchResponse::PerJob(outcomes) if matches!(outcomes[0],
            Outcome::Retryable { .. })));
        for body in ["", "{}\n", r#"{"errors":null}"#] {
            assert_eq!(each(200, body, 1), [Outcome::Accepted], "{body}");
        }
    }

    #[test]
    fn errors_inside_a_200_are_honoured() {
        let outcomes = each(200, r#"{"errors":[{"batch_index":0,"reason":"required"}]}"#, 2);
        assert!(matches!(outcomes[0], Outcome::Refused(_)));
        assert_eq!(outcomes[1], Outcome::Accepted);
    }

    #[test]
    fn a_refusal_quotes_customer_io() {
        let body = r#"{"errors":[{"reason":"invalid","field":"batch","message":"not an array"}]}"#;
        let BatchResponse::RejectedWhole(failure) = read(answer(400, body), &[2]) else {
            panic!("refused whole")
        };
        assert_eq!(failure.message, "Customer.io answered 400: invalid: batch: not an array");
        let html = each(503, "<html>\n  <h1>Sorry</h1>\n</html>", 1);
        let Outcome::Retryable { failure, .. } = &html[0] else { panic!("retryable") };
        assert_eq!(failure.message, "Customer.io answered 503: <html> <h1>Sorry</h1> </html>");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Tue, 18 Feb 2025 12:00:00 GMT").expect("a date");
        assert_eq!(retry_after("30", now), Some(Duration::from_secs(30)));
        assert_eq!(
            retry_after("Tue, 18 Feb 2025 12:01:00 GMT", now),
            Some(Duration::from_secs(60))
        );
        assert_eq!(retry_after("Tue, 18 Feb 2025 11:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
    }
}
