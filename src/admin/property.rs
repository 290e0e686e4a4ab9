//! Properties of any request, for the property tests and the fuzzer.

#![expect(clippy::disallowed_methods, reason = "an edge: a property of any time")]

use axum::http::{HeaderMap, HeaderValue, header};
use chrono::Utc;
use serde::de::DeserializeOwned;

use crate::{
    admin::{
        api::{jobs, process, signup, sync_failures, unprocessable},
        http::{
            auth::AccessTokens,
            extract::{NoParameters, read_body, read_query},
            middleware,
        },
    },
    ledger::{MessageSelection, Selection, SessionSalt},
};

/// Any query string is parsed, or the error names the query.
pub fn any_query_is_parsed_or_explained(query: &str) {
    fn check<T: DeserializeOwned>(query: &str) {
        if let Err(problem) = read_query::<T>(query) {
            assert!(problem.detail().starts_with("query"), "{}", problem.detail());
        }
    }
    check::<sync_failures::retry::DryRunParameters>(query);
    check::<sync_failures::list::FailureListParameters>(query);
    check::<jobs::show::JobParameters>(query);
    check::<process::ProcessParameters>(query);
    check::<signup::retry::RetrySignupParameters>(query);
    check::<unprocessable::list::UnprocessableParameters>(query);
    check::<NoParameters>(query);
}

/// Any body is parsed, or the error names the body.
pub fn any_body_is_parsed_or_explained(body: &[u8]) {
    fn check<T: DeserializeOwned>(body: &[u8]) {
        if let Err(problem) = read_body::<T>(body) {
            assert!(problem.detail().starts_with("body"), "{}", problem.detail());
        }
    }
    check::<Selection>(body);
    check::<sync_failures::dismiss::Dismissal>(body);
    check::<unprocessable::dismiss::DismissRequest>(body);
    check::<unprocessable::dismiss::MessageDismissal>(body);
    check::<MessageSelection>(body);
}

/// No header authenticates a client without a token.
pub fn no_header_authenticates(value: &[u8]) {
    let tokens: AccessTokens = "ann:operator:Zm9yIGFubiBhbG9uZQ".parse().expect("a token");
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    let headers: HeaderMap = [header::COOKIE, header::HOST, header::ORIGIN]
        .map(|name| (name, value.clone()))
        .into_iter()
        .collect();
    let session = middleware::session_cookie(&headers).unwrap_or_default();
    let salt = SessionSalt::from(vec![0; 32]);
    assert_eq!(tokens.identify_session(session, &salt, Utc::now()), None);
    let _ = (middleware::require_same_origin(&headers), middleware::is_for_loopback(&headers));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Texts that resemble query strings, and any others.
    const QUERY_LIKE: &str = concat!(
        r"(&?(limit|offset|search|syncPhase|force|[a-z%+]{0,5})",
        r"=[-0-9a-z%+\x00-\x20]{0,5}){0,4}|\PC{0,40}"
    );

    proptest! {
        #[test]
        fn any_text_is_parsed_or_explained(text in QUERY_LIKE) {
            any_query_is_parsed_or_explained(&text);
            any_body_is_parsed_or_explained(text.as_bytes());
            no_header_authenticates(text.as_bytes());
        }
    }
}
