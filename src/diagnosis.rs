//! What a failure means: its signature, which groups it with others of the same cause, and its
//! verdict in words. Pure.

use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use regex::Regex;

use crate::{
    job::{ErrorType, Reason},
    runtime::text_enum::text_enum,
};

/// The longest signature, in bytes. It is a key of an index.
const LONGEST_SIGNATURE: usize = 240;

/// Customer.io records older events, and starts no campaign for them (Track API, event
/// `timestamp`).
const CAMPAIGNS_END_AFTER: TimeDelta = TimeDelta::hours(72);

/// `message` without what differs from one failure to the next: quoted values, addresses, ids and
/// numbers. The status that Customer.io answered with stays: it tells causes apart.
pub fn signature(message: &str) -> String {
    static REPLACED: LazyLock<[(Regex, &str); 5]> = LazyLock::new(|| {
        [
            (r#""[^"]*"|'[^']*'|`[^`]*`"#, "{value}"),
            (r"https?://\S+", "{url}"),
            (r"[^\s@:<>(){}]+@[^\s@:<>(){}]+", "{address}"),
            // UUIDs, ULIDs and other tokens of 16 or more letters and digits with a digit among
            // them.
            (
                concat!(
                    r"\b[0-9A-Za-z_-]*[0-9][0-9A-Za-z_-]{15,}\b|",
                    r"\b[0-9A-Za-z_-]{15,}[0-9][0-9A-Za-z_-]*\b"
                ),
                "{id}",
            ),
            (r"(answered )?[+-]?\d+(?:[.:,]\d+)*", "{n}"),
        ]
        .map(|(pattern, replacement)| {
            (
                Regex::new(pattern).expect(
                    "the patterns are \
            constants",
                ),
                replacement,
            )
        })
    });
    let mut text = message.to_owned();
    for (pattern, replacement) in REPLACED.iter() {
        // The one group that is captured is what a number that stays follows.
        let replace = |found: &regex::Captures<'_>| match found.get(1) {
            Some(_) => found[0].to_owned(),
            None => (*replacement).to_owned(),
        };
        text = pattern.replace_all(&text, replace).into_owned();
    }
    text.truncate(text.floor_char_boundary(LONGEST_SIGNATURE));
    text
}

text_enum! {
    /// Who or what has to change before a retry can help.
    Cause {
        /// The person's data.
        Data = "data",
        /// Site id, API key or region.
        Credentials = "credentials",
        /// Customer.io, or the way to it; nothing has to change, it has to pass.
        Outage = "outage",
        /// Another event that has not come.
        MissingSignup = "missing_signup",
        /// This service.
        Service = "service",
        /// Not known.
        Unknown = "unknown",
    }
}

/// A failure, as far as a verdict looks at it.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// Why no further try is made.
    pub reason: Option<Reason>,
    /// The kind of trouble.
    pub error_type: Option<ErrorType>,
    /// The status of the last answer, if one came.
    pub http_status: Option<u16>,
    /// What was said.
    pub message: &'a str,
    /// When its event happened.
    pub occurred_at: Option<DateTime<Utc>>,
}

/// A failure in words for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Who or what has to change.
    pub cause: Cause,
    /// What it is.
    pub meaning: &'static str,
    /// What to do next.
    pub next: &'static str,
    /// What a retry can no longer bring about.
    pub warning: Option<&'static str>,
}

struct Rule {
    applies: fn(&Case<'_>) -> bool,
    cause: Cause,
    meaning: &'static str,
    next: &'static str,
}

/// The first rule that applies speaks.
const RULES: &[Rule] = &[
    Rule {
        applies: |case| case.reason == Some(Reason::Unprocessable),
        cause: Cause::Data,
        meaning: "The message does not follow the contract of its event.",
        next: "Have its publisher send it again in the right form and dismiss this one. Replay it \
            only if this service was at fault and has been mended.",
    },
    Rule {
        applies: |case| case.reason == Some(Reason::DeliveryLimit),
        cause: Cause::Service,
        meaning: "Every replica that took this message was cut off before it was done.",
        next: "Look into the service's log around the time of the failure. Retry this one first, \
            the others when it succeeds.",
    },
    Rule {
        applies: |case| case.message.starts_with("signup not known yet"),
        cause: Cause::MissingSignup,
        meaning: "The bet slip was confirmed, and no event with the person's e-mail address has \
            come.",
        next: "Have the publisher send signup.submitted for this signup, then retry.",
    },
    Rule {
        applies: |case| matches!(case.http_status, Some(401 | 403)),
        cause: Cause::Credentials,
        meaning: "Customer.io does not accept the site id and the API key.",
        next: "Set CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY of the right workspace and region, \
            restart, retry one, then the group.",
    },
    Rule {
        applies: |case| matches!(case.http_status, Some(300..=399 | 404 | 405)),
        cause: Cause::Credentials,
        meaning: "The calls go to the wrong address: the region or the URL does not fit the \
            workspace.",
        next: "Set CUSTOMERIO_REGION, or CUSTOMERIO_TRACK_URL where a proxy is used, restart, \
            retry one, then the group.",
    },
    Rule {
        applies: |case| {
            case.error_type == Some(ErrorType::RateLimit) || case.http_status == Some(429)
        },
        cause: Cause::Outage,
        meaning: "Customer.io refused calls for more than an hour because there were too many.",
        next: "Retry one; when it succeeds, retry the group. If it comes back, lower \
            customerio.requests_per_second.",
    },
    Rule {
        applies: |case| case.error_type == Some(ErrorType::ServerError),
        cause: Cause::Outage,
        meaning: "Customer.io had an outage that outlasted all retries.",
        next: "See status.customer.io. Retry one; when it succeeds, retry the group.",
    },
    Rule {
        applies: |case| case.error_type == Some(ErrorType::Network),
        cause: Cause::Outage,
        meaning: "No answer came from Customer.io through all retries: network, DNS, TLS or a \
            proxy.",
        next: "Check that this machine reaches Customer.io. Retry one; when it succeeds, retry \
            the group.",
    },
    Rule {
        applies: |case| {
            matches!(case.http_status, Some(408)) || case.message.contains("which can't be read")
        },
        cause: Cause::Outage,
        meaning: "Customer.io's answers could not be understood, or it gave up waiting, through \
            all retries.",
        next: "Retry one; when it succeeds, retry the group.",
    },
    Rule {
        applies: |case| case.message.contains("Customer.io allows"),
        cause: Cause::Data,
        meaning: "A value is over a limit of Customer.io and was not sent.",
        next: "Have the publisher send the event again with a shorter value: that starts the job \
            afresh. Dismiss it if nobody needs it.",
    },
    Rule {
        applies: |case| {
            matches!(case.http_status, Some(207 | 400 | 413 | 422))
                || case.message.starts_with("Customer.io refused")
        },
        cause: Cause::Data,
        meaning: "Customer.io refused the data; the field that it names is the culprit.",
        next: "Have the publisher send the event again with that field corrected: that starts the \
            job afresh. Dismiss it if nobody needs it.",
    },
    Rule {
        applies: |_| true,
        cause: Cause::Unknown,
        meaning: "Nothing is known about this kind of failure.",
        next: "Read what was said. Retry one; when it succeeds, retry the group.",
    },
];

/// What `case` means, as of `now`.
pub fn verdict(case: &Case<'_>, now: DateTime<Utc>) -> Verdict {
    let rule =
        RULES.iter().find(|rule| (rule.applies)(case)).expect("the last rule always applies");
    let is_late = case.occurred_at.is_some_and(|at| now - at > CAMPAIGNS_END_AFTER);
    Verdict {
        cause: rule.cause,
        meaning: rule.meaning,
        next: rule.next,
        warning: is_late.then_some(
            "The event is older than 72 hours: a retry brings the profile up to date and records \
                the event, and Customer.io starts no campaign for it.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn case(error_type: ErrorType, http_status: Option<u16>, message: &str) -> Case<'_> {
        Case {
            reason: Some(Reason::Permanent),
            error_type: Some(error_type),
            http_status,
            message,
            occurred_at: None,
        }
    }

    #[test]
    fn a_signature_takes_out_what_differs() {
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
        fn numbers_ids_and_addresses_never_tell_two_failures_apart(
            n in 0u32.., m in 0u32.., id: u128, other: u128, name in "[a-z]{1,9}",
            second in "[a-z]{1,9}",
        ) {
            let message = |n: u32, id: u128, name: &str| {
                format!("field {n} of {} for {name}@example.com, \
                    \"{name}\"", uuid::Uuid::from_u128(id))
            };
            prop_assert_eq!(signature(&message(n, id, &name)), signature(&message(m, other,
            &second)));
        }

        #[test]
        fn any_text_has_a_short_signature(message in ".{0,400}") {
            prop_assert!(signature(&message).len() <= LONGEST_SIGNATURE);
        }
    }

    #[test]
    fn every_kind_of_failure_has_its_verdict() {
        let cases = [
            (
                case(ErrorType::Other, Some(401), "Customer.io answered 401: Unauthorized request"),
                Cause::Credentials,
            ),
            (case(ErrorType::Other, Some(403), "Customer.io answered 403"), Cause::Credentials),
            (
                case(ErrorType::Other, Some(302), "Customer.io answered 302 and points to x"),
                Cause::Credentials,
            ),
            (case(ErrorType::Other, Some(404), "Customer.io answered 404"), Cause::Credentials),
            (case(ErrorType::RateLimit, Some(429), "Customer.io answered 429"), Cause::Outage),
            (case(ErrorType::ServerError, Some(503), "Customer.io answered 503"), Cause::Outage),
            (case(ErrorType::Network, None, "the call timed out"), Cause::Outage),
            (case(ErrorType::Other, Some(408), "Customer.io answered 408"), Cause::Outage),
            (
                case(
                    ErrorType::Other,
                    Some(200),
                    "Customer.io answered 200: <html>, which can't be read",
                ),
                Cause::Outage,
            ),
            (
                case(ErrorType::Other, None, "customer.id is 161 bytes, Customer.io allows 150"),
                Cause::Data,
            ),
            (
                case(ErrorType::Other, Some(207), "Customer.io refused the event: invalid: name"),
                Cause::Data,
            ),
            (
                case(ErrorType::Other, Some(400), "Customer.io answered 400: invalid: batch"),
                Cause::Data,
            ),
            (case(ErrorType::Other, None, "signup not known yet"), Cause::MissingSignup),
            (case(ErrorType::Other, Some(418), "Customer.io answered 418"), Cause::Unknown),
        ];
        for (case, cause) in cases {
            assert_eq!(verdict(&case, Utc::now()).cause, cause, "{}", case.message);
        }
        let of_reason = |reason| Case { reason: Some(reason), ..case(ErrorType::Other, None, "x") };
        assert_eq!(verdict(&of_reason(Reason::Unprocessable), Utc::now()).cause, Cause::Data);
        assert_eq!(verdict(&of_reason(Reason::DeliveryLimit), Utc::now()).cause, Cause::Service);
    }

    #[test]
    fn an_event_older_than_72_hours_is_said_to_start_no_campaign() {
        let now = Utc::now();
        let at = |age| Case {
            occurred_at: Some(now - age),
            ..case(ErrorType::ServerError, Some(503), "x")
        };
        assert_eq!(verdict(&at(TimeDelta::hours(71)), now).warning, None);
        let warning = verdict(&at(TimeDelta::hours(73)), now).warning.expect("a warning");
        assert!(warning.contains("no campaign"), "{warning}");
    }
}
