//! What holds for any request: property tests and the fuzzer look whether it does.

use axum::http::{HeaderMap, HeaderValue, header};
use chrono::Utc;
use serde::de::DeserializeOwned;

use crate::{
    admin::{
        api::{jobs, process, signup, sync_failures, unprocessable},
        http::{
            auth::Tokens,
            extract::{NoParameters, read_body, read_query},
            middleware,
        },
    },
    ledger::Selection,
};

/// Any query string is read, or it is told which key is wrong.
pub fn any_query_is_read_or_told(query: &str) {
    fn look<T: DeserializeOwned>(query: &str) {
        if let Err(problem) = read_query::<T>(query) {
            assert!(problem.detail().starts_with("query"), "{}", problem.detail());
        }
    }
    look::<sync_failures::retry::Parameters>(query);
    look::<sync_failures::list::Parameters>(query);
    look::<jobs::show::Parameters>(query);
    look::<process::Parameters>(query);
    look::<signup::Parameters>(query);
    look::<unprocessable::list::Parameters>(query);
    look::<NoParameters>(query);
}

/// So is any body.
pub fn any_body_is_read_or_told(body: &[u8]) {
    fn look<T: DeserializeOwned>(body: &[u8]) {
        if let Err(problem) = read_body::<T>(body) {
            assert!(problem.detail().starts_with("body"), "{}", problem.detail());
        }
    }
    look::<Selection>(body);
    look::<sync_failures::dismiss::Dismissal>(body);
    look::<unprocessable::dismiss::Why>(body);
}

/// No header makes a stranger known.
pub fn no_header_is_a_key(value: &[u8]) {
    let tokens: Tokens = "ann:operator:Zm9yIGFubg".parse().expect("a token");
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    let headers: HeaderMap = [header::COOKIE, header::HOST, header::ORIGIN]
        .map(|name| (name, value.clone()))
        .into_iter()
        .collect();
    assert_eq!(middleware::session(&headers, &tokens, Utc::now()), None);
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
        fn any_text_is_read_or_told(text in QUERY_LIKE) {
            any_query_is_read_or_told(&text);
            any_body_is_read_or_told(text.as_bytes());
            no_header_is_a_key(text.as_bytes());
        }
    }
}
