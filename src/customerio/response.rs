//! What an answer of the batch endpoint means for the jobs of its call. Pure.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::job::{ErrorType, Failure, Outcome};

/// An answer as it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    /// Where a redirect points to.
    pub(super) location: Option<&'a str>,
    pub(super) body: &'a [u8],
}

/// What it means.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Meaning {
    /// One outcome a job.
    Each(Vec<Outcome>),
    /// The call was refused whole. With more than one job in it, one of them may be the culprit.
    Whole(Failure),
}

/// The errors of a 207, or of a 400.
#[derive(Deserialize)]
struct Errors {
    errors: Option<Vec<ItemError>>,
}

impl Errors {
    /// `None` if the body is no JSON object.
    fn read(body: &[u8]) -> Option<Vec<ItemError>> {
        // serde_json does not look whether a text that it skips is UTF-8.
        let text = std::str::from_utf8(body).ok()?;
        // Alone, a derived `Deserialize` would take an array for the fields in their order, too.
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

/// Reads the answer to a call with `jobs` jobs, two operations each.
pub(super) fn read(answer: Answer<'_>, jobs: usize) -> Meaning {
    let all = |outcome: Outcome| Meaning::Each(vec![outcome; jobs]);
    let failure = |error_type| Failure { error_type, message: describe(answer) };
    let retryable = |error_type| Outcome::Retryable {
        failure: failure(error_type),
        retry_after: answer.retry_after,
    };
    match answer.status {
        200..=299 => read_success(answer, jobs),
        300..=399 => all(Outcome::Refused(Failure {
            error_type: ErrorType::Other,
            message: format!(
                "Customer.io answered {} and points to {}: the region or the URL is wrong",
                answer.status,
                answer.location.unwrap_or("nowhere")
            ),
        })),
        400 | 413 => Meaning::Whole(failure(ErrorType::Other)),
        408 => all(retryable(ErrorType::Other)),
        429 => all(retryable(ErrorType::RateLimit)),
        500..=599 => all(retryable(ErrorType::ServerError)),
        _ => all(Outcome::Refused(failure(ErrorType::Other))),
    }
}

/// A success names the items that were refused; all others were accepted. An answer that can't be
/// read is no proof of acceptance: trying again does no harm, since Customer.io ignores a tracked
/// event that it knows.
fn read_success(answer: Answer<'_>, jobs: usize) -> Meaning {
    let unclear = |why: String| {
        let failure = Failure { error_type: ErrorType::Other, message: why };
        Meaning::Each(vec![Outcome::Retryable { failure, retry_after: None }; jobs])
    };
    let errors = match Errors::read(answer.body) {
        Some(errors) => errors,
        None if answer.status != 207 && answer.body.trim_ascii().is_empty() => Vec::new(),
        None => return unclear(format!("{}, which can't be read", describe(answer))),
    };
    let mut outcomes = vec![Outcome::Accepted; jobs];
    for error in &errors {
        let Some(outcome) = error.batch_index.and_then(|index| outcomes.get_mut(index / 2)) else {
            return unclear(format!("{}, which names no item of the call", describe(answer)));
        };
        let what = if error.batch_index.is_some_and(|index| index % 2 == 0) {
            "identify"
        } else {
            "event"
        };
        let message = format!("Customer.io refused the {what}: {}", error.describe());
        // The first error of a job speaks for it.
        if *outcome == Outcome::Accepted {
            *outcome = Outcome::Refused(Failure { error_type: ErrorType::Other, message });
        }
    }
    Meaning::Each(outcomes)
}

/// The status and the start of the body, in one line.
fn describe(answer: Answer<'_>) -> String {
    let told = match Errors::read(answer.body) {
        Some(errors) if !errors.is_empty() => {
            errors.iter().map(ItemError::describe).collect::<Vec<_>>().join("; ")
        }
        _ => String::from_utf8_lossy(answer.body).split_whitespace().collect::<Vec<_>>().join(" "),
    };
    let told = &told[..told.floor_char_boundary(300)];
    if told.is_empty() {
        format!("Customer.io answered {}", answer.status)
    } else {
        format!("Customer.io answered {}: {told}", answer.status)
    }
}

/// The time that a `Retry-After` header asks for: seconds, or a date (RFC 9110, section 10.2.3).
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

    fn answer(status: u16, body: &str) -> Answer<'_> {
        Answer { status, retry_after: None, location: None, body: body.as_bytes() }
    }

    fn each(status: u16, body: &str, jobs: usize) -> Vec<Outcome> {
        match read(answer(status, body), jobs) {
            Meaning::Each(outcomes) => outcomes,
            Meaning::Whole(failure) => panic!("refused whole: {failure:?}"),
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
            assert!(matches!(read(answer(status, "{}"), 2), Meaning::Whole(_)), "{status}");
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
    fn an_answer_that_cannot_be_read_is_tried_again() {
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
        let not_utf8 = read(Answer { body, ..answer(207, "") }, 1);
        assert!(matches!(not_utf8, Meaning::Each(outcomes) if matches!(outcomes[0],
            Outcome::Retryable { .. })));
        for body in ["", "{}\n", r#"{"errors":null}"#] {
            assert_eq!(each(200, body, 1), [Outcome::Accepted], "{body}");
        }
    }

    #[test]
    fn errors_inside_a_200_are_looked_at() {
        let outcomes = each(200, r#"{"errors":[{"batch_index":0,"reason":"required"}]}"#, 2);
        assert!(matches!(outcomes[0], Outcome::Refused(_)));
        assert_eq!(outcomes[1], Outcome::Accepted);
    }

    #[test]
    fn a_refusal_tells_what_customer_io_said() {
        let body = r#"{"errors":[{"reason":"invalid","field":"batch","message":"not an array"}]}"#;
        let Meaning::Whole(failure) = read(answer(400, body), 1) else { panic!("refused whole") };
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
