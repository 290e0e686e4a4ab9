//! The meaning of a failure, in words: its signature, which groups it with others of the same
//! cause, and its diagnosis. Pure.

use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use regex::Regex;

use crate::{
    job::{ErrorType, FailureCause, Reason},
    runtime::text_enum::text_enum,
};

/// Maximum length of a signature in bytes. It is a key of an index.
const SIGNATURE_BYTES_MAX: usize = 240;

/// Customer.io records older events, but starts no campaign for them (Track API, event
/// `timestamp`).
const CAMPAIGN_WINDOW: TimeDelta = TimeDelta::hours(72);

/// Returns `message` without what differs between failures of the same cause: quoted values, URLs,
/// addresses, ids and numbers. The HTTP status of a response stays, since it distinguishes causes.
pub fn signature(message: &str) -> String {
    /// A token with a digit that 15 or more characters follow, or precede.
    const ID: &str = concat!(
        r"\b[0-9A-Za-z_-]*[0-9][0-9A-Za-z_-]{15,}\b|",
        r"\b[0-9A-Za-z_-]{15,}[0-9][0-9A-Za-z_-]*\b"
    );
    static REPLACED: LazyLock<[(Regex, &str); 5]> = LazyLock::new(|| {
        [
            (r#""[^"]*"|'[^']*'|`[^`]*`"#, "{value}"),
            (r"https?://\S+", "{url}"),
            (r"[^\s@:<>(){}]+@[^\s@:<>(){}]+", "{address}"),
            (ID, "{id}"),
            (r"(answered )?[+-]?\d+(?:[.:,]\d+)*", "{n}"),
        ]
        .map(|(pattern, text)| (Regex::new(pattern).expect("the patterns are valid"), text))
    });
    let mut text = message.to_owned();
    for (pattern, replacement) in REPLACED.iter() {
        // Group 1 is the text before an HTTP status, which stays.
        let replace = |found: &regex::Captures<'_>| match found.get(1) {
            Some(_) => found[0].to_owned(),
            None => (*replacement).to_owned(),
        };
        text = pattern.replace_all(&text, replace).into_owned();
    }
    text.truncate(text.floor_char_boundary(SIGNATURE_BYTES_MAX));
    text
}

text_enum! {
    /// What has to change before a retry can succeed.
    CauseCategory {
        /// The person's data.
        Data = "data",
        /// The site id, the API key or the region.
        Credentials = "credentials",
        /// Nothing: Customer.io, or the network in between, has to recover.
        Outage = "outage",
        /// An event of the signup has to arrive.
        MissingSignup = "missing_signup",
        /// This service.
        Service = "service",
        /// Unknown.
        Unknown = "unknown",
    }
}

/// The facts that a diagnosis is based on. Messages are not among them, since their wording may
/// change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailureFacts {
    /// Why no further attempt is made.
    pub reason: Option<Reason>,
    /// The cause of the last attempt's failure. `None` if the release that recorded it did not
    /// store causes.
    pub cause: Option<FailureCause>,
    /// The kind of error.
    pub error_type: Option<ErrorType>,
    /// HTTP status of the last response, if there was one.
    pub http_status: Option<u16>,
    /// Time of the event.
    pub occurred_at: Option<DateTime<Utc>>,
}

/// The explanation of a failure for an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diagnosis {
    /// The category of the cause: what has to change.
    pub category: CauseCategory,
    /// The meaning of the failure.
    pub meaning: &'static str,
    /// The next step.
    pub next: &'static str,
    /// An effect that a retry can no longer have.
    pub warning: Option<&'static str>,
}

/// Diagnoses a failure. The age of its event is relative to `now`.
pub fn diagnose(facts: &FailureFacts, now: DateTime<Utc>) -> Diagnosis {
    let (category, meaning, next) = match (facts.reason, cause(facts)) {
        (Some(Reason::Unprocessable), _) => of_unprocessable(),
        (Some(Reason::DeliveryLimit), _) => of_delivery_limit(),
        (Some(Reason::Expired), _) => of_expired(),
        (_, Some(cause)) => of_cause(cause),
        (_, None) => of_unknown(),
    };
    let is_late = facts.occurred_at.is_some_and(|at| now - at > CAMPAIGN_WINDOW);
    let warning = is_late.then_some(
        "The event is older than 72 hours. A retry updates the profile and records the event, but \
            Customer.io starts no campaign for it.",
    );
    Diagnosis { category, meaning, next, warning }
}

/// The stored cause, or the one that the HTTP status or the kind of error implies.
fn cause(facts: &FailureFacts) -> Option<FailureCause> {
    let of_status = || facts.http_status.map(FailureCause::of_status);
    let of_error_type = || match facts.error_type? {
        ErrorType::RateLimit => Some(FailureCause::RateLimited),
        ErrorType::ServerError => Some(FailureCause::ServerError),
        ErrorType::Network => Some(FailureCause::NoResponse),
        ErrorType::Other => None,
    };
    facts.cause.or_else(of_status).or_else(of_error_type)
}

type Advice = (CauseCategory, &'static str, &'static str);

fn of_unprocessable() -> Advice {
    (
        CauseCategory::Data,
        "The message does not follow the contract of its event.",
        "Ask its publisher to send a corrected event, and dismiss this message. Replay it only if \
            this service was at fault and has been fixed.",
    )
}

fn of_delivery_limit() -> Advice {
    (
        CauseCategory::Service,
        "Every replica that received this message stopped before it was done.",
        "Search the service's log around the time of the failure. Retry this one first, and the \
            others if it succeeds.",
    )
}

fn of_expired() -> Advice {
    (
        CauseCategory::Service,
        "The message expired in its queue before a replica received it.",
        "Replay it. Remove the time to live from the publisher, or the policy that sets it: no \
            message of this service has to expire.",
    )
}

fn of_unknown() -> Advice {
    (
        CauseCategory::Unknown,
        "The cause of this failure is unknown.",
        "Read the error message. Retry one, and the group if it succeeds.",
    )
}

fn of_cause(cause: FailureCause) -> Advice {
    use CauseCategory::{Credentials, Data, MissingSignup, Outage};
    match cause {
        FailureCause::SignupUnknown => (
            MissingSignup,
            "The bet slip was confirmed, but no event with the person's e-mail address arrived.",
            "Ask the publisher to send signup.submitted for this signup, then retry.",
        ),
        FailureCause::IdentifierMissing => (
            Data,
            "The person has no id, and customerio.identifier is id.",
            "Ask the publisher to send the event again with customer.id, which restarts the job.",
        ),
        FailureCause::LimitExceeded => (
            Data,
            "A value exceeds a limit of Customer.io, so it was not sent.",
            "Ask the publisher to resend the event with a shorter value, or dismiss the failure.",
        ),
        FailureCause::ItemRefused | FailureCause::RequestRefused => (
            Data,
            "Customer.io refused the data. The error message names the field.",
            "Ask the publisher to send the event again with that field corrected, which restarts \
                the job. Dismiss the failure if it is not needed.",
        ),
        FailureCause::CredentialsRefused => (
            Credentials,
            "Customer.io refused the site id and the API key.",
            "Set CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY of the right workspace and region, \
                restart the service, retry one job, then the group.",
        ),
        FailureCause::AddressRefused => (
            Credentials,
            "The calls go to the wrong address: the region or the URL is not the workspace's.",
            "Set CUSTOMERIO_REGION, or CUSTOMERIO_TRACK_URL if a proxy is used, restart \
                the service, retry one job, then the group.",
        ),
        FailureCause::RateLimited => (
            Outage,
            "Customer.io refused the calls of all retries because there were too many.",
            "Retry one, and the group if it succeeds. If it fails again, lower \
                customerio.requests_per_second.",
        ),
        FailureCause::ServerError => (
            Outage,
            "Customer.io had an outage that outlasted all retries.",
            "See status.customer.io. Retry one, and the group if it succeeds.",
        ),
        FailureCause::NoResponse => (
            Outage,
            "No response arrived through all retries: network, DNS, TLS or a proxy.",
            "Check that this machine reaches Customer.io. Retry one, and the group if it succeeds.",
        ),
        FailureCause::RequestTimeout | FailureCause::ResponseUnclear => (
            Outage,
            "Customer.io timed out, or its responses could not be parsed, through all retries.",
            "Retry one, and the group if it succeeds.",
        ),
        FailureCause::UnexpectedStatus => of_unknown(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_signature_leaves_out_what_differs() {
        let cases = [
            (
                "Customer.io answered 503: <h1>Sorry 7</h1>",
                "Customer.io answered 503: <h{n}>Sorry {n}</h{n}>",
            ),
            (
                "Customer.io refused the identify: invalid: attributes.plan: \"gold\" is unknown",
                "Customer.io refused the identify: invalid: attributes.plan: {value} is unknown",
            ),
            (
                "no connection to Customer.io: tcp: 10.0.0.7:443 refused",
                "no connection to Customer.io: tcp: {n} refused",
            ),
            ("person ann.lee+x@example.com is unknown", "person {address} is unknown"),
            ("trace 01JMC0000000000000000000ZZ at https://x.example/1", "trace {id} at {url}"),
            (
                "signup 7b0c1c8e-0000-4000-8000-000000000001 has 3 faults",
                "signup {id} has {n} faults",
            ),
            (
                "customer.id is 161 bytes, Customer.io allows 150",
                "customer.id is {n} bytes, Customer.io allows {n}",
            ),
        ];
        for (message, expected) in cases {
            assert_eq!(signature(message), expected);
        }
    }

    proptest! {
        #[test]
        fn numbers_ids_and_addresses_never_distinguish_two_failures(
            n in 0u32.., m in 0u32.., id: u128, other: u128, name in "[a-z]{1,9}",
            second in "[a-z]{1,9}",
        ) {
            let message = |n: u32, id: u128, name: &str| {
                let id = uuid::Uuid::from_u128(id);
                format!("field {n} of {id} for {name}@example.com, \"{name}\"")
            };
            let (first, second) = (message(n, id, &name), message(m, other, &second));
            prop_assert_eq!(signature(&first), signature(&second));
        }

        #[test]
        fn any_text_has_a_short_signature(message in ".{0,400}") {
            prop_assert!(signature(&message).len() <= SIGNATURE_BYTES_MAX);
        }
    }

    fn facts(cause: FailureCause) -> FailureFacts {
        FailureFacts {
            reason: Some(Reason::Permanent),
            cause: Some(cause),
            error_type: Some(cause.error_type()),
            http_status: None,
            occurred_at: None,
        }
    }

    fn category(facts: &FailureFacts) -> CauseCategory {
        diagnose(facts, DateTime::UNIX_EPOCH).category
    }

    #[test]
    fn every_cause_has_its_advice() {
        for &cause in FailureCause::ALL {
            let expected = match cause {
                FailureCause::SignupUnknown => CauseCategory::MissingSignup,
                FailureCause::IdentifierMissing
                | FailureCause::LimitExceeded
                | FailureCause::ItemRefused
                | FailureCause::RequestRefused => CauseCategory::Data,
                FailureCause::CredentialsRefused | FailureCause::AddressRefused => {
                    CauseCategory::Credentials
                }
                FailureCause::RateLimited
                | FailureCause::ServerError
                | FailureCause::RequestTimeout
                | FailureCause::NoResponse
                | FailureCause::ResponseUnclear => CauseCategory::Outage,
                FailureCause::UnexpectedStatus => CauseCategory::Unknown,
            };
            assert_eq!(category(&facts(cause)), expected, "{cause}");
        }
    }

    #[test]
    fn the_reason_comes_before_the_cause() {
        let of = |reason| FailureFacts { reason: Some(reason), ..facts(FailureCause::NoResponse) };
        assert_eq!(category(&of(Reason::Unprocessable)), CauseCategory::Data);
        assert_eq!(category(&of(Reason::DeliveryLimit)), CauseCategory::Service);
    }

    #[test]
    fn without_a_stored_cause_the_status_and_the_error_type_decide() {
        let of = |error_type, http_status| FailureFacts {
            error_type: Some(error_type),
            http_status,
            cause: None,
            ..facts(FailureCause::UnexpectedStatus)
        };
        for (error_type, http_status, expected) in [
            (ErrorType::Other, Some(401), CauseCategory::Credentials),
            (ErrorType::Other, Some(302), CauseCategory::Credentials),
            (ErrorType::Other, Some(408), CauseCategory::Outage),
            (ErrorType::Other, Some(207), CauseCategory::Data),
            (ErrorType::Other, Some(418), CauseCategory::Unknown),
            (ErrorType::Other, None, CauseCategory::Unknown),
            (ErrorType::RateLimit, None, CauseCategory::Outage),
            (ErrorType::ServerError, Some(503), CauseCategory::Outage),
            (ErrorType::Network, None, CauseCategory::Outage),
        ] {
            assert_eq!(category(&of(error_type, http_status)), expected, "{http_status:?}");
        }
    }

    #[test]
    fn an_event_older_than_72_hours_carries_a_warning() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(30);
        let warning = |age| {
            let occurred_at = Some(now - age);
            diagnose(&FailureFacts { occurred_at, ..facts(FailureCause::ServerError) }, now).warning
        };
        assert_eq!(warning(TimeDelta::hours(72)), None);
        let warning = warning(TimeDelta::hours(73)).expect("a warning");
        assert!(warning.contains("no campaign"), "{warning}");
    }
}
